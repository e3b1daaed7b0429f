"""Datasets: episodes in memory, and the LeRobotDataset v3.0 folders they are written to and read from.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet  meta/worldenv.json
    data/chunk-000/file-000.parquet ...

Pictures are PNG inside the parquet files, so that nothing is lost and `datasets.load_dataset` shows them. A dataset is immutable: one call
writes one whole.
"""

from .layout import Episode
from .reader import read_dataset, read_description
from .writer import write_dataset

__all__ = ["Episode", "read_dataset", "read_description", "write_dataset"]
