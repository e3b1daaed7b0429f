"""What became of an episode: read from what was recorded with it, told by the user, or unknown. Nothing is assumed in silence.

For every format: a recorded flag of each step; else a reward above 0; else what the user says; else unknown. What was recorded with a row that is
dropped, because nothing was observed after its action, belongs to the last frame that is kept.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .layout import UNKNOWN, Episode

LONGEST_LABELS = 64 * 2**20  # bytes of a file of labels
TRUE, FALSE = ("1", "1.0", "true", "yes", "success"), ("0", "0.0", "false", "no", "failure")


def flags(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """(rows,) bool of a recorded flag; words, NaN and numbers but 0 and 1 are no flags."""
    values = np.asarray(values)
    values = values.reshape(len(values), -1) if values.ndim else values[None, None]
    if values.dtype.kind not in "biuf" or values.shape[1] != 1:
        raise UserError(
            f"{where}, {name}: {values.dtype} of {values.shape[1]} a row, expected one flag, or a number 0 or 1; tell outcomes with --success"
        )
    wrong = np.flatnonzero(~np.isin(values[:, 0], (0, 1)))
    if len(wrong):
        raise UserError(f"{where}, {name}: {values[wrong[0], 0]} in row {wrong[0]}, expected 0 or 1; tell outcomes with --success")
    return values[:, 0].astype(bool)


def rewarded(where: str, name: str, values: np.ndarray) -> np.ndarray:
    """(rows,) bool: where the reward is above 0."""
    values = np.asarray(values)
    values = values.reshape(len(values), -1) if values.ndim else values[None, None]
    if values.dtype.kind not in "biuf" or values.shape[1] != 1:
        raise UserError(f"{where}, {name}: {values.dtype} of {values.shape[1]} a row, expected a number; tell outcomes with --success")
    wrong = np.flatnonzero(~np.isfinite(values[:, 0].astype(float)))
    if len(wrong):
        raise UserError(f"{where}, {name}: {values[wrong[0], 0]} in row {wrong[0]}, expected a finite number; tell outcomes with --success")
    return values[:, 0] > 0


def so_far(achieved: np.ndarray, frames: int) -> np.ndarray:
    """(rows,) what was true after the action of each row -> (frames,) what has been achieved by each frame that is kept.

    Row t's flag belongs to frame t + 1, and that of rows without a frame after them to the last frame.
    """
    reached = np.zeros(frames, bool)
    count = min(len(achieved), frames - 1)
    reached[1 : count + 1] = achieved[:count]
    reached[-1] |= achieved[count:].any()
    return np.logical_or.accumulate(reached)


def at_the_end(frames: int) -> np.ndarray:
    """(frames,) bool, True at the last frame only: a demonstration is over when its task is done."""
    return np.arange(frames) == frames - 1


def not_recorded(frames: int) -> np.ndarray:
    """(frames,) bool, all False; the episode's info["outcome"] has to be UNKNOWN."""
    return np.zeros(frames, bool)


@dataclass(frozen=True)
class Label:
    """What somebody says of one episode."""

    success: bool
    frame: int | None = None  # from which on the task was achieved; None: at the last frame


def label(where: str, episode: Episode, told: Label) -> None:
    """Replace the episode's outcome by what is told, in place."""
    frames = len(episode.success)
    at = frames - 1 if told.frame is None else told.frame
    if told.success and not 1 <= at < frames:
        raise UserError(f"{where}: success at frame {at}, expected 1 to {frames - 1}; correct the label")
    episode.info = {key: value for key, value in episode.info.items() if key != "outcome"}
    episode.success = (np.arange(frames) >= at) & told.success


def read_labels(path: Path, control_hz: float | None) -> dict[str, Label]:
    """{episode, by its source's name or number: its label} of a CSV with a heading, or of JSON: a list of objects or {episode: true or false}.

    Columns: episode, success and, where known, frame or time (s) of the success.
    """
    if not path.is_file() or path.stat().st_size > LONGEST_LABELS:
        raise UserError(f"--success {path}: no file of labels, expected CSV or JSON with the columns episode and success")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(text) if path.suffix == ".json" else _csv_rows(path, text)
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise UserError(
            f"--success {path}: cannot be read ({str(error).splitlines()[0]}); expected CSV or JSON with the columns episode and success"
        ) from error
    if not rows:
        raise UserError(f"--success {path}: no row with an episode; expected CSV or JSON with the columns episode and success")
    labels: dict[str, Label] = {}
    for number, row in enumerate(rows, 1):
        where = f"--success {path}: row {number}"
        if not isinstance(row, dict) or row.get("episode") in (None, "") or row.get("success") in (None, ""):
            raise UserError(f"{where}: expected an episode and a success (1 or 0), found {str(row)[:80]}; complete it or leave the episode out")
        name, word = str(row["episode"]).strip(), str(row["success"]).strip().lower()
        if word not in TRUE + FALSE:
            raise UserError(f"{where}: success is {word[:40]!r}, expected 1 or 0")
        if name in labels:
            raise UserError(f"{where}: episode {name!r} for the second time; keep one row of each")
        labels[name] = Label(word in TRUE, _frame(where, row, control_hz) if word in TRUE else None)
    return labels


def _csv_rows(path: Path, text: str) -> list[dict]:
    """Rows by the heading's words, whatever their case and the spaces around them."""
    lines = [line for line in csv.reader(io.StringIO(text), skipinitialspace=True) if any(cell.strip() for cell in line)]
    heading = [word.strip().lower() for word in lines[0]] if lines else []
    if lines and not {"episode", "success"} <= set(heading):
        raise UserError(f"--success {path}: the heading is {', '.join(heading)[:80]}, expected an episode and a success; name the columns so")
    return [dict(zip(heading, line, strict=False)) for line in lines[1:]]


def _json_rows(text: str) -> list:
    """A list as it is; of an object each pair, so that an episode that is named twice is seen."""
    found = json.loads(text, object_pairs_hook=_Pairs)
    if isinstance(found, _Pairs):
        return [{"episode": name, "success": value} for name, value in found]
    return [dict(row) if isinstance(row, _Pairs) else row for row in found]


class _Pairs(list):
    """A JSON object, every pair of it."""


def _frame(where: str, row: dict, control_hz: float | None) -> int | None:
    name = next((name for name in ("frame", "time") if row.get(name) not in (None, "")), None)
    if name is None:
        return None
    try:
        value = float(row[name])
        return round(value if name == "frame" else value * (control_hz or float("nan")))
    except (ValueError, OverflowError, TypeError) as error:
        raise UserError(f"{where}: {name} is {str(row[name])[:40]!r}, expected a number" + (" and --control-hz" if name == "time" else "")) from error


def of_names(path: str, names: Sequence[str], labels: dict[str, Label], absent: list[str] | None = None) -> dict[str, Label]:
    """{episode's whole name: its label}: a label may use the name, the part of it behind the file, or the number in it.

    What is no episode's name is an error, or added to `absent`.
    """
    called: dict[str, list[str]] = {}
    for name in names:
        short = name.rpartition(": ")[2]
        number = short[len(short.rstrip("0123456789")) :]
        for alias in {name, short, number} - {""}:
            called.setdefault(alias, []).append(name)
    if absent is not None:
        absent += [alias for alias in labels if alias not in called]
        labels = {alias: told for alias, told in labels.items() if alias in called}
    for alias in labels:
        if len(called.get(alias, ())) != 1:
            told = "not in the source" if alias not in called else f"the name of {len(called[alias])} episodes"
            raise UserError(f"--success: episode {alias!r} is {told} ({path}, which holds {', '.join(map(repr, names[:3]))} ...); use such names")
    return {called[alias][0]: told for alias, told in labels.items()}


def known(episodes: Sequence[Episode]) -> list[Episode]:
    """Those of which it is known what became of them: nothing that learns or measures success may see others."""
    return [episode for episode in episodes if episode.outcome != UNKNOWN]


def counted(outcomes: Sequence[str]) -> str:
    """ "12 episodes: 9 successes, 1 failure, 2 unknown" """
    counts = Counter(outcomes)
    told = [f"{counts[kind]} {words[counts[kind] != 1]}" for kind, words in KINDS.items() if counts[kind]]
    return f"{len(outcomes)} episode{'s' * (len(outcomes) != 1)}: {', '.join(told)}"


KINDS = {"success": ("success", "successes"), "failure": ("failure", "failures"), UNKNOWN: ("unknown", "unknown")}
