"""Read a dataset of ours into memory, as it is stored."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import UserError
from .layout import DESCRIPTION, Episode
from .sources.lerobot import open_stored
from .tables import read_json


def read_dataset(folder: Path | str) -> list[Episode]:
    """All episodes, decoded side by side, in memory; actions in [-1, 1] as they are stored. Other LeRobotDatasets are read too, their actions
    as recorded."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a dataset; check the path")
    reader, episodes = open_stored(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(reader.read, cameras=tuple(reader.cameras), stored=True), episodes))


def read_description(folder: Path | str) -> dict:
    """What the writer of a dataset said about it (meta/worldenv.json), and what its closing rows are."""
    return read_json(Path(folder) / DESCRIPTION, "a dataset written by worldenv has one, any other has to be ingested first")
