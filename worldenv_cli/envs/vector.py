"""Rows of a real environment in worker processes as one `gymnasium.vector.VectorEnv` whose action is an action chunk.

Real and imagined environments share this interface (see `world_env.py`): finished rows are frozen, not reset, and cost nothing.
"""

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space

from ..errors import UserError
from ..progress import say
from .config import EnvConfig
from .spaces import checked_chunks, checked_mask, chunk_spaces
from .worker_process import WorkerLost, WorkerProcess

RESTARTS = 3  # of a worker that is lost over one question


class RealVectorEnv(gymnasium.vector.VectorEnv):
    """B rows of the real environment that `config` describes: Meta-World or LIBERO.

    `reset(options={"starts": [(task, seed), ...]})` begins at most `num_envs` episodes; rows without a start are frozen from the outset. With
    gymnasium's "reset_mask" (B,) bool beside the starts only those rows begin anew, or are frozen, and the others go on.
    `step(chunks (B, T, A))` returns the observation after the chunk, reward (B,) float32 (1 in the chunk that first succeeds), terminated and
    truncated (B,) bool, and info with what happened inside the chunk: frames {camera: (B, T, H, W, 3)}, states (B, T, S),
    success (B, T) and `alive` (B,), the rows that moved. A frozen row repeats its last observation with reward 0.
    With `until_horizon` an episode goes on after success, so that stopping rules can be compared on it afterwards.

    A worker that dies, or does not answer for `config.worker_timeout` seconds a row, is started anew: its episodes begin again and are played by the
    same actions to where they stood, to the same bits, and nothing of it shows but a line. `step` raises gymnasium's ResetNeeded before the first
    reset, ValueError for actions of another shape or not finite, and UserError where the simulation ends in a state that is not finite and where a
    worker is lost again and again over the same question.
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
        self.workers: list[WorkerProcess] = []
        try:
            for _ in range(min(config.workers, config.rows)):
                self.workers.append(WorkerProcess(config))
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
        self._played: dict[int, tuple[tuple[str, int], list]] = {}  # row -> (its start, the chunks since, None where the expert acted)
        self._begun = False

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        options = options or {}
        rows = np.flatnonzero(checked_mask(options.get("reset_mask", np.ones(self.num_envs, bool)), self.num_envs))
        starts = options.get("starts")
        if starts is None:
            names, seeds = list(self.config.tasks), self.np_random.integers(2**31, size=len(rows))
            starts = [(names[row % len(names)], int(seed)) for row, seed in zip(rows, seeds)]
        if len(starts) > len(rows):
            raise ValueError(f"{len(starts)} starts for {len(rows)} rows")
        self._alive[rows], self._chunks_played[rows], self._success_chunk[rows] = False, 0, -1
        for row in rows:
            self._instruction[row] = ""
            self._played.pop(row, None)
        begun = {int(row): start for row, start in zip(rows, starts)}
        for row, (pictures, state) in self._ask("reset", begun).items():
            for camera, picture in pictures.items():
                self._frame[camera][row] = picture
            self._state[row] = state
            self._alive[row], self._instruction[row] = True, self.config.tasks[begun[row][0]]
            self._played[row] = begun[row], []
        self._begun = True
        self._check_finite(begun)
        return self._observation(), {"alive": self._alive.copy()}

    def step(self, chunks: np.ndarray):
        moving = self._moving()
        chunks = checked_chunks(chunks, self.action_space.shape, moving)
        answers = self._ask("step", {int(row): chunks[row] for row in moving}, self.every_frame)
        return self._after(moving, answers, dict(zip(moving, chunks[moving])))

    def step_expert(self):
        """One chunk of every live row by Meta-World's scripted experts, the only ones there are; info gains `actions` (B, T, A)."""
        moving = self._moving()
        answers = self._ask("step_expert", {int(row): None for row in moving})
        result = self._after(moving, answers, dict.fromkeys(moving))
        result[-1]["actions"] = np.zeros(self.action_space.shape, np.float32)
        for row in moving:
            result[-1]["actions"][row] = answers[row][3]
        return result

    def _moving(self) -> np.ndarray:
        if not self._begun:
            raise ResetNeeded("step before reset: call reset() first")
        return np.flatnonzero(self._alive)

    def _after(self, moving: np.ndarray, answers: dict[int, tuple], chunks: dict):
        length, config = self.config.chunk, self.config
        frames = {camera: np.repeat(frame[:, None], length, 1) for camera, frame in self._frame.items()}  # (B, T, H, W, 3)
        states = np.repeat(self._state[:, None], length, 1)  # (B, T, S)
        success = np.zeros((self.num_envs, length), bool)
        for row in moving:
            pictures, states[row], success[row] = answers[row][:3]
            for camera, shown in pictures.items():
                frames[camera][row] = shown
            self._played[row][1].append(chunks[row])
        self.environment_steps += len(moving) * length * config.action_repeat
        self._frame = {camera: shown[:, -1].copy() for camera, shown in frames.items()}
        self._state = states[:, -1].copy()
        self._check_finite(moving)
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

    def _check_finite(self, rows) -> None:
        for row in rows:
            if not np.isfinite(self._state[row]).all():
                (task, seed), chunks = self._played[row]
                raise UserError(
                    f"env.tasks.{task}, start {seed}: the state after {len(chunks)} chunks is {self._state[row].tolist()}, expected finite numbers; "
                    f"{self.config.title}'s simulation broke down: check the assets and the versions of its packages, or leave the task out"
                )

    def _begin(self) -> dict[str, str]:
        """Let every worker make what it needs once, all at the same time; a mistake in the recipe or the interpreter is told here."""
        return [self._judged(answer) for answer in [worker.versions() for worker in self.workers]][0]

    def _ask(self, verb: str, rows: dict, *arguments) -> dict:
        """Send each worker its rows (row modulo workers), so that they work at the same time, then gather."""
        shares = {k: {row: value for row, value in rows.items() if row % len(self.workers) == k} for k in range(len(self.workers))}
        questions = {k: (verb, list(share) if verb == "step_expert" else share, *arguments) for k, share in shares.items() if share}
        for k, question in questions.items():
            self.workers[k].ask(*question)
        answers = [self._answer(k, question) for k, question in questions.items()]  # all of them, before any is judged
        return {row: value for answer in answers for row, value in self._judged(answer).items()}

    def _answer(self, k: int, question: tuple) -> tuple:
        """A worker's answer; where the worker is lost, that of the one that takes its place."""
        worker, lost = self.workers[k], None
        for attempt in range(RESTARTS + 1):
            try:
                if attempt:
                    self._restart(k, question)
                    worker.ask(*question)
                return worker.receive(len(question[1]))
            except WorkerLost as error:
                lost = error
            if attempt < RESTARTS:
                say(f"{self.config.title} worker {k + 1} {lost}: started anew, its episodes begin again ({attempt + 1} of at most {RESTARTS} times)")
        raise UserError(
            f"{self.config.title} worker {k + 1} {lost}{worker.last_words()}, as before in {RESTARTS} attempts at rows {sorted(question[1])}; "
            "where memory ran out, lower env.rows or env.workers; run the same command again and it continues"
        )

    def _restart(self, k: int, question: tuple) -> None:
        """A new process in a worker's place, its rows where they stood. Raises WorkerLost, and UserError where none starts."""
        worker = self.workers[k]
        worker.start()
        self._judged(worker.versions())
        begun_now = question[1] if question[0] == "reset" else ()
        rows = {row: kept for row, kept in self._played.items() if row % len(self.workers) == k and self._alive[row] and row not in begun_now}
        if rows:
            worker.ask("replay", rows)
            self._judged(worker.receive(sum(1 + len(chunks) for _, chunks in rows.values())))

    def _judged(self, answer: tuple):
        ok, result = answer
        if not ok:
            raise UserError(result) if ok is False else RuntimeError(f"in a {self.config.title} worker:\n{result}")
        return result

    def close_extras(self, **kwargs):
        for worker in self.workers:
            worker.close()
