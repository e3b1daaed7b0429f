"""CleanRL's loop, Stable-Baselines3 and TorchRL on the imagined environment, by the very adapters that README shows."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from worldenv_cli.recipe import load_recipe
from worldenv_cli.reflector.compact import Reflector
from worldenv_cli.simulator.simulator import History, Simulator
from worldenv_cli.world_env import WorldEnv, WorldEnvConfig

README = Path(__file__).resolve().parents[1] / "README.md"
WORDS = ["pull the handle", "push the button"]
ROWS, CHUNKS = 3, 3


@pytest.fixture(scope="module")
def models():
    """A simulator and a reflector that nobody trained, of pictures that Stable-Baselines3's own network can take."""
    from conftest import MINI

    recipe = load_recipe(MINI, ["env.resolution=48"])
    camera = recipe.env.camera
    view = {"intrinsics": camera.intrinsics(48).tolist(), "extrinsics": camera.extrinsics().tolist()}
    given = view | {"action_unit": np.diag([0.01, 0.01, 0.01, 0]).tolist(), "bank": 4}
    torch.manual_seed(0)
    reflector = Reflector(recipe.reflector)
    reflector.threshold.fill_(2.0)
    return Simulator(type(recipe.simulator).model_validate(recipe.simulator.model_dump() | given)), reflector


@pytest.fixture
def world(models):
    """Three rows; an episode takes one to three chunks, by where it begins."""
    rng, pool = np.random.default_rng(0), []
    for begun in (0, 4, 8, 0, 4, 8):
        frames = rng.integers(0, 256, (begun + 1, 48, 48, 3), dtype=np.uint8)
        states, actions = rng.random((begun + 1, 4), np.float32), rng.random((begun, 4), np.float32)
        pool.append(History(frames, states, actions, WORDS[len(pool) % 2]))
    return WorldEnv(*models, WorldEnvConfig(rows=ROWS, horizon=4 * CHUNKS), pool, render_mode="rgb_array")


def shown(name: str):
    """The class `name` as README's own code makes it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    namespace: dict = {}
    exec(next(block for block in blocks if f"\nclass {name}(" in block), namespace)
    return namespace[name]


@pytest.fixture
def arrays(world):
    return shown("Arrays")(world, WORDS)


def test_the_wrapper_is_a_gymnasium_environment(arrays):
    observation, _ = arrays.reset(seed=0)
    for _ in range(4):
        assert observation in arrays.observation_space and (observation["task"].sum(1) == 1).all()
        observation, reward, terminated, truncated, _ = arrays.step(arrays.action_space.sample())
        done = terminated | truncated
        assert ((reward > 0) == done).all()
        if done.any():
            observation, _ = arrays.reset(options={"reset_mask": done})


class Agent(torch.nn.Module):
    """Actor and critic on the state, a coarse look and the task."""

    def __init__(self, arrays):
        super().__init__()
        seen = 3 * 36 + arrays.single_observation_space["state"].shape[0] + len(WORDS)
        size = arrays.single_action_space.shape[0]
        self.critic = torch.nn.Sequential(torch.nn.Linear(seen, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        self.actor = torch.nn.Sequential(torch.nn.Linear(seen, 32), torch.nn.Tanh(), torch.nn.Linear(32, size))
        self.log_std = torch.nn.Parameter(torch.zeros(size))

    @staticmethod
    def vector(observation):
        coarse = observation["image"][:, ::8, ::8].reshape(len(observation["image"]), -1) / 255
        return torch.from_numpy(np.concatenate([coarse, observation["state"], observation["task"]], 1).astype(np.float32))

    def act(self, seen, action=None):
        policy = torch.distributions.Normal(self.actor(seen), self.log_std.exp())
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(1), self.critic(seen)[:, 0]


def test_a_ppo_loop_in_cleanrls_style(arrays):
    """One file, one loop: collect for some steps while rows begin anew by mask, advantages by GAE, clipped updates."""
    torch.manual_seed(1)
    agent, steps, gamma, smooth = Agent(arrays), 6, 0.99, 0.95
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    observation, _ = arrays.reset(seed=1)
    seen, done, episodes, losses = agent.vector(observation), torch.zeros(ROWS), 0, []
    before = [parameter.detach().clone() for parameter in agent.parameters()]
    for _ in range(2):
        rows = []
        for _ in range(steps):
            with torch.no_grad():
                action, log_prob, value = agent.act(seen)
            observation, reward, terminated, truncated, _ = arrays.step(action.numpy())
            over = terminated | truncated
            rows.append((seen, action, log_prob, value, torch.from_numpy(reward), done))
            if over.any():
                observation, _ = arrays.reset(options={"reset_mask": over})
            seen, done = agent.vector(observation), torch.from_numpy(over).float()
            episodes += int(over.sum())
        all_seen, actions, log_probs, values, rewards, dones = (torch.stack(column) for column in zip(*rows))
        with torch.no_grad():
            following, advantages, last = agent.act(seen)[2], torch.zeros_like(rewards), torch.zeros(ROWS)
            for t in reversed(range(steps)):
                goes_on = 1 - (done if t == steps - 1 else dones[t + 1])
                ahead = following if t == steps - 1 else values[t + 1]
                last = rewards[t] + gamma * ahead * goes_on - values[t] + gamma * smooth * goes_on * last
                advantages[t] = last
            returns = advantages + values
        for _ in range(2):
            _, new, value = agent.act(all_seen.flatten(0, 1), actions.flatten(0, 1))
            ratio, gain = (new - log_probs.flatten()).exp(), advantages.flatten()
            loss = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2)).mean() + 0.5 * (value - returns.flatten()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert episodes >= 2 * steps * ROWS / CHUNKS - ROWS and np.isfinite(losses).all()
    assert all(not torch.equal(a, b) for a, b in zip(before, agent.parameters()))


def test_stable_baselines3_learns_on_it(arrays):
    stable_baselines3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install -e '.[rl]'")
    wrapped = shown("SB3")(arrays)
    model = stable_baselines3.PPO("MultiInputPolicy", wrapped, n_steps=4, batch_size=6, n_epochs=1, seed=0)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(24)
    assert model.num_timesteps == 24 and any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters()))
    wrapped.seed(3)
    observation = wrapped.reset()
    for _ in range(4):
        previous, (observation, reward, done, infos) = observation, wrapped.step(np.zeros((ROWS, 16), np.float32))
        for row in range(ROWS):
            assert ("terminal_observation" in infos[row]) == bool(done[row]) == (reward[row] > 0)
            last = infos[row].get("terminal_observation")
            assert last is None or not np.array_equal(last["image"], observation["image"][row])
        assert previous["image"].shape == observation["image"].shape
    action, _ = model.predict(observation)
    assert action.shape == (ROWS, 16)


def test_torchrl_collects_whole_episodes(arrays, world):
    """What comes next is what is seen next, until an episode ends; then a first frame of the pool is."""
    pytest.importorskip("torchrl", reason="TorchRL is not installed: pip install -e '.[rl]'")
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    wrapped = GymWrapper(arrays)
    check_env_specs(wrapped)
    beginnings = {one.frames[-1].tobytes() for one in world.pool}
    seen = 0
    for batch in Collector(wrapped, None, frames_per_batch=8 * ROWS, total_frames=16 * ROWS):
        done, images, following = batch["next", "done"][..., 0].numpy(), batch["image"].numpy(), batch["next", "image"].numpy()
        for row in range(ROWS):
            for t in range(7):
                if done[row, t]:
                    assert images[row, t + 1].tobytes() in beginnings
                else:
                    np.testing.assert_array_equal(following[row, t], images[row, t + 1])
        np.testing.assert_array_equal(batch["next", "reward"][..., 0].numpy() > 0, done)
        seen += done.sum()
    assert seen >= 2 * 8 * ROWS / CHUNKS - ROWS and len({tuple(row) for row in done}) > 1  # rows end apart
