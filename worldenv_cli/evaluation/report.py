"""One page a run can be judged by: the sections of a report as a self-contained HTML file, or as tables in the terminal.

The page has no script and loads nothing but the videos beside it. It is built from `xml.etree` elements, which escape what they are given.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

from .. import cards
from ..artifacts import write_card
from ..atomic import write_json
from ..progress import say
from .blocks import Cell, Listing, Plot, Section, Table, Video
from .headline import headline
from .sections import sections
from .svg import element, mark

if TYPE_CHECKING:
    from rich.console import Console

STYLE = """
:root { color-scheme: light dark; --fg: #1d1d1f; --muted: #63666c; --bg: #fff; --rule: #d9dbdf; --soft: #f5f6f7;
  --c0: #2b6cb0; --c1: #c05621; --c2: #2f855a; --c3: #805ad5; --c4: #b83280; --c5: #4a5568; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e7e9; --muted: #9b9fa6; --bg: #16181b; --rule: #34383e; --soft: #1f2226;
  --c0: #63a5e8; --c1: #f0965a; --c2: #68c58f; --c3: #b49cf2; --c4: #ee85bb; --c5: #a8b0bd; } }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; margin: 0; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .8rem; padding-top: .7rem; border-top: 1px solid var(--rule); }
h3 { font-size: .95rem; font-weight: 600; margin: 1.4rem 0 .35rem; }
p { max-width: 75ch; margin: .4rem 0; }
.created { max-width: none; }
.created, .note, figcaption { color: var(--muted); font-size: .85rem; }
nav { margin-top: .8rem; font-size: .87rem; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }
nav a { color: var(--c0); text-decoration: none; }
.headline { font-size: 1.15rem; max-width: 90ch; margin: .8rem 0 .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { font-weight: 600; text-align: left; vertical-align: bottom; border-bottom: 1px solid var(--muted); }
th, td { padding: .32rem .9rem .32rem 0; }
td { vertical-align: top; border-bottom: 1px solid var(--rule); white-space: nowrap; }
td:last-child:not(.n), td small { white-space: normal; }
td small span { white-space: nowrap; }
th.n, td.n { text-align: right; }
td small { display: block; color: var(--muted); font-size: .8rem; }
td:first-child { font-weight: 500; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start; }
figure { margin: .6rem 0 0; max-width: 100%; }
svg { max-width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .82rem; color: var(--muted); }
.legend span { display: inline-flex; align-items: center; gap: .35em; }
video, figure.video img { width: 100%; max-width: 516px; background: var(--soft); display: block; }
figure.video { flex: 1 1 320px; max-width: 516px; }
figure.narrow { flex-basis: 170px; max-width: 256px; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
summary { cursor: pointer; margin-top: 1.2rem; font-weight: 600; font-size: .95rem; }
svg text { fill: var(--muted); font-size: 11px; font-family: inherit; }
svg text.row { fill: var(--fg); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: .7; } .axis { stroke: var(--muted); stroke-width: 1; }
.break, .diagonal { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; }
.whisker { stroke: var(--c); stroke-width: 1.6; } .mark { fill: var(--c); } .band { fill: var(--c); opacity: .15; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
"""


def publish(folder: Path, report: dict) -> None:
    """A finished evaluation, of one run or of several: eval.json, report.html and a card in the folder, and what came out in a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "eval.json", report)
    write_card(folder, "run", cards.run(report))
    write_report(folder / "report.html", report)
    if headline(report):
        say(headline(report))
    say(f"report: {folder / 'report.html'}; every number: {folder / 'eval.json'}; all tables in the terminal: --verbose")


def write_report(path: str | Path, report: dict) -> Path:
    """Write the report dict (see `sections`) as one HTML file and return its path. Videos are linked relative to it, not copied."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<!DOCTYPE html>\n" + tostring(page(report), encoding="unicode", method="html"), encoding="utf-8")
    return path


def page(report: dict) -> Element:
    shown = sections(report)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", report["name"]),
        element("style", STYLE),
    )
    body = element("body", element("h1", report["name"]))
    if headline(report):
        body.append(element("p", headline(report), class_="headline"))
    origin = [str(report[key]) for key in ("created", "code", "seed", "machine") if report.get(key)]
    if origin:
        body.append(element("p", " · ".join(origin), class_="created"))
    if len(shown) > 2:
        body.append(element("nav", *(element("a", section.title, href=f"#{anchor(section)}") for section in shown)))
    for section in shown:
        parts = [html_block(block) for block in section.blocks]
        body.append(element("section", element("h2", section.title), *parts, id=anchor(section), class_=anchor(section)))
    return element("html", head, body, lang="en")


def anchor(section: Section) -> str:
    return re.sub(r"[^a-z]+", "-", section.title.lower())


def html_block(block: str | Table | Listing | list) -> Element:
    match block:
        case str():
            return element("p", block)
        case Table():
            return html_table(block)
        case Listing():
            return element("details", element("summary", block.title), element("pre", block.text))
        case _:
            return element("div", *(html_plot(item) if isinstance(item, Plot) else html_video(item) for item in block), class_="row")


def html_table(table: Table) -> Element:
    numeric = [all(is_number(row[i]) for row in table.rows) for i in range(len(table.headers))]
    classes = [{"class_": "n"} if right else {} for right in numeric]
    head = element("tr", *(element("th", header, **class_) for header, class_ in zip(table.headers, classes, strict=True)))
    rows = []
    for row in table.rows:
        cells = []
        for cell, class_ in zip(row, classes, strict=True):
            text, detail = cell if isinstance(cell, tuple) else (cell, "")
            cells.append(element("td", text, *([_detail(detail)] if detail else []), **class_))
        rows.append(element("tr", *cells))
    grid = element("table", element("thead", head), element("tbody", *rows))
    node = element("div", element("h3", table.title), element("div", grid, class_="scroll"))
    if table.note:
        node.append(element("p", table.note, class_="note"))
    return node


def _detail(text: str) -> Element:
    """An interval and its counts may stand one below the other where a table is narrow, but neither is broken in two."""
    interval, bracket, counts = text.partition("] ")
    return element("small", element("span", f"{interval}]"), " ", element("span", counts)) if bracket else element("small", text)


def is_number(cell: Cell) -> bool:
    """Whether a cell reads as a figure, so that its column is set flush right."""
    text = cell[0] if isinstance(cell, tuple) else cell
    return bool(re.match(r"[-+−<]? ?[\d.]+|–$", text))


def html_plot(plot: Plot) -> Element:
    node = element("figure", element("h3", plot.title), style=f"width: {plot.svg.get('width')}px")
    if len(plot.legend) > 1:
        keys = []
        for group, name in enumerate(plot.legend):
            swatch = element("svg", mark(6.0, 6.0, group), width=12, height=12, viewBox="0 0 12 12", aria_hidden="true")
            keys.append(element("span", swatch, name))
        node.append(element("div", *keys, class_="legend"))
    node.append(plot.svg)
    if plot.note:
        node.append(element("figcaption", plot.note))
    return node


def html_video(video: Video) -> Element:
    """A player, or a picture where a video had to be written as an animated WebP. The path is quoted, so that it can only be a file."""
    source = quote(video.path)
    if Path(video.path).suffix in (".webp", ".gif", ".png"):
        player = element("img", src=source, alt=video.caption, loading="lazy")
    else:
        player = element("video", src=source, controls="", loop="", muted="", playsinline="", preload="metadata")
    return element("figure", player, element("figcaption", video.caption), class_="video narrow" if video.narrow else "video")


def print_tables(report: dict, console: "Console | None" = None) -> None:
    """The sentences and tables of the report in the terminal, without plots, videos and provenance."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or Console()
    if headline(report):
        console.print(Text(headline(report), style="bold"))
    for section in sections(report):
        if not section.key or not any(isinstance(block, (str, Table)) for block in section.blocks):
            continue
        console.print(Text(f"\n{section.title}", style="bold"))
        for block in section.blocks:
            if isinstance(block, str):
                console.print(Text(block))
            if not isinstance(block, Table):
                continue
            if _width(block) > console.width:
                _print_records(console, block)
                continue
            grid = RichTable(title=Text(block.title), caption=Text(block.note) if block.note else None, box=box.SIMPLE_HEAD)
            grid.title_justify = grid.caption_justify = "left"
            for i, header in enumerate(block.headers):
                grid.add_column(Text(header), justify="right" if all(is_number(row[i]) for row in block.rows) else "left")
            for row in block.rows:
                grid.add_row(*(Text(cell) if isinstance(cell, str) else Text.assemble(cell[0], "\n", (cell[1], "dim")) for cell in row))
            console.print(grid)


def _lines(cell: Cell) -> tuple[str, ...]:
    return cell if isinstance(cell, tuple) else (cell,)


def _width(table: Table) -> int:
    """Columns that a table takes in the terminal with every number whole; words may be broken into lines, of 20 letters at least."""
    total = 2
    for header, *cells in zip(table.headers, *table.rows, strict=True):
        numbers = max((len(line) for cell in cells for line in _lines(cell) if any(c.isdigit() for c in line) and len(line) <= 40), default=0)
        words = max((len(word) for text in (header, *(line for cell in cells for line in _lines(cell))) for word in text.split()), default=0)
        total += max(numbers, min(words, 20)) + 3
    return total


def _print_records(console: "Console", table: Table) -> None:
    """A table that is wider than the terminal: one paragraph a row, one line a cell."""
    from rich.text import Text

    console.print(Text(f"\n{table.title}", style="italic"))
    margin = max(map(len, table.headers[1:]), default=0)
    margin = min(margin, 36)
    for first, *cells in table.rows:
        name = " ".join(_lines(first))
        console.print(Text(f"{table.headers[0]} {name}" if is_number(first) else name, style="bold"))
        for header, cell in zip(table.headers[1:], cells, strict=True):
            console.print(Text(f"  {header:{margin}}  {'  '.join(line for line in _lines(cell) if line)}"))
    if table.note:
        console.print(Text(table.note, style="dim"))
    console.print()
