"""Read a dataset of ours into memory, as it is stored."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import UserError
from .layout import DESCRIPTION, Episode
from .sources.lerobot import open_stored
from .tables import read_json


def read_dataset(folder: Path | str, camera: str | None = None, pictures: int | None = None) -> list[Episode]:
    """All episodes, decoded side by side, in memory; actions in [-1, 1] as they are stored. Other LeRobotDatasets are read too, their actions
    as recorded. With `camera` that one alone is decoded, with `pictures` no more of each episode than the first so many."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a dataset; check the path")
    reader, episodes = open_stored(folder)
    if camera is not None and camera not in reader.cameras:
        raise UserError(f"{folder}: no camera {camera!r}, found {', '.join(reader.cameras)}; choose one of these, or another dataset")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cameras = tuple(reader.cameras) if camera is None else (camera,)
        return list(pool.map(partial(reader.read, cameras=cameras, stored=True, pictures=pictures), episodes))


def read_description(folder: Path | str) -> dict:
    """What the writer of a dataset said about it (meta/worldenv.json), and what its closing rows are."""
    return read_json(Path(folder) / DESCRIPTION, "a dataset written by worldenv has one, any other has to be ingested first")
