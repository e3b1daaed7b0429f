"""Simulator and reflector as one `gymnasium.vector.VectorEnv`: the imagined twin of `envs.vector.RealVectorEnv`.

An imagined episode starts from a real first frame or from any logged moment, moves by action chunks, and ends when the reflector is sure
enough of success (inside the chunk, at the very frame) or at the horizon. Its reward comes at the end and is the reflector's probability.
Rows that ended leave simulator and reflector and stop costing anything.
"""

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from .envs.config import WorldEnvConfig
from .envs.registration import register
from .envs.spaces import checked_chunks, checked_mask, chunk_spaces
from .reflector.compact import Reflector
from .simulator.simulator import History, Simulator

register()


class WorldEnv(gymnasium.vector.VectorEnv):
    """B imagined rows; see `from_pretrained` for those of a finished run.

    `reset(options={"histories": [History, ...]})` begins at most `num_envs` episodes; the rest are frozen from the outset. Without histories it
    draws them from `self.pool`, by the environment's own generator, which `seed` begins anew. With gymnasium's "reset_mask" (B,) bool, beside the
    histories or without them, only those rows begin anew, or are frozen, and the others go on where they are.

    `step(chunks (B, T, A))` returns the observation after the chunk, reward (B,) float32 in [0, 1], terminated and truncated (B,) bool, and info:
    frames {camera: (B, T, H, W, 3)}, states (B, T, S), scores (B, T) (the reflector's), played (B, T) bool (steps up to the one that ended the
    episode) and alive (B,), the rows that moved. Actions beyond [-1, 1] are clipped, as the real environment clips them. A frozen row repeats its
    last observation with reward 0, and its actions are not looked at.

    `autoreset_mode` DISABLED (the default): a row that ended is frozen until `reset` begins it anew. NEXT_STEP, as gymnasium defines it: the step
    after the one that ended an episode begins the row's next one from `self.pool`, whatever its action, with reward 0 and not among `alive`.
    `render()` with `render_mode="rgb_array"` returns the last frame (H, W, 3) of every row.

    A simulator that samples (`unet.objective` flow) draws its noise from torch's global generator, which `reset(seed=...)` leaves alone.

    Raises gymnasium's ResetNeeded for a step or a picture before the first reset, ClosedEnvironmentError after `close`, and ValueError for what
    a caller got wrong: actions of another shape or not finite, a mask of another shape or type, too many histories or pictures of another size,
    nothing to draw from.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["rgb_array"]}

    def __init__(
        self,
        simulator: Simulator,
        reflector: Reflector,
        config: WorldEnvConfig,
        pool: Sequence[History],
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
    ):
        self.simulator, self.reflector, self.config, self.pool = simulator.eval(), reflector.eval(), config, pool
        self.render_mode, self.autoreset_mode = render_mode, AutoresetMode(autoreset_mode)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or one of {self.metadata['render_modes']}")
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode is SAME_STEP, expected DISABLED or NEXT_STEP")
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        made = simulator.config
        state_size, action_size = np.shape(made.action_unit)
        self.camera, self.num_envs = made.camera, config.rows
        self.single_observation_space, self.single_action_space = chunk_spaces((made.camera,), made.resolution, state_size, made.chunk, action_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.control_steps = 0  # imagined so far, all rows
        self._frame = np.zeros((self.num_envs, made.resolution, made.resolution, 3), np.uint8)
        self._state = np.zeros((self.num_envs, state_size), np.float32)
        self._instruction = [""] * self.num_envs
        self._time = np.zeros(self.num_envs, int)  # control steps of each row's episode, those of its history counted
        self._ended = np.zeros(self.num_envs, bool)  # by the last step: NEXT_STEP begins these anew
        self._moving = np.arange(0)  # the rows that simulator and reflector hold, in their order
        self._simulated = self._reflected = None
        self._begun = False

    @classmethod
    def from_pretrained(
        cls,
        run: str | Path,
        *,
        round: int | None = None,
        num_envs: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        device: torch.device | str = "cpu",
    ) -> "WorldEnv":
        """The imagined environment of a run: its folder, or the Hub's `owner/name[@revision]` of one that was pushed whole.

        Simulator and reflector are those of `round`, counted from 1; without it, of the last round that is there. Episodes begin at the first
        frames of the real episodes that post-training may see. `num_envs`: the recipe's `world_env.rows` without it. Neither Meta-World nor
        MuJoCo is needed. Raises UserError for a folder that is no run, and for a round or dataset that it does not have.
        """
        from .world_env_pretrained import parts  # which imports recipes, and those import this

        simulator, reflector, config, pool, rate = parts(run, round, device)
        if num_envs is not None:
            if not isinstance(num_envs, int) or num_envs < 1:
                raise ValueError(f"num_envs is {num_envs!r}, expected 1 or more")
            config = WorldEnvConfig.model_validate(config.model_dump() | {"rows": num_envs})
        env = cls(simulator, reflector, config, pool, render_mode=render_mode, autoreset_mode=autoreset_mode)
        env.metadata["render_fps"] = rate
        return env

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self._check_open()
        super().reset(seed=seed)
        options = options or {}
        mask = checked_mask(options["reset_mask"], self.num_envs) if "reset_mask" in options else np.ones(self.num_envs, bool)
        rows, histories = np.flatnonzero(mask), options.get("histories")
        self._begin(rows, self._draw(len(rows)) if histories is None else list(histories))
        self._begun = True
        return self._observation(), {"alive": self._alive()}

    def step(self, chunks: np.ndarray):
        self._check_open()
        if not self._begun:
            raise ResetNeeded("step before reset: call reset() first")
        moving, length = self._moving, self.simulator.config.chunk
        chunks = checked_chunks(chunks, self.action_space.shape, moving)
        frames = np.repeat(self._frame[:, None], length, 1)  # (B, T, H, W, 3)
        states = np.repeat(self._state[:, None], length, 1)  # (B, T, S)
        scores = np.zeros((self.num_envs, length), np.float32)
        played = np.zeros((self.num_envs, length), bool)
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        alive = self._alive()
        if len(moving):
            made, rolled, self._simulated = self.simulator.step(self._simulated, chunks[moving])
            frames[moving], states[moving] = made[self.camera], rolled
            scores[moving], self._reflected = self.reflector.score(self._reflected, made[self.camera])
            left = np.clip(self.config.horizon - self._time, 1, length)  # a history need not be a whole number of chunks
            sure = (scores >= self.reflector.threshold.item()) & self.config.terminate
            crossed = sure & alive[:, None] & (np.arange(length) < left[:, None])
            terminated = crossed.any(1)
            end = np.where(terminated, crossed.argmax(1), left - 1)
            played[moving] = np.arange(length) <= end[moving, None]
            self._time[moving] += length
            truncated[moving] = ~terminated[moving] & (self._time[moving] >= self.config.horizon)
            over = terminated | truncated
            reward[over] = scores[over, end[over]]
            self.control_steps += len(moving) * length
            self._frame[moving], self._state[moving] = frames[moving, -1], states[moving, -1]
            self._keep(~over[moving])
        info = {"frames": {self.camera: frames}, "states": states, "scores": scores, "played": played, "alive": alive}
        again = np.flatnonzero(self._ended) if self.autoreset_mode is AutoresetMode.NEXT_STEP else ()
        self._ended = terminated | truncated
        if len(again):
            self._begin(again, self._draw(len(again)))
        return self._observation(), reward, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of every row, (H, W, 3) uint8 each; None without a render_mode."""
        if self.render_mode is None:
            return None
        self._check_open()
        if not self._begun:
            raise ResetNeeded("render before reset: call reset() first")
        return tuple(frame.copy() for frame in self._frame)

    def close_extras(self, **kwargs):
        """Let go of what the rows remember."""
        self._simulated = self._reflected = None

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment was closed; make another one")

    def _draw(self, count: int) -> list[History]:
        if not len(self.pool):
            raise ValueError("the pool is empty, expected first frames to draw from; name options={'histories': [...]}")
        return [self.pool[i] for i in self.np_random.integers(0, len(self.pool), count)]

    def _begin(self, rows: np.ndarray, histories: list[History]) -> None:
        """New episodes in the first of `rows`; those that no history is left for are frozen. Every other row stays as it is."""
        self._check_histories(histories, len(rows))
        if len(self._moving):
            self._keep(~np.isin(self._moving, rows))
        self._frame[rows], self._state[rows], self._time[rows], self._ended[rows] = 0, 0, 0, False
        for row, history in zip(rows, histories):
            self._frame[row], self._state[row], self._time[row] = history.frames[-1], history.states[-1], len(history.actions)
        for row in rows:
            self._instruction[row] = ""
        for row, history in zip(rows, histories):
            self._instruction[row] = history.instruction
        if not histories:
            return
        simulated = self.simulator.start(histories)
        reflected = self.reflector.start([history.frames for history in histories], [history.instruction for history in histories])
        begun = rows[: len(histories)]
        if len(self._moving):
            both = np.concatenate([self._moving, begun])
            order = np.argsort(both)
            simulated, reflected = _joined(self._simulated, simulated, order), _joined(self._reflected, reflected, order)
            begun = both[order]
        self._moving, self._simulated, self._reflected = begun, simulated, reflected

    def _check_histories(self, histories: list[History], rows: int) -> None:
        """Before any row changes: whole ones, as the models take them."""
        if len(histories) > rows:
            raise ValueError(f"{len(histories)} histories for {rows} rows")
        for number, history in enumerate(histories):
            if not isinstance(history, History) or not isinstance(history.instruction, str):
                raise ValueError(f"history {number} is of type {type(history).__name__}, expected a History whose instruction is text")
            moments = len(history.frames)
            expected = {
                "frames": (np.uint8, (moments, *self._frame.shape[1:])),
                "states": (np.float32, (moments, *self._state.shape[1:])),
                "actions": (np.float32, (moments - 1, *self.single_action_space.shape[1:])),
            }
            for name, (kind, shape) in expected.items():
                array = getattr(history, name)
                if not moments or array.dtype != kind or array.shape != shape:
                    found = f"{name} {array.shape} {array.dtype}"
                    raise ValueError(f"history {number} has {found}, expected {('N', *shape[1:])} {np.dtype(kind)}: N moments, an action less")
            if not (np.isfinite(history.states).all() and np.isfinite(history.actions).all()):
                raise ValueError(f"history {number} holds states or actions that are not finite")

    def _keep(self, going: np.ndarray) -> None:
        """Of the rows that simulator and reflector hold, those where `going` is true; the others leave them."""
        self._moving, index = self._moving[going], torch.from_numpy(going)
        self._simulated, self._reflected = self._simulated.rows(index), self._reflected.rows(index)

    def _alive(self) -> np.ndarray:
        alive = np.zeros(self.num_envs, bool)
        alive[self._moving] = True
        return alive

    def _observation(self) -> dict:
        return {"images": {self.camera: self._frame.copy()}, "state": self._state.copy(), "instruction": tuple(self._instruction)}


def _joined(first, second, order: np.ndarray):
    """The rows of two states of a simulator, or of a reflector, as one state, in `order`. All that such a state holds has a row an episode."""
    both = copy(first)
    for name, rows in vars(first).items():
        join = torch.cat if isinstance(rows, torch.Tensor) else np.concatenate
        setattr(both, name, join([rows, getattr(second, name)])[order])
    return both
