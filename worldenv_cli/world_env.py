"""Simulator and reflector as one `gymnasium.vector.VectorEnv`: the imagined twin of `envs.vector.RealVectorEnv`.

An imagined episode starts from a real first frame or from any logged moment, moves by action chunks, and ends when the reflector is sure
enough of success (inside the chunk, at the very frame) or at the horizon. Its reward comes at the end and is the reflector's probability.
Rows that ended leave simulator and reflector and stop costing anything.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space

from .envs.config import WorldEnvConfig
from .envs.spaces import chunk_spaces
from .reflector.compact import Reflector
from .simulator.simulator import History, Simulator


class WorldEnv(gymnasium.vector.VectorEnv):
    """B imagined rows. `reset(options={"histories": [History, ...]})` begins at most `num_envs` of them; the rest are frozen from the outset.

    `step(chunks (B, T, A))` returns the observation after the chunk, reward (B,), terminated, truncated and info: frames {camera: (B, T, H, W,
    3)}, states (B, T, S), scores (B, T) (the reflector's), played (B, T) bool (steps up to the one that ended the episode) and alive (B,), the
    rows that moved. Without histories `reset` draws them from `self.pool`, seeded.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, simulator: Simulator, reflector: Reflector, config: WorldEnvConfig, pool: list[History]):
        self.simulator, self.reflector, self.config, self.pool = simulator.eval(), reflector.eval(), config, pool
        made = simulator.config
        state_size, action_size = np.shape(made.action_unit)
        self.camera, self.num_envs = made.camera, config.rows
        self.single_observation_space, self.single_action_space = chunk_spaces((made.camera,), made.resolution, state_size, made.chunk, action_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.control_steps = 0  # imagined so far, all rows

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        histories = (options or {}).get("histories")
        if histories is None:
            histories = [self.pool[i] for i in self.np_random.integers(0, len(self.pool), self.num_envs)]
        if len(histories) > self.num_envs:
            raise ValueError(f"{len(histories)} histories for {self.num_envs} rows")
        count, size = len(histories), self.simulator.config.resolution
        self._frame = np.zeros((self.num_envs, size, size, 3), np.uint8)
        self._state = np.zeros((self.num_envs, *self.single_observation_space["state"].shape), np.float32)
        self._frame[:count] = np.stack([history.frames[-1] for history in histories])
        self._state[:count] = np.stack([history.states[-1] for history in histories])
        self._instruction = [history.instruction for history in histories] + [""] * (self.num_envs - count)
        self._time = np.array([len(history.actions) for history in histories] + [0] * (self.num_envs - count))
        self._moving = np.arange(count)  # the rows that simulator and reflector hold, in their order
        self._simulated = self.simulator.start(histories)
        self._reflected = self.reflector.start([history.frames for history in histories], [history.instruction for history in histories])
        return self._observation(), {"alive": self._alive()}

    def step(self, chunks: np.ndarray):
        moving, length = self._moving, self.simulator.config.chunk
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
            going = ~over[moving]
            self._moving = moving[going]
            self._simulated, self._reflected = self._simulated.rows(torch.from_numpy(going)), self._reflected.rows(torch.from_numpy(going))
        info = {"frames": {self.camera: frames}, "states": states, "scores": scores, "played": played, "alive": alive}
        return self._observation(), reward, terminated, truncated, info

    def _alive(self) -> np.ndarray:
        alive = np.zeros(self.num_envs, bool)
        alive[self._moving] = True
        return alive

    def _observation(self) -> dict:
        return {"images": {self.camera: self._frame.copy()}, "state": self._state.copy(), "instruction": tuple(self._instruction)}
