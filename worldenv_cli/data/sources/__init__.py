"""Data that other projects recorded: one module for each format, all giving a `Source`."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from ...errors import UserError
from ..layout import UNKNOWN, Episode
from ..outcomes import Label, label, of_names, read_labels
from .detect import detect
from .lerobot import open_lerobot
from .libero import open_libero
from .rlds import open_rlds
from .robomimic import open_robomimic
from .source import Listed, Source, SourceConfig

FORMATS = {"lerobot": open_lerobot, "libero": open_libero, "robomimic": open_robomimic, "rlds": open_rlds}
LABELS = (".csv", ".json")

__all__ = ["FORMATS", "Listed", "Source", "SourceConfig", "detect", "open_source"]


def open_source(path: Path, config: SourceConfig, format: str | None = None) -> Source:
    """Raises UserError where nothing known lies there, or what lies there cannot be listed.

    What the user says is applied here, for all formats alike: rate, gripper, and outcomes that are not recorded or are told by a file.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format!r}: expected one of {', '.join(FORMATS)}")
    labels_file = config.success is not None and (config.success.endswith(LABELS) or Path(config.success).is_file())
    source = FORMATS[format or detect(path)](path, config.model_copy(update={"success": None}) if labels_file else config)
    source.read_as = config.model_dump(mode="json")
    source.control_hz = _whole(config.control_hz or source.control_hz)
    if config.gripper is not None:
        source.gripper = {"dimension": len(source.action_names) - 1, "closes": 1 if config.gripper == "1 closes" else -1}
    labels: dict[str, Label] = {}
    if labels_file:
        absent: list[str] | None = [] if source.unusable else None  # the label of an episode that was left out is no mistake
        labels = of_names(str(path), [listed.name for listed in source.episodes], read_labels(Path(config.success), source.control_hz), absent)
        source.notes += [f"--success: episode {name!r} is not among those that are taken" for name in absent or ()]
        source.outcome = f"{len(labels)} of {len(source.episodes)} told by {Path(config.success).name}; else {source.outcome}"
        source.read_as |= {"success": Path(config.success).name, "labels": sha256(Path(config.success).read_bytes()).hexdigest()}
    if config.outcome is not None:
        source.outcome += f"; where it is unknown: {config.outcome}, by --outcome"
    if labels or config.outcome is not None:
        source.read = _labelled(source.path, source.read, labels, config.outcome)
    return source


def _labelled(path: Path, read: Callable, labels: dict[str, Label], otherwise: str | None) -> Callable:
    """`read`, with the outcomes that the user tells: those of the labels, and one for all that are still unknown."""

    def read_labelled(listed: Listed, cameras: Sequence[str]) -> Episode:
        episode = read(listed, cameras)
        told = labels.get(listed.name)
        if told is None and otherwise is not None and episode.outcome == UNKNOWN:
            told = Label(otherwise == "success")
        if told is not None:
            label(f"{path}: {listed.name}", episode, told)
        return episode

    return read_labelled


def _whole(rate: float | None) -> float | None:
    """20.0 Hz is 20 Hz."""
    return int(rate) if rate is not None and rate == int(rate) else rate
