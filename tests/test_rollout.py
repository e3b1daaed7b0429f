"""Real rollouts: what `play` records and counts, demonstrations, exploration, and starts that never meet."""

import contextlib
import copy
import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import COFFEE, DRAWER

from worldenv_cli.data.expert import IngestConfig, demonstrate
from worldenv_cli.data.explore import ExploreConfig, explore, of_split, split
from worldenv_cli.envs.starts import PURPOSES, starts
from worldenv_cli.errors import UserError
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.rollout import environment_steps, play, save_episode

STARTS = [(DRAWER, 11), (COFFEE, 12), (DRAWER, 13), (COFFEE, 14)]  # more than the environment has rows, tasks in disorder


def same(a, b):
    return all(np.array_equal(x, y) for x, y in ((a.actions, b.actions), (a.states, b.states), (a.frames["front"], b.frames["front"])))


def test_experts_play_what_was_asked_in_order(env):
    before = env.environment_steps
    episodes = play(env, STARTS)
    assert [(e.info["task"], e.info["start"]) for e in episodes] == STARTS
    assert [e.instruction for e in episodes] == [env.config.tasks[task] for task, _ in STARTS]
    assert environment_steps(episodes) == env.environment_steps - before == sum(len(e.actions) for e in episodes) * 4
    for episode in episodes:
        steps = len(episode.actions)
        assert episode.frames["front"].shape == (steps + 1, 32, 32, 3) and episode.states.shape == (steps + 1, 4)
        assert episode.success.shape == (steps + 1,) and episode.success[-1] and not episode.success[0]
        np.testing.assert_array_equal(episode.success, np.logical_or.accumulate(np.array(episode.info["succeeding"], bool)))
        assert np.abs(episode.actions).max() <= 1 and episode.info["source"] == "expert"
        reached = int(episode.success.argmax())  # in the chunk that ends here; one more is played
        assert steps == min(-(-reached // 4) * 4 + 4, 24)


class Replayed:
    """A policy that does what was recorded, for one task at a time and rows in order."""

    def __init__(self, episodes, chunk):
        self.episodes, self.chunk, self.number = episodes, chunk, 0

    def act(self, observation, *, explore, generator=None):
        assert not explore
        frames = [episode.frames["front"][self.number] for episode in self.episodes]
        rows = [np.flatnonzero([np.array_equal(frame, seen) for frame in frames]) for seen in observation.images["front"]]
        assert all(len(row) == 1 for row in rows)  # every observation is the recorded one, exactly
        chunks = np.stack([self.episodes[row[0]].actions[self.number : self.number + self.chunk] for row in rows])
        self.number += self.chunk
        return SimpleNamespace(chunk=chunks)


def test_recorded_actions_lead_to_the_recorded_frames(env):
    """Nothing is lost or shifted between what was done and what is written down: the same actions make the same episode."""
    recorded = play(env, STARTS[:1] + STARTS[2:3])
    again = play(env, STARTS[:1] + STARTS[2:3], Replayed(recorded, env.config.chunk))
    assert all(same(a, b) and np.array_equal(a.success, b.success) for a, b in zip(recorded, again))


def test_noise_by_episode(env, trained_policy):
    chosen = [(COFFEE, 1), (COFFEE, 2), (COFFEE, 1)]
    mean = play(env, chosen, trained_policy)
    assert same(mean[0], mean[2]) and not same(mean[0], mean[1])
    noisy = play(env, chosen, trained_policy, noise=[0.0, 0.0, 0.2], seed=3)
    assert same(mean[0], noisy[0]) and same(mean[1], noisy[1]) and not same(mean[2], noisy[2])
    assert [episode.info["noise"] for episode in noisy] == [0.0, 0.0, 0.2] and noisy[0].info["source"] == "policy"
    assert same(noisy[2], play(env, chosen, trained_policy, noise=[0.0, 0.0, 0.2], seed=3)[2])
    assert not same(noisy[2], play(env, chosen, trained_policy, noise=[0.0, 0.0, 0.2], seed=4)[2])
    assert np.abs(noisy[2].actions).max() <= 1
    assert len(mean[1].actions) == 24 or mean[1].success[-1]  # a failure lasts to the horizon


CHOSEN = [(COFFEE, 0), (DRAWER, 1), (COFFEE, 2), (DRAWER, 3), (COFFEE, 4), (DRAWER, 5), (COFFEE, 6), (DRAWER, 7)]
NOISE = [0.0, 0.2, 0.2, 0.0, 0.2, 0.0, 0.0, 0.3]


class Watched:
    """A policy, and a digest of everything that it was ever given in one call."""

    def __init__(self, policy):
        self.policy, self.given = policy, []

    def act(self, observation, *, explore, scale=None, generator=None):
        whole = hashlib.sha256(repr((observation.instruction, explore, scale)).encode())
        for array in (*observation.images.values(), observation.state):
            whole.update(array.tobytes())
        self.given.append(whole.hexdigest())
        return self.policy.act(observation, explore=explore, scale=scale, generator=generator)


def cut_after(monkeypatch, count):
    """The call is cut off when `count` more episodes have been kept."""
    left = [count]

    def save(path, episode):
        save_episode(path, episode)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("worldenv_cli.rollout.save_episode", save)


def alike(whole, again):
    return all(
        same(a, b) and np.array_equal(a.success, b.success) and (a.instruction, a.info) == (b.instruction, b.info)
        for a, b in zip(whole, again, strict=True)
    )


def resumed(env, policy, folder, monkeypatch, count, chosen=CHOSEN, noise=NOISE):
    """What `play` returns in the end, and how often it was cut off on the way: each time after so many more episodes."""
    for cuts in range(len(chosen) + 1):
        with monkeypatch.context() as patch:
            cut_after(patch, count)
            with contextlib.suppress(KeyboardInterrupt):
                return play(env, chosen, policy, noise=noise, seed=2, keep=folder), cuts
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_collection_that_was_cut_off_ends_with_the_same_bits(env, trained_policy, tmp_path, monkeypatch, count):
    """After any episode, again and again: what is kept is not played again, and the policy sees batches that it saw, none else."""
    undisturbed, cut = Watched(trained_policy), Watched(trained_policy)
    whole = play(env, CHOSEN, undisturbed, noise=NOISE, seed=2)
    again, cuts = resumed(env, cut, tmp_path, monkeypatch, count)
    assert cuts == len(CHOSEN) // count and alike(whole, again)
    assert set(cut.given) == set(undisturbed.given)
    steps, calls = env.environment_steps, len(cut.given)
    assert alike(whole, play(env, CHOSEN, cut, noise=NOISE, seed=2, keep=tmp_path))
    assert env.environment_steps == steps and len(cut.given) == calls  # where everything is kept nothing is computed


def test_what_a_batch_holds_shows_in_the_bits(env, trained_policy):
    """Why rows come and go as they did."""
    whole = play(env, CHOSEN, trained_policy, noise=NOISE, seed=2)
    rest = play(env, CHOSEN[4:], trained_policy, noise=NOISE[4:], seed=2)  # without noise an episode's number does not matter
    assert not all(same(whole[4 + i], rest[i]) for i in (1, 2))


@pytest.mark.parametrize("way", ["to the horizon", "last frames", "several members", "experts", "a worker dies"])
def test_the_same_bits_in_every_way_of_playing(env, trained_policy, tmp_path, monkeypatch, way):
    env.until_horizon, env.every_frame = way == "to the horizon", way != "last frames"
    other = copy.deepcopy(trained_policy)
    torch.nn.init.normal_(other.action_head[-1].weight, std=0.1)
    two = ChosenPolicy({"a": trained_policy, "b": other}, {env.config.tasks[DRAWER]: "b"}, "a")
    policy, noise = {"several members": two, "experts": None}.get(way, trained_policy), None if way == "experts" else NOISE
    whole = play(env, CHOSEN, policy, noise=noise, seed=2)
    if way == "a worker dies":
        step, calls = env.step, itertools.count()
        monkeypatch.setattr(env, "step", lambda chunks: (next(calls) in (2, 7) and env.workers[0].process.kill()) or step(chunks))
        assert alike(whole, play(env, CHOSEN, policy, noise=noise, seed=2))
        return
    again, cuts = resumed(env, policy, tmp_path, monkeypatch, 3, noise=noise)
    assert cuts == 2 and alike(whole, again)


def test_only_what_is_not_kept_is_played(env, trained_policy, tmp_path, monkeypatch):
    chosen, noise = [(COFFEE, seed) for seed in range(5)], [0.0, 0.2, 0.2, 0.0, 0.2]
    whole = play(env, chosen, trained_policy, noise=noise, seed=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_after(patch, 3)
        play(env, chosen, trained_policy, noise=noise, seed=2, keep=tmp_path)
    kept = {int(path.stem) for path in tmp_path.glob("*.npz")}
    steps = env.environment_steps
    assert alike(whole, play(env, chosen, trained_policy, noise=noise, seed=2, keep=tmp_path))
    assert env.environment_steps - steps == environment_steps([whole[i] for i in range(5) if i not in kept]) > 0
    steps = env.environment_steps
    other = play(env, [(COFFEE, 9)] + chosen[1:3], trained_policy, keep=tmp_path)  # those of other starts are not taken for these
    assert other[0].info["start"] == 9 and env.environment_steps - steps == environment_steps(other[:1])
    assert same(other[1], whole[1]) and same(other[2], whole[2])


@pytest.mark.parametrize("damage", ["cut", "empty", "a flipped bit", "text", "of another version"])
def test_a_kept_episode_that_cannot_be_read_is_played_again(env, trained_policy, tmp_path, capsys, damage):
    """Power fails, disks fill: no file may keep a run from going on."""
    chosen = [(COFFEE, seed) for seed in range(3)]
    whole = play(env, chosen, trained_policy, keep=tmp_path)
    path, steps = tmp_path / "000001.npz", env.environment_steps
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "of another version":
        np.savez(path, states=whole[1].states)
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "empty": b"", "a flipped bit": flipped, "text": b"no episode"}[damage])
    assert alike(whole, play(env, chosen, trained_policy, keep=tmp_path))
    assert env.environment_steps - steps == environment_steps(whole[1:2])
    assert f"{path}: cannot be read (" in (told := capsys.readouterr().out) and "its episode is played again" in told
    assert path.read_bytes() == content


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("noise", [None, [0.1, 0.1]])
def test_an_action_that_is_not_finite_is_never_played(env, policy, number, noise):
    """Clipping leaves NaN as it is, and makes infinity look like an action."""
    policy.action_head[-1].bias.data[1] = number
    steps = env.environment_steps
    with pytest.raises(UserError, match="the policy answers 'press the .*' with an action of -?(nan|inf), expected finite numbers: its weights or"):
        play(env, [(COFFEE, 1), (COFFEE, 2)], policy, noise=noise)
    assert env.environment_steps == steps


def test_rows_go_on_with_the_next_start_and_noise_is_the_episodes_own(env, trained_policy, monkeypatch):
    """No row waits while there are starts, and an episode's noise does not depend on which episodes are played beside it."""
    chosen, noise = [(COFFEE, seed) for seed in range(6)], [0.2, 0.0, 0.2, 0.2, 0.0, 0.2]
    moving, step = [], env.step
    monkeypatch.setattr(env, "step", lambda chunks: moving.append(int(env._alive.sum())) or step(chunks))
    whole = play(env, chosen, trained_policy, noise=noise, seed=2)
    assert max(moving) == moving[0] == 3 and sorted(moving, reverse=True) == moving and sum(moving) * 4 == sum(len(e.actions) for e in whole)
    alone = play(env, chosen[:1], trained_policy, noise=noise[:1], seed=2)[0]
    np.testing.assert_allclose(alone.actions[:4], whole[0].actions[:4], atol=1e-4)


def test_demonstrations_are_successes_and_all_tries_are_counted(env, mini):
    before = env.environment_steps
    episodes, cost = demonstrate(env, mini.ingest, 0)
    assert [episode.info["task"] for episode in episodes] == [COFFEE, COFFEE, DRAWER, DRAWER]
    assert all(episode.success[-1] for episode in episodes) and len({e.info["start"] for e in episodes}) == 2
    assert cost == env.environment_steps - before >= environment_steps(episodes)


def test_an_expert_that_fails_is_told(env):
    env.config = env.config.model_copy(update={"horizon": 16})
    with pytest.raises(UserError, match=rf"env.tasks.{COFFEE}: the scripted expert succeeded 0 times .*action_repeat 4 and horizon 16"):
        demonstrate(env, IngestConfig(demos_per_task=1, attempts=2), 0)


def test_exploration_is_split_and_keeps_failures(env, trained_policy, explored):
    assert [e.info["task"] for e in explored] == [COFFEE, DRAWER] * 3
    assert [e.info["split"] for e in explored] == ["train"] * 2 + ["calibration"] * 2 + ["held-out"] * 2
    assert [e.info["noise"] for e in explored] == [0.0, 0.0, 0.3, 0.3, 0.0, 0.0]
    assert not all(e.success[-1] for e in explored)
    config = ExploreConfig(episodes=2, held_out=1, noise=(0.0, 0.3))
    assert all(same(a, b) for a, b in zip(explored, explore(env, trained_policy, config, calibration_share=0.5, seed=0)))
    assert of_split(explored, "train", "held-out") == explored[:2] + explored[4:]


def test_split_by_task(explored):
    """Each task's first episodes train, the last share of those calibrate, the rest are held out."""
    import copy

    episodes = [copy.copy(explored[0]) for _ in range(3 * 7)]
    for episode in episodes:
        episode.info = {}
    split(episodes, tasks=3, trained=5, calibration_share=0.4)
    for task in range(3):
        assert [e.info["split"] for e in episodes[task::3]] == ["train"] * 3 + ["calibration"] * 2 + ["held-out"] * 2


def test_starts_never_meet():
    """Nothing may be tuned on the evaluation's starts, whatever the training seed."""
    seeds = [0, 1, 7, 99, 100, 400, 500, 800, 900, 12345]
    taken = {purpose: set() for purpose in PURPOSES}
    for purpose, seed in itertools.product(PURPOSES, seeds):
        taken[purpose] |= {number for _, number in starts(purpose, ["a"], 10, offset=5000, run_seed=seed)}
        taken[purpose] |= {number for _, number in starts(purpose, ["a"], 100, run_seed=seed)}
    for a, b in itertools.combinations(PURPOSES, 2):
        assert not taken[a] & taken[b], (a, b)
    assert starts("evaluation", ["a"], 3, run_seed=1) == starts("evaluation", ["a"], 3, run_seed=2)
    assert starts("validation", ["a"], 3, run_seed=1) != starts("validation", ["a"], 3, run_seed=2)
    assert [task for task, _ in starts("probe", ["a", "b"], 2)] == ["a", "b", "a", "b"]
