"""Small worlds for the tests of post-training: models that nobody trained, and one in which climbing is easy."""

import copy
from types import SimpleNamespace

import numpy as np
import torch

from worldenv_cli.data.dataset import Episode
from worldenv_cli.policies.lora import AdaptedPolicy, LoraSettings
from worldenv_cli.policies.sft import ChunkSamples
from worldenv_cli.post_train.filtered import successes
from worldenv_cli.post_train.loop import StartPool, UpdatesConfig, run_updates
from worldenv_cli.post_train.starts import start_pool
from worldenv_cli.simulator.simulator import Simulator
from worldenv_cli.world_env import WorldEnv, WorldEnvConfig

UP, DOWN = "raise the arm", "lower the arm"
TASKS = {"up": UP, "down": DOWN}


def episode(steps, reached=None, task="up", size=32, seed=0):
    """An episode of noise, with the task achieved from frame `reached`."""
    rng = np.random.default_rng([steps, seed])
    success = np.arange(steps + 1) >= (steps + 1 if reached is None else reached)
    frames = rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8)
    states, actions = rng.standard_normal((steps + 1, 4)), rng.uniform(-1, 1, (steps, 4))
    return Episode({"front": frames}, states.astype(np.float32), actions.astype(np.float32), success, TASKS[task], {"task": task})


def untrained_world(mini, simulator_config, policy):
    """What a round needs, none of it trained, pictures of noise. The reflector's word varies with what it sees."""
    from worldenv_cli.reflector.compact import Reflector

    torch.manual_seed(0)
    simulator, reflector = Simulator(simulator_config), Reflector(mini.reflector)
    with torch.no_grad():
        for parameter in simulator.unet.parameters():  # its last layer begins at zero: imagination would be a still
            if not parameter.any():
                parameter.normal_(std=0.3)
    episodes = [episode(24, 20), episode(24, None), episode(24, 21, "down"), episode(24, None, "down")]
    words = np.concatenate(reflector.score_episodes([e.frames["front"] for e in episodes], [e.instruction for e in episodes]))
    middle = np.log(words / (1 - words)).mean()
    reflector.calibration.copy_(torch.tensor([30.0, -30 * middle]))
    pool = start_pool(episodes, [], "front", 4, seed=0)
    env = WorldEnv(simulator, reflector, WorldEnvConfig(rows=16, horizon=24, terminate=False), pool.first["up"])
    samples = ChunkSamples(successes(episodes), ["front"], 4)
    return SimpleNamespace(env=env, pool=pool, samples=samples, policy=policy, sft=mini.sft, episodes=episodes)


def adapted(policy):
    torch.manual_seed(0)
    return AdaptedPolicy(copy.deepcopy(policy), LoraSettings(rank=4, alpha=4))


def config(**changes):
    few = {"updates": 1, "starts": 4, "group": 4, "minibatch": 1000, "anchor": 0.0, "hold": 0.0, "gain_cap": 1.0, "kl_budget": 1e6, "check_every": 1}
    rates = {"backbone_rate": 1e-3, "head_rate": 1e-3, "checkpoint_every": 1}
    return UpdatesConfig(**{**few, **rates, **changes})


def update(world, policy, settings, baseline=None, pool=None, closed=None, tasks=("up", "down"), measure=None, **options):
    baseline, measure = baseline or dict.fromkeys(tasks, 0.0), measure or (lambda asked: dict.fromkeys(asked, 0.0))
    where = pool or world.pool
    return run_updates(policy, world.env, where, list(tasks), closed, world.samples, baseline, measure, settings, world.sft, seed=1, **options)


def weights(policy):
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def moved(before, policy):
    return sorted(name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name]))


class Recorded(StartPool):
    """Which tasks were drawn, and a way to be cut off."""

    def __init__(self, pool, draws=10**6):
        super().__init__(pool.first, pool.middle)
        self.tasks, self.draws = [], draws

    def draw(self, task, middle, rng):
        if len(self.tasks) == self.draws:
            raise KeyboardInterrupt
        self.tasks.append((task, middle))
        return super().draw(task, middle, rng)


class Sent:
    """Simulator: brightness is height, and an action's first number adds to it; proprioception stays. Its own state, too: both for each row."""

    config = SimpleNamespace(camera="front", chunk=4, resolution=32, action_unit=np.zeros((4, 4)))

    def __init__(self, height=None, felt=None):
        self.height, self.felt = height, felt

    def eval(self):
        return self

    def start(self, histories):
        return Sent(np.zeros(len(histories)), np.stack([h.states[-1] for h in histories]))

    def rows(self, index):
        return Sent(self.height[np.asarray(index)], self.felt[np.asarray(index)])

    def step(self, state, chunk):
        height = state.height[:, None] + 0.1 * np.cumsum(chunk[..., 0], 1)
        frames = np.clip(127 + 127 * height, 0, 255).astype(np.uint8)[..., None, None, None] * np.ones((32, 32, 3), np.uint8)
        return {"front": frames}, np.repeat(state.felt[:, None], 4, 1), Sent(height[:, -1], state.felt)


class Judge:
    """Reflector: bright is good, unless the arm is to be lowered. Its own state, too: the sign of each row."""

    threshold = torch.tensor(2.0)

    def __init__(self, sign=None):
        self.hidden = sign

    def eval(self):
        return self

    def start(self, first, instructions):
        return Judge(np.array([[1.0 if word == UP else -1.0 for word in instructions]]))

    def rows(self, index):
        return Judge(self.hidden[:, np.asarray(index)])

    def score(self, state, frames):
        return 0.5 + state.hidden[0][:, None] * (frames[..., 0, 0, 0] / 255 - 0.5), state


def climbing_world(untrained, rows=64):
    """Both tasks want opposite things, from the same picture; proprioception tells them apart, too."""
    blank = [episode(1, task=task) for task in TASKS]
    for e in blank:
        e.frames["front"][:], e.states[:] = 127, 1 if e.instruction == UP else -1
    pool = start_pool(blank, [], "front", 4, seed=0)
    env = WorldEnv(Sent(), Judge(), WorldEnvConfig(rows=rows, horizon=8), pool.first["up"])
    return SimpleNamespace(env=env, pool=pool, samples=untrained.samples, sft=untrained.sft)
