"""A worker process: some rows of a vector environment, each a Meta-World instance of its own.

Rendering contexts do not share a process well and MuJoCo steps on one core, hence processes. The parent starts this module under the
interpreter that the recipe names and talks over a local socket; messages are tuples (verb, arguments) answered by (ok, result).
"""

import os
import sys
import traceback
from multiprocessing.connection import Client

import numpy as np

from ..errors import UserError
from .metaworld import MetaWorldConfig, MetaWorldTask, RenderContext, expert


class Rows:
    """The rows of one worker. Instances of a task are made when first needed and kept for later episodes."""

    def __init__(self, config: MetaWorldConfig):
        self.config = config
        self.context = RenderContext(config)
        self.tasks: dict[tuple[int, str], MetaWorldTask] = {}
        self.rows: dict[int, MetaWorldTask] = {}
        self.experts: dict[int, object] = {}

    def reset(self, starts: dict[int, tuple[str, int]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """row -> (task, seed) in; row -> (picture (H, W, 3), proprioception (4,)) out."""
        return {row: self._reset_row(row, *start) for row, start in starts.items()}

    def _reset_row(self, row: int, name: str, seed: int):
        if (row, name) not in self.tasks:
            self.tasks[row, name] = MetaWorldTask(name, self.config)
        task = self.rows[row] = self.tasks[row, name]
        task.last_observation = task.reset(seed)
        self.experts[row] = expert(name)
        return task.render(self.context), task.state()

    def step(self, chunks: dict[int, np.ndarray], every_frame: bool) -> dict[int, tuple]:
        """row -> chunk (T, A) in; row -> (pictures (T, H, W, 3), proprioception (T, 4), success (T,)) out.

        Without `every_frame` only the last picture of the chunk is drawn and repeated: enough to act on, a third of the time.
        """
        return {row: self._play(row, lambda _, t, chunk=chunk: chunk[t], len(chunk), every_frame)[:3] for row, chunk in chunks.items()}

    def step_expert(self, rows: list[int]) -> dict[int, tuple]:
        """Let the scripted expert act for one chunk, seeing Meta-World's own observation; its actions (T, A) come as a fourth part."""
        return {row: self._play(row, lambda task, _: self._expert_action(row, task), self.config.chunk, True) for row in rows}

    def _expert_action(self, row: int, task: MetaWorldTask) -> np.ndarray:
        return np.clip(self.experts[row].get_action(task.last_observation), -1, 1)

    def _play(self, row: int, choose, length: int, every_frame: bool):
        task = self.rows[row]
        pictures, states, successes, actions = [], [], [], []
        for t in range(length):
            action = np.asarray(choose(task, t), dtype=np.float32)
            task.last_observation, success = task.step(action)
            if every_frame or t == length - 1:
                pictures.append(task.render(self.context))
            states.append(task.state())
            successes.append(success)
            actions.append(action)
        if not every_frame:
            pictures *= length
        return np.stack(pictures), np.stack(states), np.array(successes), np.stack(actions)


def serve(address: str, key: bytes) -> None:
    """Answer until the parent closes the connection. A UserError travels as its text, anything else as its traceback."""
    with Client(address, family="AF_UNIX", authkey=key) as connection:
        rows = Rows(MetaWorldConfig.model_validate_json(connection.recv()))
        while True:
            try:
                verb, arguments = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            try:
                answer = (True, getattr(rows, verb)(*arguments))
            except UserError as error:
                answer = (False, str(error))
            except Exception:
                answer = (None, traceback.format_exc())
            connection.send(answer)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")  # the experts warn about every clipped action
    serve(sys.argv[1], bytes.fromhex(os.environ.pop("WORLDENV_WORKER_KEY")))
