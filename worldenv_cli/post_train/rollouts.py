"""Imagined rollouts in groups: the same start, several futures."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..policies.checks import check_actions
from ..policies.observation import Observation
from ..policies.policy import joined
from ..simulator.simulator import History
from ..world_env import WorldEnv


@dataclass
class Rollouts:
    """Every decision (one action chunk) of E imagined episodes, laid end to end: N decisions."""

    observation: Observation  # N rows
    trace: dict[str, Tensor]  # N rows: what was sampled, and what scoring it again needs
    encoded: dict[str, Tensor]  # N rows: encoded observations, where the policy's are reusable; else empty
    log_prob: np.ndarray  # (N, T) when sampled
    played: np.ndarray  # (N, T) bool: steps up to the one that ended the episode
    episode: np.ndarray  # (N,) which of the E episodes
    reward: np.ndarray  # (E,) in [0, 1]
    stopped: np.ndarray  # (E,) bool: the reflector ended it
    group: np.ndarray  # (E,) which start
    control_steps: int

    @property
    def decisions(self) -> int:
        return len(self.episode)


def imagine(env: WorldEnv, policy, histories: list[History], group_size: int, generator: torch.Generator | None, explore: bool = True) -> Rollouts:
    """Play `group_size` episodes from each history to their ends. At most env.num_envs rows move at a time, groups kept together."""
    per_batch = max(env.num_envs // group_size, 1)
    parts = [
        _imagine_batch(env, policy, histories[first : first + per_batch], group_size, generator, explore)
        for first in range(0, len(histories), per_batch)
    ]
    return _joined(parts)


def _imagine_batch(env: WorldEnv, policy, histories, group_size, generator, explore) -> Rollouts:
    episodes = len(histories) * group_size
    observation, info = env.reset(options={"histories": [history for history in histories for _ in range(group_size)]})
    before, alive = env.control_steps, info["alive"]
    reward, stopped = np.zeros(episodes, np.float32), np.zeros(episodes, bool)
    decisions: list[tuple] = []
    while alive.any():
        seen = Observation.from_vector_env(observation).rows(alive)
        act = policy.act(seen, explore=explore, generator=generator)
        check_actions(act.chunk, seen)
        chunks = np.zeros(env.action_space.shape, np.float32)
        chunks[alive] = np.clip(act.chunk, -1, 1)
        observation, rewards, terminated, truncated, info = env.step(chunks)
        rows = np.flatnonzero(alive)
        _check_imagined(states=info["states"][rows], rewards=rewards, scores=info["scores"][rows])
        decisions.append((seen, act.trace, act.encoded if policy.reusable else {}, act.log_prob, info["played"][rows], rows))
        over = terminated | truncated
        reward[over[:episodes]] = rewards[over]
        stopped |= terminated[:episodes]
        alive = alive & ~over
    return Rollouts(
        observation=_stacked([d[0] for d in decisions]),
        trace=joined([d[1] for d in decisions]),
        encoded=joined([d[2] for d in decisions]),
        log_prob=np.concatenate([d[3] for d in decisions]),
        played=np.concatenate([d[4] for d in decisions]),
        episode=np.concatenate([d[5] for d in decisions]),
        reward=reward,
        stopped=stopped,
        group=np.repeat(np.arange(len(histories)), group_size),
        control_steps=env.control_steps - before,
    )


def _check_imagined(**values: np.ndarray) -> None:
    """Raise UserError where simulator or reflector answer with a number that is not finite: it would be learned from."""
    for name, numbers in values.items():
        if not np.isfinite(numbers).all():
            model = "simulator" if name == "states" else "reflector"
            raise UserError(f"imagined {name} are not finite: the {model} is damaged; make it again or download it again")


def _stacked(observations: list[Observation]) -> Observation:
    cameras = observations[0].images
    return Observation(
        {name: np.concatenate([o.images[name] for o in observations]) for name in cameras},
        np.concatenate([o.state for o in observations]),
        [instruction for o in observations for instruction in o.instruction],
    )


def _joined(parts: list[Rollouts]) -> Rollouts:
    """Batches as one, with episodes and groups renumbered."""
    if len(parts) == 1:
        return parts[0]
    episodes = np.cumsum([0] + [len(part.reward) for part in parts[:-1]])
    groups = np.cumsum([0] + [part.group.max() + 1 for part in parts[:-1]])
    return Rollouts(
        observation=_stacked([part.observation for part in parts]),
        trace=joined([part.trace for part in parts]),
        encoded=joined([part.encoded for part in parts]),
        log_prob=np.concatenate([part.log_prob for part in parts]),
        played=np.concatenate([part.played for part in parts]),
        episode=np.concatenate([part.episode + offset for part, offset in zip(parts, episodes)]),
        reward=np.concatenate([part.reward for part in parts]),
        stopped=np.concatenate([part.stopped for part in parts]),
        group=np.concatenate([part.group + offset for part, offset in zip(parts, groups)]),
        control_steps=sum(part.control_steps for part in parts),
    )
