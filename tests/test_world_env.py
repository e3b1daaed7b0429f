"""The imagined environment: simulator and reflector together behave like the real one, and whoever ended costs nothing."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import history
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldenv_cli.simulator.simulator import History
from worldenv_cli.world_env import WorldEnv, WorldEnvConfig


@pytest.fixture
def world(simulator, reflector, demonstrations):
    """Four imagined rows to a horizon of four chunks; the reflector stops nothing until a test says so."""
    reflector.threshold.fill_(2.0)
    return WorldEnv(simulator, reflector, WorldEnvConfig(rows=4, horizon=16), [history(episode) for episode in demonstrations])


def chunks(seed=0, rows=4):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, 4, 4)).astype(np.float32)


def play(world, histories, until=4):
    """[(observation, reward, terminated, truncated, info)] of some steps with the same actions for the same step and row."""
    world.reset(options={"histories": histories})
    return [world.step(chunks(step)) for step in range(until)]


def test_spaces_hold_what_it_returns(world, demonstrations):
    observation, info = world.reset(options={"histories": [history(demonstrations[0])]})
    assert observation in world.observation_space and info["alive"].tolist() == [True, False, False, False]
    np.testing.assert_array_equal(observation["images"]["front"][0], demonstrations[0].frames["front"][0])
    np.testing.assert_array_equal(observation["state"][0], demonstrations[0].states[0])
    assert observation["instruction"] == (demonstrations[0].instruction, "", "", "")
    observation, reward, terminated, truncated, info = world.step(world.action_space.sample())
    assert observation in world.observation_space
    assert reward.shape == terminated.shape == truncated.shape == (4,) and reward.dtype == np.float32
    assert terminated.dtype == truncated.dtype == bool and info["scores"].shape == info["played"].shape == (4, 4)
    assert info["frames"]["front"].shape == (4, 4, 32, 32, 3) and info["states"].shape == (4, 4, 4)
    np.testing.assert_array_equal(observation["images"]["front"], info["frames"]["front"][:, -1])
    np.testing.assert_array_equal(observation["state"], info["states"][:, -1])


def test_gymnasiums_checks_that_apply(world):
    """See test_vector_env.py: gymnasium 1.4 has no checker for vector environments, but parts of `check_env` and `data_equivalence` apply."""
    for check in ("check_reset_return_type", "check_reset_options", "check_reset_seed_determinism", "check_seed_deprecation"):
        getattr(env_checker, check)(world)
    world.action_space.seed(0)
    given, seen = world.action_space.sample(), []
    for _ in range(2):
        seen.append([world.reset(seed=123), world.step(given), world.step(given)])
    for first, again in zip(*seen):
        assert env_checker.data_equivalence(first, again, exact=True)
    before = deepcopy(seen[0])
    world.step(given)
    world.reset(seed=4)
    assert all(env_checker.data_equivalence(a, b, exact=True) for a, b in zip(before, seen[0]))  # nothing handed out is reused


def test_it_steps_as_simulator_and_reflector_do(world, demonstrations):
    """Frames and states are the simulator's, scores the reflector's word on the imagined frames, with the real past to look back at."""
    moments = [0, 5, 9, 2]
    histories = [history(episode, moment) for episode, moment in zip(demonstrations, moments)]
    steps = play(world, histories, until=2)
    state = world.simulator.start(histories)
    for step, (observation, *_, info) in enumerate(steps):
        made, states, state = world.simulator.step(state, chunks(step))
        assert np.abs(made["front"].astype(int) - info["frames"]["front"]).max() <= 1
        np.testing.assert_allclose(states, info["states"], atol=1e-5)
    for row, one in enumerate(histories):
        imagined = np.concatenate([info["frames"]["front"][row] for *_, info in steps])
        scores, _ = world.reflector.score(world.reflector.start([one.frames], [one.instruction]), imagined[None])
        np.testing.assert_allclose(np.concatenate([info["scores"][row] for *_, info in steps]), scores[0], atol=1e-3)


def test_without_a_stop_episodes_end_at_the_horizon_with_their_last_score(world, demonstrations):
    steps = play(world, [history(episode) for episode in demonstrations])
    for number, (_, reward, terminated, truncated, info) in enumerate(steps):
        last = number == 3
        assert truncated.tolist() == [last] * 4 and not terminated.any() and info["played"].all()
        np.testing.assert_array_equal(reward, info["scores"][:, -1] if last else np.zeros(4))


def test_it_stops_at_the_frame_where_the_reflector_is_sure(world, demonstrations):
    """Rewards come at the end only; what follows the crossing frame inside its chunk is not played."""
    histories = [history(episode) for episode in demonstrations]
    free = play(world, histories)
    scores = np.concatenate([info["scores"] for *_, info in free], axis=1)  # (rows, 16)
    tried = set()
    for threshold in np.quantile(scores, [0.5, 0.8, 0.9, 0.97]):
        world.reflector.threshold.fill_(float(threshold))
        steps = play(world, histories)
        for row in range(4):
            crossing = np.flatnonzero(scores[row] >= world.reflector.threshold.item())
            end = int(crossing[0]) if len(crossing) else 15
            tried.add((bool(len(crossing)), end % 4))
            for number, (_, reward, terminated, truncated, info) in enumerate(steps):
                here = number == end // 4
                assert bool(terminated[row]) == (here and len(crossing) > 0)
                assert bool(truncated[row]) == (here and not len(crossing))
                assert reward[row] == pytest.approx(scores[row, end] if here else 0, abs=5e-4)
                assert bool(info["alive"][row]) == (number <= end // 4)
                played = [number * 4 + t <= end for t in range(4)]
                assert info["played"][row].tolist() == played
    assert any(stopped and place < 3 for stopped, place in tried) and any(not stopped for stopped, _ in tried)


def test_stopping_can_be_switched_off(world, demonstrations):
    world.reflector.threshold.fill_(0.0)
    world.config = world.config.model_copy(update={"terminate": False})
    steps = play(world, [history(episode) for episode in demonstrations])
    assert not any(step[2].any() for step in steps) and steps[-1][3].all()
    world.config = world.config.model_copy(update={"terminate": True})
    assert play(world, [history(demonstrations[0])], until=1)[0][2].tolist() == [True, False, False, False]


def test_rows_that_ended_cost_nothing(world, demonstrations, monkeypatch):
    histories = [history(demonstrations[0]), history(demonstrations[2], 12), history(demonstrations[1], 4)]
    sizes, looked = [], []
    simulate, score = world.simulator.step, world.reflector.score
    monkeypatch.setattr(world.simulator, "step", lambda state, chunk: (sizes.append(len(chunk)), simulate(state, chunk))[1])
    before, _ = world.control_steps, world.reset(options={"histories": histories})
    monkeypatch.setattr(world.reflector, "score", lambda state, frames: (looked.append(len(frames)), score(state, frames))[1])
    steps = [world.step(chunks(step)) for step in range(6)]
    assert sizes == looked == [3, 2, 2, 1]  # horizon 16: the second has one chunk left, the third three; the fourth row never began
    assert world.control_steps - before == 4 * sum(sizes)
    assert [step[4]["alive"].tolist() for step in steps] == [
        [True, True, True, False],
        [True, False, True, False],
        [True, False, True, False],
        [True, False, False, False],
        [False] * 4,
        [False] * 4,
    ]
    assert [np.flatnonzero(step[3]).tolist() for step in steps] == [[1], [], [2], [0], [], []]
    for later in steps[1:]:
        np.testing.assert_array_equal(later[0]["images"]["front"][1], steps[0][0]["images"]["front"][1])
        np.testing.assert_array_equal(later[4]["states"][1], np.stack([steps[0][0]["state"][1]] * 4))
        assert later[1][1] == 0 and not later[4]["played"][1].any() and not later[4]["scores"][1].any()


def test_a_row_does_not_depend_on_its_neighbours(world, demonstrations):
    """Nor on who ended before it, nor on its place."""
    histories = [history(demonstrations[0], 12), history(demonstrations[1], 3), history(demonstrations[2])]
    whole = play(world, histories)
    for row, one in enumerate(histories):
        world.reset(options={"histories": [one]})
        for step in range(4):
            if not whole[step][4]["alive"][row]:
                break
            *_, info = world.step(np.repeat(chunks(step)[[row]], 4, 0))
            assert np.abs(info["frames"]["front"][0].astype(int) - whole[step][4]["frames"]["front"][row]).max() <= 1
            np.testing.assert_allclose(info["scores"][0], whole[step][4]["scores"][row], atol=1e-3)


@pytest.mark.parametrize("moment, steps, played_last", [(0, 4, 4), (4, 3, 4), (5, 3, 3), (11, 2, 1), (12, 1, 4), (14, 1, 2)])
def test_the_past_counts_towards_the_horizon(world, demonstrations, moment, steps, played_last):
    """An episode has as many control steps as the real one, wherever it begins; a part of a chunk at its end is not played."""
    drawer = demonstrations[2]
    found = play(world, [history(drawer, moment)], until=5)
    assert [bool(truncated[0]) for _, _, _, truncated, _ in found] == [n == steps - 1 for n in range(5)]
    assert sum(info["played"][0].sum() for *_, info in found) == 16 - moment
    reward, info = found[steps - 1][1], found[steps - 1][4]
    assert info["played"][0].tolist() == [t < played_last for t in range(4)]
    assert reward[0] == info["scores"][0, played_last - 1]


def test_nothing_stops_it_after_the_horizon(world, demonstrations):
    """What the reflector says of a frame beyond the horizon does not count."""
    histories = [history(episode, moment) for episode in demonstrations[2:] for moment in (13, 14)]  # three and two steps are left
    left = np.array([3, 2, 3, 2])
    free = play(world, histories, until=1)[0][4]["scores"]
    beyond = np.arange(4) >= left[:, None]
    world.reflector.threshold.fill_(float(free[beyond].max()))
    _, reward, terminated, truncated, info = play(world, histories, until=1)[0]
    assert (info["scores"][beyond] >= world.reflector.threshold.item()).any()
    within = np.where(beyond, 0, info["scores"]) >= world.reflector.threshold.item()
    np.testing.assert_array_equal(terminated, within.any(1))
    np.testing.assert_array_equal(truncated, ~within.any(1))
    for row in np.flatnonzero(truncated):
        assert info["played"][row].sum() == left[row] and reward[row] == info["scores"][row, left[row] - 1]
    assert truncated.any()


def test_without_histories_it_draws_from_its_pool(world, demonstrations):
    first, _ = world.reset(seed=3)
    again, _ = world.reset(seed=3)
    pool = [episode.frames["front"][0] for episode in demonstrations]
    drawn = [next(n for n, frame in enumerate(pool) if np.array_equal(frame, seen)) for seen in first["images"]["front"]]
    np.testing.assert_array_equal(first["images"]["front"], again["images"]["front"])
    assert first["instruction"] == tuple(demonstrations[n].instruction for n in drawn)
    others = [tuple(world.reset(seed=seed)[0]["instruction"]) for seed in range(8)]
    assert len(set(others)) > 1


# Partial resets, as gymnasium means them


def mask(*rows):
    return np.isin(np.arange(4), rows)


def held(world):
    """What simulator and reflector hold of each row, by row."""
    kept = [*vars(world._simulated).items(), *vars(world._reflected).items()]
    return {int(row): {name: values[place].clone() for name, values in kept} for place, row in enumerate(world._moving)}


@pytest.mark.parametrize("rows", [(1,), (0, 3), (2,), (0, 1, 2, 3), ()])
def test_a_partial_reset_touches_no_other_row(world, demonstrations, rows):
    """Not a bit of what the others show, remember or still have to play; the named rows are as after any reset."""
    first = [history(episode, moment) for episode, moment in zip(demonstrations, (0, 4, 2, 8))]
    after = play(world, first, until=1)[0][0]
    before, left = held(world), world._time.copy()
    fresh = [history(demonstrations[row], 1) for row in rows]
    observation, info = world.reset(options={"reset_mask": mask(*rows), "histories": fresh})
    assert info["alive"].all() and world._moving.tolist() == [0, 1, 2, 3] and observation in world.observation_space
    for row in set(range(4)) - set(rows):
        np.testing.assert_array_equal(observation["images"]["front"][row], after["images"]["front"][row])
        np.testing.assert_array_equal(observation["state"][row], after["state"][row])
        assert observation["instruction"][row] == after["instruction"][row] and world._time[row] == left[row]
        assert all(torch.equal(held(world)[row][name], value) for name, value in before[row].items())
    moved = world.step(chunks(7))
    whole = [fresh[rows.index(row)] if row in rows else first[row] for row in range(4)]
    world.reset(options={"histories": whole})
    if not rows:
        return
    alone = world.step(chunks(7))  # the named rows are where a reset of all puts them
    for row in rows:
        np.testing.assert_allclose(moved[4]["states"][row], alone[4]["states"][row], atol=1e-5)
        assert np.abs(moved[4]["frames"]["front"][row].astype(int) - alone[4]["frames"]["front"][row]).max() <= 1


def test_rows_that_ended_begin_anew_beside_those_that_go_on(world, demonstrations):
    """The loop of a user: every row's frames and scores are those of its episodes played alone."""
    lengths = (12, 0, 8, 4)  # the horizon is 16: they end after 1, 4, 2 and 3 chunks
    parts, played = {row: [] for row in range(4)}, {row: [] for row in range(4)}
    current = {row: history(demonstrations[row], lengths[row]) for row in range(4)}
    world.reset(options={"histories": list(current.values())})
    for step in range(6):
        given = chunks(step)
        _, reward, terminated, truncated, info = world.step(given)
        assert info["alive"].all()
        over = terminated | truncated
        for row in range(4):
            played[row].append((given[row], info["frames"]["front"][row], info["scores"][row]))
            if over[row]:
                parts[row].append((current[row], played.pop(row), reward[row]))
                current[row], played[row] = history(demonstrations[row], 4 * (step % 3)), []
        if over.any():
            world.reset(options={"reset_mask": over, "histories": [current[row] for row in np.flatnonzero(over)]})
    assert sorted(len(episodes) for episodes in parts.values()) >= [1, 1, 1, 2]
    for one, steps, reward in (episode for episodes in parts.values() for episode in episodes):
        world.reset(options={"histories": [one]})
        for given, frames, scores in steps:
            *_, info = world.step(np.stack([given] * 4))
            assert np.abs(info["frames"]["front"][0].astype(int) - frames).max() <= 1
            np.testing.assert_allclose(info["scores"][0], scores, atol=1e-3)
        assert not info["alive"][1:].any() and reward == pytest.approx(scores[-1])


def test_a_partial_reset_freezes_the_named_rows_that_no_history_is_left_for(world, demonstrations):
    world.reset(seed=0)
    observation, info = world.reset(options={"reset_mask": mask(0, 2, 3), "histories": [history(demonstrations[2])]})
    assert info["alive"].tolist() == [True, True, False, False] and observation["instruction"][2:] == ("", "")
    assert world.step(chunks())[4]["alive"].tolist() == [True, True, False, False]
    world.reset(options={"reset_mask": mask(0, 1), "histories": []})
    assert not world.step(chunks())[4]["alive"].any()
    assert world.reset(options={"reset_mask": mask(3)})[1]["alive"].tolist() == [False, False, False, True]  # drawn from the pool


def test_next_step_autoreset(simulator, reflector, demonstrations):
    """As gymnasium defines it: the step after an end begins the next episode, whatever the action, with reward 0 and no flag."""
    reflector.threshold.fill_(2.0)
    pool = [history(demonstrations[0], 12), history(demonstrations[2], 8)]  # one chunk, two chunks
    world = WorldEnv(simulator, reflector, WorldEnvConfig(rows=2, horizon=16), pool, autoreset_mode="NextStep")
    assert world.metadata["autoreset_mode"] is world.autoreset_mode is AutoresetMode.NEXT_STEP
    statistics = RecordEpisodeStatistics(world)
    statistics.reset(seed=1, options={"histories": pool})
    ended, seen = np.zeros(2, bool), []
    for step in range(8):
        given = chunks(step, rows=2)
        given[ended] = np.nan  # not looked at
        observation, reward, terminated, truncated, info = statistics.step(given)
        np.testing.assert_array_equal(info["alive"], ~ended)
        for row in np.flatnonzero(ended):
            assert any(np.array_equal(observation["images"]["front"][row], one.frames[-1]) for one in pool)
            assert reward[row] == 0 and not terminated[row] and not truncated[row]
        ended = terminated | truncated
        seen.append(ended.tolist())
    assert seen[0] == [True, False] and seen[1] == [False, True] and seen[2][1] is False and statistics.episode_count >= 5
    assert set(statistics.length_queue) == {1, 2}


def test_it_renders_the_last_frames(simulator, reflector, demonstrations):
    pool = [history(episode) for episode in demonstrations]
    world = WorldEnv(simulator, reflector, WorldEnvConfig(rows=4, horizon=16), pool, render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="render before reset"):
        world.render()
    observation, _ = world.reset(seed=0)
    for _ in range(2):
        pictures = world.render()
        assert isinstance(pictures, tuple) and len(pictures) == 4 and all(one.shape == (32, 32, 3) and one.dtype == np.uint8 for one in pictures)
        np.testing.assert_array_equal(np.stack(pictures), observation["images"]["front"])
        observation, *_ = world.step(chunks())
    assert WorldEnv(simulator, reflector, WorldEnvConfig(), pool).render() is None


def test_what_a_caller_gets_wrong_is_told_in_a_line(world, simulator, reflector, demonstrations):
    """And changes nothing."""
    one = history(demonstrations[0])
    with pytest.raises(ResetNeeded, match=r"step before reset: call reset\(\) first"):
        world.step(chunks())
    world.reset(seed=0)
    held_before = held(world)
    broken = {value: chunks() for value in (np.nan, np.inf, -np.inf)}
    for value, given in broken.items():
        given[2, 1, 3] = value
    small = History(np.zeros((1, 16, 16, 3), np.uint8), one.states, one.actions, one.instruction)
    for call, error, message in (
        (lambda: world.step(chunks(rows=3)), ValueError, r"actions have shape \(3, 4, 4\), expected \(4, 4, 4\)"),
        (lambda: world.step(chunks()[:, 0]), ValueError, r"actions have shape \(4, 4\), expected \(4, 4, 4\)"),
        (lambda: world.step([["left"]]), ValueError, "actions are not an array of numbers"),
        *((lambda given=given: world.step(given), ValueError, f"actions of row 2 hold {value}, expected finite") for value, given in broken.items()),
        (lambda: world.reset(options={"histories": [one] * 5}), ValueError, "5 histories for 4 rows"),
        (lambda: world.reset(options={"reset_mask": mask(1), "histories": [one] * 2}), ValueError, "2 histories for 1 rows"),
        (lambda: world.reset(options={"histories": [one, small]}), ValueError, r"history 1 has frames \(1, 16, 16, 3\) uint8"),
        (lambda: world.reset(options={"reset_mask": np.ones(3, bool)}), ValueError, r"shape \(3,\) and type bool, expected \(4,\) and bool"),
        (lambda: world.reset(options={"reset_mask": np.ones(4)}), ValueError, r"shape \(4,\) and type float64, expected \(4,\) and bool"),
        (lambda: WorldEnv(simulator, reflector, world.config, []).reset(), ValueError, "the pool is empty"),
        (lambda: WorldEnv(simulator, reflector, world.config, [], render_mode="human"), ValueError, "render_mode is 'human'"),
        (lambda: WorldEnv(simulator, reflector, world.config, [], autoreset_mode="SameStep"), ValueError, "expected DISABLED or NEXT_STEP"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    for row, values in held(world).items():
        assert all(torch.equal(values[name], value) for name, value in held_before[row].items())
    world.reset(options={"histories": [one]})
    given = chunks()
    given[1:] = np.nan
    world.step(given)  # of rows that do not move nothing is asked
    world.close()
    with pytest.raises(ClosedEnvironmentError):
        world.step(chunks())


def test_actions_beyond_their_range_are_clipped(world, demonstrations):
    histories = [history(episode) for episode in demonstrations]
    found = []
    for scale in (1, 5):
        world.reset(options={"histories": histories})
        found.append(world.step(scale * np.sign(chunks()))[4]["states"])
    np.testing.assert_array_equal(*found)


def test_imagining_builds_no_graph(world, demonstrations):
    world.reset(options={"histories": [history(demonstrations[0])]})
    world.step(chunks())
    assert not any(value.requires_grad for value in vars(world._simulated).values())
    assert not world._reflected.best.requires_grad and not world.simulator.training and not world.reflector.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda one: {"frames": one.frames[:0]}, "has frames"),
        (lambda one: {"frames": one.frames.astype(np.float32)}, "has frames .* float32, expected .* uint8"),
        (lambda one: {"frames": one.frames.repeat(2, 0)}, "has states"),
        (lambda one: {"actions": one.actions.astype(np.float64)}, "has actions .* float64, expected .* float32"),
        (lambda one: {"states": one.states * np.nan}, "not finite"),
        (lambda one: {"instruction": None}, "expected a History whose instruction is text"),
    ],
)
def test_a_history_that_does_not_fit_changes_nothing(world, demonstrations, change, told):
    world.reset(seed=0)
    world.step(chunks(0))
    before = [frame.tobytes() for frame in world._frame]
    one = history(demonstrations[0])
    with pytest.raises(ValueError, match=told):
        world.reset(options={"histories": [one, History(**(vars(one) | change(one)))]})
    assert [frame.tobytes() for frame in world._frame] == before and world.step(chunks(1))[4]["alive"].all()


@pytest.mark.parametrize(
    "actions", [torch.zeros(4, 4, 4, requires_grad=True), torch.zeros(4, 4, 4, dtype=torch.bfloat16), np.zeros((4, 4, 4), complex)]
)
def test_actions_that_are_no_plain_numbers(world, actions):
    world.reset(seed=0)
    with pytest.raises(ValueError, match="actions are not an array of numbers"):
        world.step(actions)
    assert world.step(torch.zeros(4, 4, 4, dtype=torch.float64))[4]["alive"].all()
