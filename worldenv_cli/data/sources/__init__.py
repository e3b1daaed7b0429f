"""Data that other projects recorded: one module for each format, all giving a `Source`."""

from pathlib import Path

from ...errors import UserError
from . import hdf5
from .lerobot import open_lerobot
from .libero import open_libero
from .rlds import open_rlds
from .robomimic import open_robomimic
from .source import Listed, Source, SourceConfig

FORMATS = {"lerobot": open_lerobot, "libero": open_libero, "robomimic": open_robomimic, "rlds": open_rlds}

__all__ = ["FORMATS", "Listed", "Source", "SourceConfig", "detect", "open_source"]


def open_source(path: Path, config: SourceConfig, format: str | None = None) -> Source:
    """Raises UserError where nothing known lies there, or what lies there cannot be listed."""
    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format!r}: expected one of {', '.join(FORMATS)}")
    source = FORMATS[format or detect(path)](path, config)
    source.read_as = config.model_dump(mode="json")
    source.control_hz = config.control_hz or source.control_hz
    return source


def detect(path: Path) -> str:
    """The format of what lies there, by its files and, for HDF5, by its attributes."""
    if not path.exists():
        raise UserError(f"{path}: does not exist, expected a file or folder of recorded episodes; check the path")
    if (path / "meta/info.json").is_file():
        return "lerobot"
    if (path / "features.json").is_file() or list(path.glob("*/features.json")):
        return "rlds"
    files = [path] if path.is_file() else sorted(path.glob("*.hdf5"))
    if files:
        with hdf5.opened(files[0]) as file:
            return "libero" if "problem_info" in hdf5.group(file, hdf5.DEMOS, str(files[0])).attrs else "robomimic"
    raise UserError(f"{path}: none of {', '.join(FORMATS)}, found {sorted(p.name for p in path.iterdir())[:8]}; give --format or check the path")
