"""Rows of real Meta-World in worker processes: what they cost, when they end, and what they refuse."""

from copy import deepcopy

import numpy as np
import pytest
from conftest import COFFEE, DRAWER, history
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode

from worldenv_cli.envs.metaworld import MetaWorldConfig, MetaWorldTask, RenderContext
from worldenv_cli.envs.success import achieved
from worldenv_cli.envs.vector import RealVectorEnv
from worldenv_cli.errors import UserError
from worldenv_cli.world_env import WorldEnv

STARTS = [(COFFEE, 0), (COFFEE, 1), (DRAWER, 2)]


def still(env):
    return np.zeros(env.action_space.shape, np.float32)


def pictures(observation):
    return observation["images"]["front"]


def test_spaces_hold_what_it_returns(env):
    observation, info = env.reset(options={"starts": STARTS})
    assert observation in env.observation_space and env.action_space.sample().shape == (3, 4, 4)
    observation, reward, terminated, truncated, info = env.step(still(env))
    assert observation in env.observation_space
    assert reward.shape == terminated.shape == truncated.shape == info["alive"].shape == (3,)
    assert reward.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
    assert info["frames"]["front"].shape == (3, 4, 32, 32, 3) and info["frames"]["front"].dtype == np.uint8
    assert info["states"].shape == (3, 4, 4) and info["success"].shape == (3, 4)
    np.testing.assert_array_equal(info["frames"]["front"][:, -1], pictures(observation))
    np.testing.assert_array_equal(info["states"][:, -1], observation["state"])
    assert observation["instruction"] == tuple(env.config.tasks[task] for task, _ in STARTS)
    assert pictures(observation).std((1, 2, 3)).min() > 10


def test_rows_without_a_start_are_in_the_spaces_too(env):
    observation, info = env.reset(options={"starts": STARTS[:1]})
    assert info["alive"].tolist() == [True, False, False]
    assert observation in env.observation_space
    assert env.step(still(env))[0] in env.observation_space


def test_real_and_imagined_rows_share_their_spaces(env, simulator, reflector, mini, demonstrations):
    world = WorldEnv(simulator, reflector, mini.world_env, [history(demonstrations[0])])
    assert world.single_observation_space == env.single_observation_space
    assert world.single_action_space == env.single_action_space
    assert world.metadata["autoreset_mode"] == env.metadata["autoreset_mode"] == AutoresetMode.DISABLED


def test_gymnasiums_checks_that_apply(env):
    """gymnasium 1.4 has no checker for vector environments: `check_env` refuses what is no `gymnasium.Env`.

    Of its parts those that only look at reset and spaces apply as they are; determinism of a step and that no data is handed out twice are
    checked with its `data_equivalence`, because its own versions of them expect one bool where a vector environment has an array.
    """
    for check in ("check_reset_return_type", "check_reset_options", "check_reset_seed_determinism", "check_seed_deprecation"):
        getattr(env_checker, check)(env)
    chunks, seen = env.action_space.sample(), []
    for _ in range(2):
        seen.append([env.reset(seed=123), env.step(chunks), env.step(chunks)])
    for first, again in zip(*seen):
        assert env_checker.data_equivalence(first, again, exact=True)
    before = deepcopy(seen[0][1])
    env.step(chunks)
    env.reset(seed=5)
    assert env_checker.data_equivalence(before, seen[0][1], exact=True)
    other, _ = env.reset(seed=124)
    assert not np.array_equal(pictures(other), pictures(seen[0][0][0]))


def test_frozen_rows_stay_and_cost_nothing(env):
    before = env.environment_steps
    first, _ = env.reset(options={"starts": STARTS[:2]})
    assert env.environment_steps == before  # a reset is no step
    chunks = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    for count in (1, 2):
        observation, reward, terminated, truncated, info = env.step(chunks)
        assert env.environment_steps == before + count * 2 * 4 * 4  # two rows, four actions, each held for four steps
        np.testing.assert_array_equal(pictures(observation)[2], pictures(first)[2])
        np.testing.assert_array_equal(observation["state"][2], first["state"][2])
        np.testing.assert_array_equal(info["frames"]["front"][2], np.stack([pictures(first)[2]] * 4))
        assert reward[2] == 0 and not terminated[2] and not truncated[2] and not info["alive"][2] and not info["success"][2].any()
    assert np.abs(observation["state"][:2] - first["state"][:2]).max() > 0.01


def expert_episode(env, starts):
    """Every step_expert of an episode until all rows are over."""
    env.reset(options={"starts": starts})
    steps = []
    while not steps or (steps[-1][4]["alive"] & ~steps[-1][2] & ~steps[-1][3]).any():
        steps.append(env.step_expert())
    return steps


@pytest.mark.parametrize("linger", [0, 1, 2])
def test_an_episode_ends_some_chunks_after_success(env, linger):
    env.config = env.config.model_copy(update={"linger": linger})
    before, steps = env.environment_steps, expert_episode(env, STARTS)
    success = np.array([info["success"].any(1) for *_, info in steps])  # (chunks, rows)
    ends = []
    for row in range(3):
        first = int(success[:, row].argmax())
        assert success[first, row]
        ends.append(min(first + linger, env.config.chunks - 1))
        alive, terminated, truncated = ([bool(flags[row]) for flags in column] for column in zip(*[(s[4]["alive"], s[2], s[3]) for s in steps]))
        assert alive == [chunk <= ends[-1] for chunk in range(len(steps))]
        assert terminated == [chunk == first + linger for chunk in range(len(steps))]
        assert truncated == [chunk == ends[-1] < first + linger for chunk in range(len(steps))]
        assert [float(step[1][row]) for step in steps] == [float(chunk == first) for chunk in range(len(steps))]  # one reward, where it succeeds
        for step in steps[ends[-1] :]:
            np.testing.assert_array_equal(pictures(step[0])[row], pictures(steps[ends[-1]][0])[row])
    assert len(set(ends)) > 1 and len(steps) == max(ends) + 1
    assert env.environment_steps - before == 16 * sum(int(step[4]["alive"].sum()) for step in steps)


def test_the_horizon_truncates(env):
    assert env.config.chunks == 6
    env.reset(options={"starts": STARTS})
    for chunk in range(1, 7):
        _, reward, terminated, truncated, info = env.step(still(env))
        assert truncated.tolist() == [chunk == 6] * 3 and not terminated.any() and not reward.any()
    assert not env.step(still(env))[4]["alive"].any()


def test_until_the_horizon_success_ends_nothing(env):
    env.until_horizon = True
    steps = expert_episode(env, STARTS[:1])
    assert len(steps) == env.config.chunks
    assert not any(step[2].any() for step in steps) and [bool(step[3][0]) for step in steps] == [False] * 5 + [True]
    assert sum(step[1][0] for step in steps) == 1


def test_without_every_frame_only_the_last_is_drawn(env):
    chunks, seen = np.random.default_rng(1).uniform(-1, 1, env.action_space.shape).astype(np.float32), []
    for every_frame in (True, False):
        env.every_frame = every_frame
        env.reset(options={"starts": STARTS})
        seen.append(env.step(chunks))
    (full, *_, all_frames), (short, *_, one_frame) = seen
    np.testing.assert_array_equal(pictures(full), pictures(short))
    np.testing.assert_array_equal(all_frames["states"], one_frame["states"])
    np.testing.assert_array_equal(one_frame["frames"]["front"], np.repeat(pictures(full)[:, None], 4, 1))
    assert not np.array_equal(all_frames["frames"]["front"][:, 0], pictures(full))


def test_rows_are_the_task_itself(env):
    """Workers, vectors and neighbours change nothing: a row plays as one Meta-World instance does."""
    chunks = np.random.default_rng(2).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    first, _ = env.reset(options={"starts": STARTS})
    info = env.step(chunks)[-1]
    context, task = RenderContext(env.config), MetaWorldTask(DRAWER, env.config)
    task.reset(2)
    np.testing.assert_array_equal(pictures(first)[2], task.render(context))
    for t in range(4):
        _, success = task.step(chunks[2, t])
        np.testing.assert_array_equal(info["states"][2, t], task.state())
        np.testing.assert_array_equal(info["frames"]["front"][2, t], task.render(context))
        assert info["success"][2, t] == success


def test_too_many_starts_are_refused(env):
    with pytest.raises(ValueError, match="4 starts for 3 rows"):
        env.reset(options={"starts": [(COFFEE, seed) for seed in range(4)]})


def small(mini, tasks=None, rows=1, **changes):
    tasks = tasks or {DRAWER: "close the drawer"}
    return MetaWorldConfig(**(mini.env.model_dump() | {"tasks": tasks, "rows": rows, "workers": rows, "resolution": 16} | changes))


def test_closing_ends_the_workers(mini):
    env = RealVectorEnv(small(mini))
    (worker,) = env.workers
    env.reset(seed=0)
    assert worker.process.poll() is None
    env.close()
    assert worker.process.poll() == 0 and worker.stderr.closed
    env.close()


def test_a_mistake_in_one_worker_leaves_the_others_in_step(mini):
    """An answer that nobody reads would be taken for the next one's."""
    env = RealVectorEnv(small(mini, {DRAWER: "close the drawer"}, rows=2))
    try:
        with pytest.raises(UserError, match="did you mean 'drawer-close-v3'"):
            env.reset(options={"starts": [("drawer-clos-v3", 0), (DRAWER, 1)]})
        observation, _ = env.reset(options={"starts": [(DRAWER, 2), (DRAWER, 2)]})
        np.testing.assert_array_equal(*pictures(observation))
        np.testing.assert_array_equal(*observation["state"])
    finally:
        env.close()


def test_masked_rows_begin_anew_and_the_others_go_on(env):
    """gymnasium's reset_mask: a row's horizon counts from its own start; a masked row without a start is frozen."""
    env.reset(options={"starts": [(COFFEE, 1), (COFFEE, 2)]})
    chunks = np.zeros(env.action_space.shape, np.float32)
    before, *_ = env.step(chunks)
    fresh, info = env.reset(options={"starts": [(DRAWER, 3)], "reset_mask": np.array([True, False, True])})
    assert info["alive"].tolist() == [True, True, False] and fresh["instruction"][0] == env.config.tasks[DRAWER]
    np.testing.assert_array_equal(fresh["images"]["front"][1], before["images"]["front"][1])
    ended = {}
    for number in range(2, env.config.chunks + 3):
        _, _, terminated, truncated, info = env.step(chunks)
        ended |= {int(row): number for row in np.flatnonzero(terminated | truncated)}
    assert ended == {1: env.config.chunks, 0: env.config.chunks + 1} and not info["alive"].any()
    with pytest.raises(ValueError, match="2 starts for 1 rows"):
        env.reset(options={"starts": [(DRAWER, 3)] * 2, "reset_mask": np.array([True, False, False])})
    with pytest.raises(ValueError, match=r"reset_mask has shape \(2,\) and type int64, expected \(3,\) and bool"):
        env.reset(options={"starts": [], "reset_mask": [0, 1]})


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_and_moves_nothing(env, number):
    """MuJoCo takes NaN for an action, and Meta-World calls where it leads a success."""
    before, _ = env.reset(options={"starts": STARTS[:2]})
    chunks = still(env)
    chunks[2] = number  # a frozen row's action is not looked at
    env.step(chunks)
    chunks[1, 3, 0] = number
    steps = env.environment_steps
    with pytest.raises(ValueError, match=f"actions of row 1 hold {number}, expected finite numbers"):
        env.step(chunks)
    assert env.environment_steps == steps
    with pytest.raises(ValueError, match=r"actions have shape \(3, 4, 3\), expected \(3, 4, 4\)"):
        env.step(chunks[..., :3])


@pytest.mark.parametrize("value", [None, np.nan, np.inf, "no", [True, False], {}])
def test_success_that_says_nothing_is_refused(value):
    with pytest.raises(UserError, match="env.tasks.a: the environment says .* of success, expected a bool or a finite number"):
        achieved(value, "a")


@pytest.mark.parametrize(("value", "right"), [(True, True), (False, False), (0.0, False), (1.0, True), (np.float32(1), True), (np.array([0]), False)])
def test_success_is_a_bool_or_a_number(value, right):
    assert achieved(value, "a") is right
