"""The pieces a report is made of, and how a figure is written: never without its n and its interval where they are known."""

from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from . import statistics
from .svg import known

NOTHING = "–"
Cell = str | tuple[str, str]  # what is read first, and its detail


@dataclass
class Table:
    title: str
    headers: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass
class Plot:
    title: str
    svg: Element
    legend: list[str] = field(default_factory=list)
    note: str = ""


@dataclass
class Video:
    path: str
    caption: str
    narrow: bool = False  # one episode, where others show two side by side


@dataclass
class Listing:
    """Text to fold away, such as a recipe."""

    title: str
    text: str


@dataclass
class Section:
    title: str
    blocks: list  # str (a paragraph), Table, list[Plot], list[Video], Listing
    key: bool = True  # worth a place in the terminal


def percent(value: float | None) -> str:
    return f"{100 * value:.1f}%" if known(value) else NOTHING


def points(value: float | None) -> str:
    """A difference of rates in percentage points, always with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−") if known(value) else NOTHING


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:#.{digits}g}".rstrip(".") if known(value) else NOTHING


def p_value(p: float | None) -> str:
    if not known(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def rate(value: dict | float | None) -> Cell:
    """A success rate: 62.5%, and below it its interval and its counts."""
    if isinstance(value, dict):
        if not value["n"]:
            return NOTHING, "n = 0"
        estimate, low, high = statistics.wilson(value["successes"], value["n"])
        return percent(estimate), f"[{100 * low:.1f}, {100 * high:.1f}] {value['successes']}/{value['n']}"
    return (percent(value), "n not given") if known(value) else NOTHING


def rate_of(counts: list[int] | None) -> Cell:
    """A rate from [successes, n]."""
    return rate({"successes": counts[0], "n": counts[1]}) if counts else NOTHING


def difference_cell(estimate: float | None, low: float | None, high: float | None) -> Cell:
    return (points(estimate), f"[{points(low)}, {points(high)}]") if known(low) and known(high) else points(estimate)
