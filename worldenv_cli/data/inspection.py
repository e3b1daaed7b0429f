"""What is in a source or dataset, before anything is made from it: one table, and one picture to look at."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.markup import escape

from .sources import Source

CONSTANT = 1e-6
AT_LIMIT = 0.05  # share of steps at the smallest or largest value from which an action looks clipped


@dataclass
class Inspection:
    """Facts as rows of (what, value); `frames` are the pictures of some episodes, for a contact sheet: [(caption, (N, H, W, 3) uint8)]."""

    facts: list[tuple[str, str]]
    tasks: list[tuple[str, int, str, str]]  # instruction, episodes, actions (min-median-max), success
    dimensions: list[tuple[str, str, str, str]]  # name, range, mean and deviation, remark
    frames: list[tuple[str, np.ndarray]] = field(default_factory=list)


def inspect_source(source: Source, pictured: int = 4) -> Inspection:
    """Reads the numbers of every episode, and the pictures of `pictured` of them, spread over the source."""
    episodes = [source.read(listed, False) for listed in source.episodes]
    lengths = np.array([len(episode.actions) for episode in episodes])
    facts = [
        ("format", source.format),
        ("episodes", f"{len(episodes)} of {lengths.min()} to {lengths.max()} actions, {lengths.sum():,} in all"),
        ("control rate", f"{source.control_hz} Hz"),
        ("robot", source.robot),
        *((f"camera {name}", f"{camera['size'][0]} x {camera['size'][1]}, {camera['orientation']}") for name, camera in source.cameras.items()),
        ("success", source.success),
        ("action", source.action["meaning"]),
    ]
    numbers = np.linspace(0, len(episodes) - 1, min(pictured, len(episodes))).round().astype(int)
    frames = []
    for number in dict.fromkeys(numbers.tolist()):
        episode = source.read(source.episodes[number], True)
        frames += [(f"{source.episodes[number].name.rpartition(': ')[2]}, {camera}", pictures) for camera, pictures in episode.frames.items()]
    actions, states = (np.concatenate([getattr(episode, part) for episode in episodes]) for part in ("actions", "states"))
    return Inspection(
        facts=facts,
        tasks=[
            _task(task, [episode for episode in episodes if episode.instruction == task]) for task in dict.fromkeys(e.instruction for e in episodes)
        ],
        dimensions=_dimensions("action", source.action_names, actions) + _dimensions("state", source.state_names, states),
        frames=frames,
    )


def print_inspection(found: Inspection, sheet: Path | None) -> None:
    """Tables to the terminal, pictures to a PNG file where one is wanted."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.video import contact_sheet

    console = Console()
    tables = [(("", ""), found.facts), (("task", "episodes", "actions", "success"), found.tasks), (("", "range", "mean", ""), found.dimensions)]
    for headings, rows in tables:
        table = Table(*headings, box=None, header_style="bold", pad_edge=False, show_header=any(headings))
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table, "")
    if sheet is not None:
        console.print(f"pictures: {contact_sheet(sheet, found.frames)}")


def _task(task: str, episodes: list) -> tuple[str, int, str, str]:
    lengths = [len(episode.actions) for episode in episodes]
    share = np.mean([episode.success[-1] for episode in episodes])
    return task or "(no instruction)", len(episodes), f"{min(lengths)} / {np.median(lengths):.0f} / {max(lengths)}", f"{100 * share:.0f} %"


def _dimensions(kind: str, names: list[str], values: np.ndarray) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, column in zip(names, values.T, strict=True):
        low, high = column.min(), column.max()
        remark = ""
        if high - low < CONSTANT:
            remark = "constant"
        elif kind == "action":
            ends = np.mean((column <= low + CONSTANT) | (column >= high - CONSTANT))
            two = np.all((column <= low + CONSTANT) | (column >= high - CONSTANT))
            remark = "two values" if two else f"clipped: {100 * ends:.0f} % of the steps at an end" if ends > AT_LIMIT else ""
        rows.append((f"{kind} {name}", f"{low:.3g} .. {high:.3g}", f"{column.mean():.3g} ± {column.std():.3g}", remark))
    return rows
