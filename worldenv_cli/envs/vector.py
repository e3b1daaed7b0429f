"""Rows of a real environment in worker processes as one `gymnasium.vector.VectorEnv` whose action is an action chunk.

Real and imagined environments share this interface (see `world_env.py`): finished rows are frozen, not reset, and cost nothing.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from ..errors import UserError
from .config import EnvConfig
from .rendering import choose_backend
from .spaces import chunk_spaces

PACKAGE = Path(__file__).resolve().parents[1]


class RealVectorEnv(gymnasium.vector.VectorEnv):
    """B rows of the real environment that `config` describes: Meta-World or LIBERO.

    `reset(options={"starts": [(task, seed), ...]})` begins at most `num_envs` episodes; rows without a start are frozen from the outset. With
    gymnasium's "reset_mask" (B,) bool beside the starts only those rows begin anew, or are frozen, and the others go on.
    `step(chunks (B, T, A))` returns the observation after the chunk, reward (B,) float32 (1 in the chunk that first succeeds), terminated and
    truncated (B,) bool, and info with what happened inside the chunk: frames {camera: (B, T, H, W, 3)}, states (B, T, S),
    success (B, T) and `alive` (B,), the rows that moved. A frozen row repeats its last observation with reward 0.
    With `until_horizon` an episode goes on after success, so that stopping rules can be compared on it afterwards.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, config: EnvConfig, *, until_horizon: bool = False, every_frame: bool = True):
        self.config, self.until_horizon, self.every_frame = config, until_horizon, every_frame
        self.num_envs = config.rows
        spaces = chunk_spaces(config.cameras, config.resolution, len(config.state_names), config.chunk, len(config.action_names))
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.environment_steps = 0  # every step of every row since the making of this object: the cost that is reported
        self.workers = [_Worker(config) for _ in range(min(config.workers, config.rows))]
        try:
            self.versions = self._begin()  # of the environment's packages, under the workers' interpreter
        except BaseException:
            self.close_extras()
            raise
        size = config.resolution
        self._frame = {camera: np.zeros((self.num_envs, size, size, 3), np.uint8) for camera in config.cameras}
        self._state = np.zeros((self.num_envs, len(config.state_names)), np.float32)
        self._instruction = [""] * self.num_envs
        self._alive = np.zeros(self.num_envs, bool)
        self._chunks_played = np.zeros(self.num_envs, int)
        self._success_chunk = np.full(self.num_envs, -1)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        options = options or {}
        rows = np.flatnonzero(options.get("reset_mask", np.ones(self.num_envs, bool)))
        starts = options.get("starts")
        if starts is None:
            names, seeds = list(self.config.tasks), self.np_random.integers(2**31, size=len(rows))
            starts = [(names[row % len(names)], int(seed)) for row, seed in zip(rows, seeds)]
        if len(starts) > len(rows):
            raise ValueError(f"{len(starts)} starts for {len(rows)} rows")
        self._alive[rows], self._chunks_played[rows], self._success_chunk[rows] = False, 0, -1
        for row in rows:
            self._instruction[row] = ""
        begun = {int(row): start for row, start in zip(rows, starts)}
        for row, (pictures, state) in self._ask("reset", begun).items():
            for camera, picture in pictures.items():
                self._frame[camera][row] = picture
            self._state[row] = state
            self._alive[row], self._instruction[row] = True, self.config.tasks[begun[row][0]]
        return self._observation(), {"alive": self._alive.copy()}

    def step(self, chunks: np.ndarray):
        moving = np.flatnonzero(self._alive)
        answers = self._ask("step", {int(row): chunks[row] for row in moving}, self.every_frame)
        return self._after(moving, answers)

    def step_expert(self):
        """One chunk of every live row by Meta-World's scripted experts, the only ones there are; info gains `actions` (B, T, A)."""
        moving = np.flatnonzero(self._alive)
        answers = self._ask("step_expert", {int(row): None for row in moving})
        result = self._after(moving, answers)
        result[-1]["actions"] = np.zeros(self.action_space.shape, np.float32)
        for row in moving:
            result[-1]["actions"][row] = answers[row][3]
        return result

    def _after(self, moving: np.ndarray, answers: dict[int, tuple]):
        length, config = self.config.chunk, self.config
        frames = {camera: np.repeat(frame[:, None], length, 1) for camera, frame in self._frame.items()}  # (B, T, H, W, 3)
        states = np.repeat(self._state[:, None], length, 1)  # (B, T, S)
        success = np.zeros((self.num_envs, length), bool)
        for row in moving:
            pictures, states[row], success[row] = answers[row][:3]
            for camera, shown in pictures.items():
                frames[camera][row] = shown
        self.environment_steps += len(moving) * length * config.action_repeat
        self._frame = {camera: shown[:, -1].copy() for camera, shown in frames.items()}
        self._state = states[:, -1].copy()
        first = success.any(1) & (self._success_chunk < 0)
        self._success_chunk[first] = self._chunks_played[first]
        self._chunks_played[moving] += 1
        lingered = (self._success_chunk >= 0) & (self._chunks_played > self._success_chunk + config.linger)
        terminated = self._alive & lingered & (not self.until_horizon)
        truncated = self._alive & ~terminated & (self._chunks_played >= config.chunks)
        info = {"frames": frames, "states": states, "success": success, "alive": self._alive.copy()}
        self._alive &= ~(terminated | truncated)
        return self._observation(), first.astype(np.float32), terminated, truncated, info

    def _observation(self) -> dict:
        return {
            "images": {camera: frame.copy() for camera, frame in self._frame.items()},
            "state": self._state.copy(),
            "instruction": tuple(self._instruction),
        }

    def _begin(self) -> dict[str, str]:
        """Let every worker make what it needs once, all at the same time; a mistake in the recipe or the interpreter is told here."""
        for worker in self.workers:
            worker.send("versions")
        return [self._judged(answer) for answer in [worker.receive() for worker in self.workers]][0]

    def _ask(self, verb: str, rows: dict, *arguments) -> dict:
        """Send each worker its rows (row modulo workers), so that they work at the same time, then gather."""
        shares = [{row: value for row, value in rows.items() if row % len(self.workers) == k} for k in range(len(self.workers))]
        for worker, share in zip(self.workers, shares):
            if share:
                worker.send(verb, list(share) if verb == "step_expert" else share, *arguments)
        answers = [worker.receive() for worker, share in zip(self.workers, shares) if share]  # all of them, before any is judged
        return {row: value for answer in answers for row, value in self._judged(answer).items()}

    def _judged(self, answer: tuple):
        ok, result = answer
        if not ok:
            raise UserError(result) if ok is False else RuntimeError(f"in a {self.config.title} worker:\n{result}")
        return result

    def close_extras(self, **kwargs):
        for worker in self.workers:
            worker.close()


class _Worker:
    """One child process and the socket to it."""

    def __init__(self, config: EnvConfig):
        python, self.title = config.python or sys.executable, config.title
        if shutil.which(python) is None:
            raise UserError(f"env.python: {python} is not there or cannot be run, expected a Python interpreter; check the path")
        backend = choose_backend(config.renderer, python)
        self.folder = tempfile.TemporaryDirectory(prefix="worldenv-")
        (Path(self.folder.name) / PACKAGE.name).symlink_to(PACKAGE)
        key = secrets.token_bytes(16)
        listener = Listener(str(Path(self.folder.name) / "worker"), family="AF_UNIX", authkey=key)
        environment = {
            **os.environ,
            "MUJOCO_GL": backend,
            "WORLDENV_WORKER_KEY": key.hex(),
            "OMP_NUM_THREADS": "1",
            "LP_NUM_THREADS": "1",  # the software renderer's own threads only get in each other's way
            # this package alone: what is installed beside it may not be what the other interpreter must use
            "PYTHONPATH": os.pathsep.join([self.folder.name, os.environ.get("PYTHONPATH", "")]),
        }
        self.process = subprocess.Popen([python, "-m", "worldenv_cli.envs.worker", listener.address], env=environment, stdin=subprocess.DEVNULL)
        try:
            self.connection = self._accept(listener)
        except OSError as error:
            self.process.kill()
            raise UserError(f"env.python: a worker under {python} did not start ({error}); has it pydantic, numpy and {config.title}?") from error
        finally:
            listener.close()
        self.connection.send(config.model_dump_json())

    def _accept(self, listener: Listener):
        """The worker's connection; OSError as soon as none can come any more."""
        listener._listener._socket.settimeout(1)
        for _ in range(120):
            try:
                return listener.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise OSError(f"exit code {self.process.returncode}") from None
        raise OSError("no answer for two minutes")

    def send(self, verb: str, *arguments) -> None:
        try:
            self.connection.send((verb, arguments))
        except OSError as error:
            raise self._died() from error

    def receive(self) -> tuple:
        """(True, the answer), (False, what the user should know) or (None, a traceback)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> RuntimeError:
        return RuntimeError(f"a {self.title} worker died (exit code {self.process.wait()})")

    def close(self) -> None:
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.folder.cleanup()
