"""A worker process: some rows of a vector environment, each an instance of the real environment of its own.

Rendering contexts do not share a process well and MuJoCo steps on one core, hence processes. The parent starts this module under the
interpreter that the recipe names and talks over an inherited socket; messages are tuples (verb, arguments) answered by (ok, result).
That interpreter may have little more than the environment itself: nothing heavy is imported here.
"""

import contextlib
import os
import signal
import sys
import traceback
import warnings
from importlib import metadata
from multiprocessing.connection import Connection

import numpy as np
from pydantic import TypeAdapter

from ..errors import UserError
from . import libero, libero_package, metaworld
from .config import EnvConfig

KINDS = {  # what a row holds, what a process holds once, and whose versions matter
    "metaworld": (metaworld.MetaWorldTask, metaworld.RenderContext, metaworld.PACKAGES),
    "libero": (libero.LiberoTask, libero.LiberoContext, libero_package.PACKAGES),
}


class Rows:
    """The rows of one worker. Instances of a task are made when first needed and, where that is worth their memory, kept for later episodes."""

    def __init__(self, config: EnvConfig):
        self.config = config
        self.task_class, context_class, self.packages = KINDS[config.kind]
        self.context = context_class(config)
        self.tasks: dict[tuple[int, str], object] = {}
        self.rows: dict[int, object] = {}

    def versions(self) -> dict[str, str]:
        """{package: version} of those that this interpreter has."""
        found = {}
        for name in self.packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    def reset(self, starts: dict[int, tuple[str, int]]) -> dict[int, tuple[dict, np.ndarray]]:
        """row -> (task, seed) in; row -> ({camera: picture (H, W, 3)}, proprioception (S,)) out."""
        return {row: self._reset_row(row, *start) for row, start in starts.items()}

    def replay(self, episodes: dict[int, tuple[tuple[str, int], list]]) -> dict:
        """row -> (start, what was played since: chunks (T, A), None where the expert acted) in: bring rows to where they stood before a worker was
        lost. The physics is the same to the bit; nothing is drawn.
        """
        for row, (start, chunks) in episodes.items():
            task = self._begin(row, *start)
            for chunk in chunks:
                for t in range(self.config.chunk):
                    task.step(np.asarray(task.expert_action() if chunk is None else chunk[t], dtype=np.float32))
        return {}

    def _reset_row(self, row: int, name: str, seed: int):
        task = self._begin(row, name, seed)
        return task.pictures(self.context), task.state()

    def _begin(self, row: int, name: str, seed: int):
        if (row, name) not in self.tasks:
            if not self.task_class.kept and row in self.rows:
                self.tasks.pop((row, self.rows.pop(row).name))
            self.tasks[row, name] = self.task_class(name, self.config)
        task = self.rows[row] = self.tasks[row, name]
        task.reset(seed)
        return task

    def step(self, chunks: dict[int, np.ndarray], every_frame: bool) -> dict[int, tuple]:
        """row -> chunk (T, A) in; row -> ({camera: pictures (T, H, W, 3)}, proprioception (T, S), success (T,)) out.

        Without `every_frame` only the last picture of the chunk is drawn and repeated: enough to act on, a third of the time.
        """
        return {row: self._play(row, lambda _, t, chunk=chunk: chunk[t], len(chunk), every_frame)[:3] for row, chunk in chunks.items()}

    def step_expert(self, rows: list[int]) -> dict[int, tuple]:
        """Let the scripted expert act for one chunk; its actions (T, A) come as a fourth part."""
        return {row: self._play(row, lambda task, _: task.expert_action(), self.config.chunk, True) for row in rows}

    def _play(self, row: int, choose, length: int, every_frame: bool):
        task = self.rows[row]
        pictures, states, successes, actions = [], [], [], []
        for t in range(length):
            action = np.asarray(choose(task, t), dtype=np.float32)
            _, success = task.step(action)
            if every_frame or t == length - 1:
                pictures.append(task.pictures(self.context))
            states.append(task.state())
            successes.append(success)
            actions.append(action)
        if not every_frame:
            pictures *= length
        frames = {camera: np.stack([shown[camera] for shown in pictures]) for camera in self.config.cameras}
        return frames, np.stack(states), np.array(successes), np.stack(actions)


def serve(connection: Connection) -> None:
    """Answer until the parent closes the connection, or is gone. A UserError travels as its text, anything else as its traceback."""
    with contextlib.suppress(EOFError, ConnectionError):
        config, rows = TypeAdapter(EnvConfig).validate_json(connection.recv()), None
        while True:
            verb, arguments = connection.recv()
            try:
                rows = rows or Rows(config)
                answer = (True, getattr(rows, verb)(*arguments))
            except UserError as error:
                answer = (False, str(error))
            except Exception:
                answer = (None, traceback.format_exc())
            connection.send(answer)


def main() -> None:
    """Serve on the inherited socket whose number is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer: it closes the connection
    warnings.simplefilter("ignore")  # Meta-World's experts warn about every clipped action
    number = int(sys.argv[1])
    os.set_inheritable(number, False)
    with Connection(number) as connection:
        serve(connection)
