"""Small plots as inline SVG: three kinds, no library, no colours of their own (the page's style sheet gives them, light and dark).

Elements are `xml.etree` nodes, which escape every text and attribute when they are written out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

MARGIN = {"left": 50, "right": 12, "top": 10, "bottom": 36}  # pixels, for tick labels and axis titles
SQUARE, DIAMOND = ((-3, -3), (3, -3), (3, 3), (-3, 3)), ((0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0))
MARKS = ((), SQUARE, DIAMOND, ((0, -4), (3.8, 3), (-3.8, 3)))  # corners in pixels; none: a circle


@dataclass
class Series:
    """One line. y may hold None or NaN, where the line breaks; low and high give it a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass
class Point:
    """One dot with an optional vertical interval. `text` is shown under the pointer; `group` chooses colour and mark."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    group: int = 0


def element(tag: str, *children: Element | str, **attributes: object) -> Element:
    """A node of HTML or SVG: `class_` is class, `stroke_width` is stroke-width."""
    node = Element(tag, {name.rstrip("_").replace("_", "-"): _written(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def _written(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def known(value: float | None) -> bool:
    """Whether there is a number at all: what was not measured is None or NaN."""
    return value is not None and math.isfinite(value)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def span(values: Sequence[float | None], at_least: tuple[float, float] | None = None) -> tuple[float, float]:
    """A range that holds every known value with a little air, never empty; `at_least` is part of it."""
    numbers = [value for value in values if known(value)] + list(at_least or ())
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):  # as good as equal: no ticks would lie between them
        low, high = low if at_least else low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    air = 0.05 * (high - low)
    inside = at_least or (math.inf, -math.inf)
    return (low if low >= inside[0] else low - air, high if high <= inside[1] else high + air)


class Axes:
    """A frame of `width` x `height` pixels that maps data to pixels and draws grid, ticks and titles."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], titles: tuple[str, str], size: tuple[int, int] = (325, 205)):
        self.x_range, self.y_range = x, y
        self.width, self.height = size
        self.left, self.right = MARGIN["left"], self.width - MARGIN["right"]
        self.top, self.bottom = MARGIN["top"], self.height - MARGIN["bottom"]
        self.node = element("svg", viewBox=f"0 0 {self.width} {self.height}", role="img", width=self.width)
        for value in ticks(*x, about=6):
            self.text(self.x(value), self.bottom + 14, f"{value:g}", "middle")
        for value in ticks(*y):
            self.line(self.left, self.y(value), self.right, self.y(value), "grid")
            self.text(self.left - 6, self.y(value) + 4, f"{value:g}", "end")
        self.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.text((self.left + self.right) / 2, self.height - 4, titles[0], "middle", "axis-title")
        if titles[1]:
            self.text(-(self.top + self.bottom) / 2, 11, titles[1], "middle", "axis-title", transform="rotate(-90)")

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        self.node.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_))

    def text(self, x: float, y: float, text: str, anchor: str, class_: str = "tick", **attributes: object) -> None:
        self.node.append(element("text", text, x=x, y=y, text_anchor=anchor, class_=class_, **attributes))


def mark(x: float, y: float, group: int, text: str = "") -> Element:
    """A dot at a place in pixels; its shape tells groups apart where colour does not. `text` is shown under the pointer."""
    corners = MARKS[group % len(MARKS)]
    if corners:
        points = " ".join(f"{x + right:.5g},{y + down:.5g}" for right, down in corners)
        node = element("polygon", points=points, class_=f"mark c{group % 6}")
    else:
        node = element("circle", cx=x, cy=y, r=3.2, class_=f"mark c{group % 6}")
    if text:
        node.append(element("title", text))
    return node


def line_plot(
    series: list[Series],
    titles: tuple[str, str],
    y_at_least: tuple[float, float] | None = None,
    breaks: Sequence[float] = (),
) -> Element:
    """Lines over a shared x; `breaks` are places on x that get a dashed vertical line."""
    everything = [value for line in series for values in (line.y, line.low or (), line.high or ()) for value in values]
    axes = Axes(span([x for line in series for x in line.x]), span(everything, y_at_least), titles)
    for place in breaks:
        axes.line(axes.x(place), axes.top, axes.x(place), axes.bottom, "break")
    for group, line in enumerate(series):
        if line.low is not None and line.high is not None:
            edge = [*zip(line.x, line.low, strict=True), *reversed(list(zip(line.x, line.high, strict=True)))]
            corners = " ".join(f"{axes.x(x):.5g},{axes.y(y):.5g}" for x, y in edge if known(y))
            axes.node.append(element("polygon", points=corners, class_=f"band c{group % 6}"))
        path, pen_down = [], False
        for x, y in zip(line.x, line.y, strict=True):
            if known(y):
                path.append(f"{'L' if pen_down else 'M'}{axes.x(x):.5g} {axes.y(y):.5g}")
            pen_down = known(y)
        axes.node.append(element("path", d=" ".join(path), class_=f"line c{group % 6}"))
        if len(line.x) <= 30:
            for x, y in zip(line.x, line.y, strict=True):
                if known(y):
                    axes.node.append(mark(axes.x(x), axes.y(y), group, f"{line.name}: {y:.4g} at {x:g}"))
    return axes.node


def agreement_plot(points: list[Point], titles: tuple[str, str]) -> Element:
    """Two rates against each other on [0, 1]: on the diagonal they agree."""
    axes = Axes((0.0, 1.0), (0.0, 1.0), titles, size=(325, 310))
    axes.line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "diagonal")
    for point in points:
        if known(point.low) and known(point.high):
            axes.line(axes.x(point.x), axes.y(point.low), axes.x(point.x), axes.y(point.high), f"whisker c{point.group % 6}")
        axes.node.append(mark(axes.x(point.x), axes.y(point.y), point.group, point.text))
    return axes.node


def interval_plot(rows: list[tuple[str, list[Point]]], x: tuple[float, float], title: str) -> Element:
    """A dot with its interval along x for each point; a row for each label, with its points one below the other. Point.y is not used."""
    step, air = 15, 12
    height = 12 + sum(step * len(points) + air for _, points in rows) + 34
    label_width = 24 + 7 * max(len(label) for label, _ in rows)
    width = label_width + 430
    node = element("svg", viewBox=f"0 0 {width} {height}", role="img", width=width)
    node.append(element("title", title))

    def place(value: float) -> float:
        return label_width + (value - x[0]) / (x[1] - x[0]) * (width - label_width - 16)

    bottom = height - 34
    for value in ticks(*x):
        class_ = "axis" if abs(value) < 1e-12 and x[0] < 0 else "grid"
        node.append(element("line", x1=place(value), y1=6, x2=place(value), y2=bottom, class_=class_))
        node.append(element("text", f"{100 * value:.0f}", x=place(value), y=bottom + 14, text_anchor="middle", class_="tick"))
    node.append(element("text", title, x=(label_width + width) / 2, y=height - 4, text_anchor="middle", class_="axis-title"))
    y = 6.0 + air / 2
    for label, points in rows:
        middle = y + step * len(points) / 2 + 4
        node.append(element("text", label, x=label_width - 10, y=middle, text_anchor="end", class_="row"))
        for point in points:
            y += step
            line = y - step / 2
            if known(point.low) and known(point.high):
                ends = {"x1": place(point.low), "x2": place(point.high)}
                node.append(element("line", **ends, y1=line, y2=line, class_=f"whisker c{point.group % 6}"))
            node.append(mark(place(point.x), line, point.group, point.text))
        y += air
    return node
