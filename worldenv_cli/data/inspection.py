"""What is in a source or dataset, before anything is made from it: facts, tasks, dimensions and pictures as data, and how they are printed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.markup import escape

from ..errors import UserError
from .layout import UNKNOWN, Episode
from .outcomes import counted
from .sources import Source

CONSTANT = 1e-6
AT_LIMIT = 0.05  # share of steps at the smallest or largest value from which an action looks clipped


@dataclass
class Task:
    """Episodes of one instruction; `known` of them have an outcome, `successes` of those succeeded."""

    instruction: str
    episodes: int
    actions: tuple[int, float, int]  # in an episode: fewest, median, most
    successes: int
    known: int


@dataclass
class Dimension:
    """One number of the actions or states, over all steps, in the source's units."""

    name: str
    minimum: float
    maximum: float
    mean: float
    deviation: float
    remark: str


@dataclass
class Inspection:
    """Facts as rows of (what, value), each once; notes as rows of (kind, line), any number of a kind.

    `frames` are the pictures of some episodes, for a contact sheet: [(caption, (N, H, W, 3) uint8)].
    """

    facts: list[tuple[str, str]]
    tasks: list[Task]
    dimensions: list[Dimension]
    notes: list[tuple[str, str]] = field(default_factory=list)
    frames: list[tuple[str, np.ndarray]] = field(default_factory=list)


def inspect_source(source: Source, pictured: int = 4) -> Inspection:
    """Reads the numbers of every episode, and the pictures of `pictured` of them, spread over the source. What cannot be read is a fact, too."""
    episodes, bad = [], [*source.unusable]
    for listed in source.episodes:
        try:
            episodes.append((listed, source.read(listed, ())))
        except UserError as error:
            bad.append(str(error))
    if not episodes:
        raise UserError(bad[0] if bad else f"{source.path}: no episodes")
    lengths = np.array([len(episode.actions) for _, episode in episodes])
    orientation = {name: camera["orientation"] or "orientation unknown" for name, camera in source.cameras.items()}
    frames, dark = _pictures(source, pictured)
    facts = [
        ("format", source.format),
        ("episodes", f"{len(episodes)} of {lengths.min()} to {lengths.max()} actions, {lengths.sum():,} in all"),
        ("control rate", "unknown: --control-hz" if source.control_hz is None else f"{source.control_hz:g} Hz"),
        ("robot", source.robot or "unknown"),
        *((f"camera {name}", f"{camera['size'][0]} x {camera['size'][1]}, {orientation[name]}") for name, camera in source.cameras.items()),
        *((f"camera {name}", f"cannot be taken: {reason}") for name, reason in source.unusable_cameras.items()),
        ("success", f"{counted([episode.outcome for _, episode in episodes])} ({source.outcome})"),
        ("action", source.action["meaning"]),
        *((("limits", f"{min(source.limits[0]):g} to {max(source.limits[1]):g}"),) if source.limits else ()),
    ]
    notes = [
        *(("note", note) for note in source.notes),
        *(("cannot be taken", f"{listed.name}: {listed.problem}") for listed, _ in episodes if listed.problem),
        *(("cannot be read", line) for line in [*bad, *dark]),
    ]
    by_task: dict[str, list[Episode]] = {}
    for listed, episode in episodes:
        by_task.setdefault(" ".join(listed.instruction.split()), []).append(episode)
    actions, states = (np.concatenate([getattr(episode, part) for _, episode in episodes]) for part in ("actions", "states"))
    return Inspection(
        facts=facts,
        tasks=[_task(task, found) for task, found in by_task.items()],
        dimensions=_dimensions("action", source.action_names, actions) + _dimensions("state", source.state_names, states),
        notes=notes,
        frames=frames,
    )


def _pictures(source: Source, pictured: int) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """(pictures of some episodes, why others cannot be shown)"""
    numbers = np.linspace(0, len(source.episodes) - 1, min(pictured, len(source.episodes))).round().astype(int)
    frames, dark = [], []
    for listed in [source.episodes[number] for number in dict.fromkeys(numbers.tolist())]:
        for camera in source.cameras:
            try:
                shown = source.read(listed, (camera,)).frames[camera]
                frames.append((f"{listed.name.rpartition(': ')[2]}, {camera}", shown))
            except UserError as error:
                dark.append(str(error))
    return frames, dark


def print_inspection(found: Inspection, sheet: Path | None) -> None:
    """Tables to the terminal, pictures to a PNG file where one is wanted."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.video import contact_sheet

    console = Console()
    tables = [
        (("", ""), found.facts + found.notes),
        (("task", "episodes", "actions", "success"), [_task_row(task) for task in found.tasks]),
        (("", "range", "mean", ""), [_dimension_row(dimension) for dimension in found.dimensions]),
    ]
    for headings, rows in tables:
        table = Table(*headings, box=None, header_style="bold", pad_edge=False, show_header=any(headings))
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table, "")
    if sheet is not None:
        console.print(f"pictures: {contact_sheet(sheet, found.frames)}")


def _task_row(task: Task) -> tuple[str, int, str, str]:
    fewest, median, most = task.actions
    share = f"{100 * task.successes / task.known:.0f} %" if task.known else UNKNOWN
    if 0 < task.known < task.episodes:
        share += f" of {task.known} known"
    return task.instruction or "(no instruction)", task.episodes, f"{fewest} / {median:.0f} / {most}", share


def _dimension_row(found: Dimension) -> tuple[str, str, str, str]:
    return found.name, f"{found.minimum:.3g} .. {found.maximum:.3g}", f"{found.mean:.3g} ± {found.deviation:.3g}", found.remark


def _task(instruction: str, episodes: Sequence[Episode]) -> Task:
    lengths = [len(episode.actions) for episode in episodes]
    known = [episode.outcome == "success" for episode in episodes if episode.outcome != UNKNOWN]
    return Task(instruction, len(episodes), (min(lengths), float(np.median(lengths)), max(lengths)), sum(known), len(known))


def _dimensions(kind: str, names: list[str], values: np.ndarray) -> list[Dimension]:
    dimensions = []
    for name, column in zip(names, values.T, strict=True):
        low, high = column.min(), column.max()
        remark = ""
        if high - low < CONSTANT:
            remark = "constant"
        elif kind == "action":
            ends = np.mean((column <= low + CONSTANT) | (column >= high - CONSTANT))
            two = np.all((column <= low + CONSTANT) | (column >= high - CONSTANT))
            remark = "two values" if two else f"clipped: {100 * ends:.0f} % of the steps at an end" if ends > AT_LIMIT else ""
        dimensions.append(Dimension(f"{kind} {name}", float(low), float(high), float(column.mean()), float(column.std()), remark))
    return dimensions
