"""Reinforcement in imagination: the objective by hand, what may be trained, where it begins, when it stops, and that it climbs."""

import numpy as np
import pytest
import torch
from toy_world import TASKS, UP, Recorded, adapted, climbing_world, config, episode, moved, untrained_world, update, weights

from worldenv_cli.artifacts import Checkpoint
from worldenv_cli.errors import UserError
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.observation import Observation
from worldenv_cli.post_train import loop
from worldenv_cli.post_train.acceptance import choose
from worldenv_cli.post_train.filtered import successes
from worldenv_cli.post_train.gate import GateConfig, errors_on, gate, judged
from worldenv_cli.post_train.loop import chunk_kl
from worldenv_cli.post_train.objective import clipped_objective, leave_one_out
from worldenv_cli.post_train.rollouts import imagine
from worldenv_cli.post_train.rounds import closed_observations, imagined_success
from worldenv_cli.post_train.starts import history_until, start_pool
from worldenv_cli.reflector.calibration import Scored


@pytest.fixture(scope="session")
def untrained(mini, simulator_config):
    torch.manual_seed(0)
    return untrained_world(mini, simulator_config, CompactPolicy(mini.policy).eval())


# The objective


def test_leave_one_out_by_hand_and_by_brute_force():
    np.testing.assert_allclose(leave_one_out(np.array([1.0, 0.0, 0.0]), np.zeros(3, int)), [1, -0.5, -0.5])
    rng = np.random.default_rng(0)
    group = np.array([0, 3, 1, 1, 0, 3, 3, 0, 2, 3])  # sizes 3, 2, 1, 4, in disorder
    reward = rng.random(10)
    wanted = [reward[i] - np.mean([reward[j] for j in range(10) if group[j] == group[i] and j != i] or [reward[i]]) for i in range(10)]
    found = leave_one_out(reward, group)
    assert found.dtype == np.float32 and found[8] == 0
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_equal_rewards_give_advantages_of_exactly_zero(kind):
    """Not of rounding noise, which Adam would turn into whole steps."""
    group = np.array([0, 2, 2, 0, 4, 0, 2, 2, 2, 0, 4, 4, 1])
    for value in (0.0, 0.1, 1 / 3, 0.7, 0.95, 1.0):
        assert not leave_one_out(np.full(len(group), value, kind), group).any()
    reward = np.where(group == 2, 0.1, np.arange(13) / 13).astype(kind)
    found = leave_one_out(reward, group)
    assert not found[(group == 2) | (group == 1)].any() and (found[(group == 0) | (group == 4)] != 0).sum() >= 6


def objective(ratio, advantage, played, clip=0.2):
    """(loss, gradient with respect to the log probability, figures) for given ratios (N, T)."""
    old = torch.full((len(ratio), len(ratio[0])), -1.3)
    new = (old + torch.tensor(ratio).log()).requires_grad_()
    loss, figures = clipped_objective(new, old, torch.tensor(advantage), torch.tensor(played), clip)
    loss.backward()
    return loss.item(), new.grad.numpy(), figures


def test_clipped_objective_by_hand():
    """Better than clipped counts as clipped, without a gradient; worse counts in full."""
    ratio = [[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]]
    loss, gradient, figures = objective(ratio, [2.0, -1.0], [[True] * 3] * 2)
    assert loss == pytest.approx(-(2 * (1 + 1.2 + 0.5) - (1 + 1.5 + 0.8)) / 6)
    np.testing.assert_allclose(gradient, -np.array([[2, 0, 1], [-1, -1.5, 0]]) / 6, atol=1e-6)
    assert figures == {"clip_fraction": pytest.approx(4 / 6), "ratio_max": pytest.approx(1.5)}


def test_steps_that_were_not_played_do_not_count():
    ratio = [[1.1, 1.5, 0.5], [0.9, 9.0, 9.0]]
    loss, gradient, figures = objective(ratio, [2.0, -1.0], [[True, True, False], [True, False, False]])
    assert loss == pytest.approx(-(2 * (1.1 + 1.2) - 0.9) / 3)
    np.testing.assert_allclose(gradient, -np.array([[2.2, 0, 0], [-0.9, 0, 0]]) / 3, atol=1e-6)
    assert figures == {"clip_fraction": pytest.approx(1 / 3), "ratio_max": pytest.approx(1.5)}


def test_gradient_of_an_unmoved_policy_is_the_policy_gradient():
    _, gradient, figures = objective([[1.0, 1.0], [1.0, 1.0]], [0.5, -0.25], [[True, True], [True, True]])
    np.testing.assert_allclose(gradient, -np.array([[0.5, 0.5], [-0.25, -0.25]]) / 4, atol=1e-7)
    assert figures["clip_fraction"] == 0


# Which tasks, from where


def scored(scores, success, task="t"):
    return Scored(task, np.array([0.0, *scores], np.float32), np.array([False, *success], bool))


WON, LOST = [False, True, True], [False, False, False]
SURE = [scored([0.1, 0.9, 0.2], WON), scored([0.1, 0.8, 0.9], WON), scored([0.1, 0.1, 0.1], LOST), scored([0.2, 0.1, 0.2], LOST)]


def relabelled(*wins):
    return [scored([0.1, 0.9, 0.9] if won else [0.1] * 3, WON if won else LOST) for won in wins]


@pytest.mark.parametrize("scores, wanted", [([0.1, 0.7, 0.9], 0.7), ([0.1, 0.2, 0.3], 0.3), ([0.9, 0.1, 0.1], 0.9), ([0.4, 0.5, 0.1], 0.5)])
def test_judged_is_what_imagination_would_reward(scores, wanted):
    assert judged(scored(scores, LOST), 0.5) == pytest.approx(wanted)
    assert judged(Scored("t", np.array([0.9, 0.1, 0.2]), np.zeros(3, bool)), 0.5) == pytest.approx(0.2)  # a start is no success


def test_gate_opens_where_both_models_agree_with_the_truth():
    (row,) = gate(SURE, SURE, 0.5, ["t"], GateConfig())
    assert row["open"] and row["n"] == 4 and row["real_success"] == 0.5 and row["auc_imagined"] == 1
    assert row["reflector_on_real"] == row["reflector_on_imagined"] == pytest.approx((0.9 + 0.8 + 0.1 + 0.2) / 4)


@pytest.mark.parametrize(
    "real, imagined, reason",
    [
        (relabelled(0, 0, 0, 0), relabelled(0, 0, 0, 0), "no signal"),
        (relabelled(1, 1, 1, 1), relabelled(1, 1, 1, 1), "no room"),
        ([scored([0.1, 0.9, 0.9], s.success[1:]) for s in SURE], SURE, "it would be exploited"),
        (SURE, [scored([0.1, 0.9, 0.9], s.success[1:]) for s in SURE], "the simulator would be exploited"),
        (SURE, [scored(o.scores[1:], s.success[1:]) for s, o in zip(SURE, SURE[::-1])], "AUC 0.00"),
    ],
)
def test_gate_closes(real, imagined, reason):
    (row,) = gate(real, imagined, 0.5, ["t"], GateConfig())
    assert not row["open"] and reason in row["reason"] and row["n"] == 4


def test_errors_of_the_open_tasks_leave_the_closed_ones_out():
    """A reflector that is right on the open task and wrong on the closed one has no errors where it is used."""
    wrong = [scored([0.9] * 3, LOST, "closed"), scored([0.1] * 3, [False, False, True], "closed")]
    real, imagined = errors_on(["t"], {"real": SURE + wrong, "imagined": SURE + wrong}, 0.5)
    assert (real["frames"], imagined["frames"]) == ("real", "imagined") and real["auc"] == 1 and real["n_episodes"] == len(SURE)
    assert errors_on(["t", "closed"], {"real": SURE + wrong}, 0.5)[0]["auc"] < 1
    assert errors_on([], {"real": SURE}, 0.5) == []


def test_gate_row_by_row():
    """A task without episodes is closed, one with a single class has no AUC and is closed; others do not suffer."""
    failures = [scored([0.1] * 3, LOST, "lost") for _ in range(3)]
    rows = gate(failures + SURE, failures + SURE, 0.5, ["none", "t", "lost"], GateConfig(success_min=0))
    assert [(row["task"], row["n"], row["open"]) for row in rows] == [("none", 0, False), ("t", 4, True), ("lost", 3, False)]
    assert "no unseen" in rows[0]["reason"] and "no AUC" in rows[2]["reason"]


def test_the_candidate_with_the_most_successes_is_chosen_and_of_equals_the_last():
    found = {"sft": (2, 3, 1), "start": (3, 2, 1), "tuned": (3, 1, 0)}
    counts = {name: {task: {"successes": n, "n": 5} for task, n in zip("abc", numbers)} for name, numbers in found.items()}
    assert [choose(counts, task, ["sft", "start", "tuned"]) for task in "abc"] == ["tuned", "sft", "start"]
    assert [choose(counts, task, ["sft", "start"]) for task in "abc"] == ["start", "sft", "start"]  # a task that was closed


@pytest.mark.parametrize("reached, last", [(16, 12), (24, 20), (9, 5), (None, 12)])
def test_middle_starts_lie_before_the_end(reached, last):
    """From the second chunk to a chunk before the first success; a failure counts for two thirds."""
    played = episode(24, reached, size=4)
    pool = start_pool([played], [], "front", 4, seed=0, per_episode=100)
    histories = pool.middle["up"]
    assert sorted(len(h.actions) for h in histories) == list(range(4, last + 1))
    for h in histories:
        moment = len(h.actions)
        assert len(h.frames) == len(h.states) == moment + 1 and not played.success[moment] and h.instruction == UP
        np.testing.assert_array_equal(h.frames, played.frames["front"][: moment + 1])
        np.testing.assert_array_equal(h.states, played.states[: moment + 1])
        np.testing.assert_array_equal(h.actions, played.actions[:moment])


def test_pool_by_task():
    episodes = [episode(24, 20, size=4), episode(24, None, "down", size=4), episode(8, 6, size=4)]  # the last leaves no room for a middle
    resets = [("down", history_until(episode(8, size=4, task="down", seed=s), "front", 0)) for s in range(5)]
    pool = start_pool(episodes, resets, "front", 4, seed=0)
    assert {task: len(found) for task, found in pool.first.items()} == {"up": 2, "down": 6}
    assert {task: len(found) for task, found in pool.middle.items()} == {"up": 3, "down": 3}
    assert all(len(h.frames) == 1 and len(h.actions) == 0 for found in pool.first.values() for h in found)
    assert len({len(h.actions) for h in pool.middle["up"]}) == 3
    again = start_pool(episodes, resets, "front", 4, seed=0)
    assert [len(h.actions) for h in again.middle["up"]] == [len(h.actions) for h in pool.middle["up"]]
    rng = np.random.default_rng(0)
    assert len(pool.draw("up", True, rng).actions) >= 4 and len(pool.draw("up", False, rng).actions) == 0
    pool.middle.clear()
    assert len(pool.draw("up", True, rng).actions) == 0  # nothing in the middle: from the beginning


def test_what_is_cloned_and_what_is_held():
    episodes = [episode(24, 20, size=4), episode(24, None, "down", size=4), episode(8, 6, size=4)]
    assert successes(episodes) == [episodes[0], episodes[2]]
    held = closed_observations(episodes, ["up"], ["front"])
    assert len(held.state) == len(held.images["front"]) == len(held.instruction) == 8 + 3 and set(held.instruction) == {UP}
    assert closed_observations(episodes, ["other"], ["front"]) is None


# Updates


def test_groups_and_decisions(untrained):
    """Five groups of four in sixteen rows: two batches, numbered through."""
    histories = untrained.pool.first["up"] + untrained.pool.middle["up"][:3]
    rollouts = imagine(untrained.env, adapted(untrained.policy), histories, 4, torch.Generator().manual_seed(0))
    assert rollouts.group.tolist() == np.repeat(range(5), 4).tolist() and len(rollouts.reward) == len(rollouts.stopped) == 20
    assert rollouts.reward.std() > 0 and not rollouts.stopped.any()
    left = np.repeat([24 - len(h.actions) for h in histories], 4)  # to the horizon, which need not lie between two chunks
    assert np.bincount(rollouts.episode, weights=rollouts.played.sum(1)).tolist() == left.tolist()
    chunks = [-(-(24 - len(h.actions)) // 4) for h in histories]
    assert np.bincount(rollouts.episode).tolist() == np.repeat(chunks, 4).tolist()
    assert len(rollouts.trace["sampled"]) == rollouts.decisions == len(rollouts.log_prob) == len(rollouts.observation.state) == 4 * sum(chunks)
    assert rollouts.control_steps == 16 * sum(chunks)
    first = [np.flatnonzero(rollouts.episode == e)[0] for e in range(20)]
    for e, row in enumerate(first):  # every episode begins where its group does
        np.testing.assert_array_equal(rollouts.observation.images["front"][row], histories[e // 4].frames[-1])


def test_nothing_moves_without_advantages(untrained):
    policy = adapted(untrained.policy)
    before = weights(policy)
    result = update(untrained, policy, config(advantage_scale=0.0, updates=2, epochs=2))
    assert moved(before, policy) == [] and result["updates"] == 2 and result["history"][-1]["kl"] == pytest.approx(0, abs=1e-6)
    assert result["history"][0]["advantage_spread"] == 0


def test_only_adapter_and_heads_move(untrained):
    policy = adapted(untrained.policy)
    before = weights(policy)
    result = update(untrained, policy, config())
    names = moved(before, policy)
    assert names and all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("lora_" in n for n in names) and any("action_head" in n for n in names) and any("scale_head" in n for n in names)
    assert result["stopped_because"] == "all updates done" and result["history"][0]["kl"] > 0
    obs = observation(untrained)
    torch.testing.assert_close(policy.reference_density(policy.reference_encode(obs), {}).mean, means(untrained.policy, obs), rtol=0, atol=1e-5)


def means(policy, obs):
    with torch.no_grad():
        return policy.density(policy.encode(obs), {}).mean


def observation(world, rows=8):
    played = world.episodes[0]
    return Observation({"front": played.frames["front"][:rows]}, played.states[:rows], [UP] * rows)


def test_an_update_makes_what_was_better_likelier(untrained, monkeypatch):
    seen, policy = [], adapted(untrained.policy)
    monkeypatch.setattr(loop, "imagine", lambda *a, **k: seen.append(imagine(*a, **k)) or seen[-1])
    result = update(untrained, policy, config())
    (rollouts,) = seen
    advantage = leave_one_out(rollouts.reward, rollouts.group)[rollouts.episode]
    assert advantage.std() > 1e-3
    with torch.no_grad():
        now = policy.log_prob(rollouts.observation, rollouts.trace).numpy()
    assert (advantage[:, None] * (now - rollouts.log_prob))[rollouts.played].mean() > 0
    assert result["history"][0]["ratio_max"] == pytest.approx(1, abs=1e-3)  # the first step was taken from the policy that acted


@pytest.mark.parametrize("check_every", [1, 2])
def test_gain_cap_closes_tasks_and_ends_the_round(untrained, check_every):
    policy = adapted(untrained.policy)
    result = update(untrained, policy, config(updates=4, check_every=check_every), baseline={"up": -2.0, "down": -2.0})
    assert result["updates"] == check_every and result["capped"] == ["up", "down"] and "cap" in result["stopped_because"]


def test_a_capped_task_gets_no_more_groups(untrained):
    pool = Recorded(untrained.pool)
    result = update(untrained, adapted(untrained.policy), config(updates=3), baseline={"up": -2.0, "down": 2.0}, pool=pool)
    assert result["capped"] == ["up"] and result["updates"] == 3
    both = [("up", False), ("down", False), ("up", True), ("down", True)]
    assert pool.tasks[:4] == both  # half of each task's groups begin in the middle
    assert pool.tasks[4:8] == pool.tasks[8:] == [("down", False), ("down", True)] * 2


def test_kl_budget_ends_the_round(untrained):
    policy = adapted(untrained.policy)
    result = update(untrained, policy, config(updates=4, kl_budget=1e-9))
    assert result["updates"] == 1 and "KL budget" in result["stopped_because"]


def test_loss_that_is_no_number_stops(untrained):
    policy = adapted(untrained.policy)
    with torch.no_grad():
        policy.policy.state_std.fill_(float("nan"))
    with pytest.raises(UserError, match="finite"):
        update(untrained, policy, config(anchor=1.0))


def test_resumed_updates_are_identical(untrained, tmp_path):
    """Cut off in the third update, with the anchor's and the simulator's noise in play; the caps' memory comes back too."""
    settings = config(updates=4, anchor=0.1, check_every=3, minibatch=32)
    whole, cut, resumed = (adapted(untrained.policy) for _ in range(3))
    expected = update(untrained, whole, settings, baseline={"up": -2.0, "down": 2.0})
    with pytest.raises(KeyboardInterrupt):
        update(untrained, cut, settings, pool=Recorded(untrained.pool, 9), baseline={"up": -2.0, "down": 2.0}, checkpoint=Checkpoint(tmp_path))
    found = update(untrained, resumed, settings, baseline={"up": -2.0, "down": 2.0}, checkpoint=Checkpoint(tmp_path))
    assert moved(weights(whole), resumed) == []
    clocks = {"seconds", "steps_per_second"}
    assert [{k: v for k, v in h.items() if k not in clocks} for h in found["history"]] == [
        {k: v for k, v in h.items() if k not in clocks} for h in expected["history"]
    ]
    assert found["capped"] == expected["capped"] == ["up"]


def test_closed_tasks_are_held(untrained):
    """The more the closed tasks' KL weighs, the less they move."""
    closed = closed_observations(untrained.episodes, ["down"], ["front"])
    found = []
    for hold in (0.0, 100.0):
        policy = adapted(untrained.policy)
        update(untrained, policy, config(updates=2, hold=hold, minibatch=16), tasks=("up",), closed=closed)
        found.append(chunk_kl(policy, closed, {}, {}))
    assert found[1] < 0.5 * found[0]


def test_anchor_pulls_towards_successes(untrained):
    from worldenv_cli.policies.sft import sft_loss

    def error(policy):
        with torch.no_grad():
            every = np.arange(len(untrained.samples))
            plain = untrained.sft.model_copy(update={"shift": 0, "state_noise": 0.0})
            return sft_loss(policy.policy, untrained.samples, every, plain, np.random.default_rng(0)).item()

    policy = adapted(untrained.policy)
    before = error(policy)
    result = update(untrained, policy, config(updates=2, anchor=1.0, advantage_scale=0.0, minibatch=16))
    assert error(policy) < before and result["history"][0]["anchor"] > 0


# A world in which climbing is easy: the hand goes where it is sent, and the judge looks how high it is


def test_the_reward_rises(untrained):
    """Both tasks, which want opposite things: the sign of the update and who gets which reward are right."""
    world, policy = climbing_world(untrained), adapted(untrained.policy)
    before = imagined_success(policy, world.env, world.pool, list(TASKS), 1, 0)
    update(world, policy, config(updates=15, starts=4, group=16, backbone_rate=3e-3, head_rate=3e-3, minibatch=64))
    after = imagined_success(policy, world.env, world.pool, list(TASKS), 1, 0)
    assert all(after[task] > before[task] + 0.1 for task in TASKS), (before, after)
