"""Read a LeRobotDataset into memory, its own or a foreign one."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import UserError
from .layout import DESCRIPTION, Episode
from .sources.lerobot import open_lerobot
from .sources.source import SourceConfig
from .tables import read_json


def read_dataset(folder: Path | str) -> list[Episode]:
    """All episodes, decoded side by side, in memory: what ingestion would read, see `sources.lerobot` for what that makes of foreign ones."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a dataset; check the path")
    source = open_lerobot(folder, SourceConfig())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(source.read, pictures=True), source.episodes))


def read_description(folder: Path | str) -> dict:
    """What the writer of a dataset said about it (meta/worldenv.json), and what its closing rows are."""
    return read_json(Path(folder) / DESCRIPTION, "a dataset written by worldenv has one, any other has to be ingested first")
