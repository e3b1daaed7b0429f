"""The real evaluation's arithmetic on hand-made episodes, and starts that no two purposes share."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv_cli.data.dataset import Episode
from worldenv_cli.envs.starts import PURPOSES, starts
from worldenv_cli.evaluation.protocol import arm, by_task, compare, outcomes, stopping
from worldenv_cli.evaluation.statistics import newcombe_paired, wilson

TASKS = ["drawer", "button", "drawer", "button", "drawer", "button"]
A = np.array([True, False, False, False, True, True])
B = np.array([True, True, False, True, True, False])


def episode(succeeding, task="drawer"):
    """T + 1 frames, given whether the task stands achieved at each."""
    flags = np.array(succeeding, bool)
    frames = np.zeros((len(flags), 8, 8, 3), np.uint8)
    info = {"task": task, "succeeding": flags.astype(int).tolist()}
    states, actions = np.zeros((len(flags), 4), np.float32), np.zeros((len(flags) - 1, 4), np.float32)
    return Episode({"front": frames}, states, actions, np.logical_or.accumulate(flags), f"do {task}", info)


def reflector(*scores, threshold=0.5):
    """One that gives these scores to these episodes, in order."""

    def score_episodes(frames, instructions):
        assert [len(f) for f in frames] == [len(s) for s in scores] and len(instructions) == len(scores)
        return [np.array(s, np.float32) for s in scores]

    return SimpleNamespace(config=SimpleNamespace(camera="front"), threshold=torch.tensor(threshold), score_episodes=score_episodes)


ACHIEVED_AND_UNDONE = episode([0, 0, 1, 0, 0])
NEVER = episode([0, 0, 0, 0, 0])
AT_THE_END = episode([0, 0, 0, 0, 1])


def stopped(found, scores, threshold=0.5):
    result = stopping([found], reflector(scores, threshold=threshold))
    counts = {name: (result[name]["successes"], result[name]["n"]) for name in ("at_reflector_stop", "at_horizon", "false_stop")}
    return *counts.values(), result["mean_stop"]


@pytest.mark.parametrize(
    "found, scores, wanted",
    [
        # the stop keeps what the horizon loses; the first frame's score stops nothing
        (ACHIEVED_AND_UNDONE, [0.9, 0.1, 0.6, 0.9, 0.1], ((1, 1), (0, 1), (0, 1), 2)),
        # a stop after the task was undone does not count: it must stand, as it must at the horizon
        (ACHIEVED_AND_UNDONE, [0.0, 0.1, 0.1, 0.6, 0.1], ((0, 1), (0, 1), (1, 1), 3)),
        (ACHIEVED_AND_UNDONE, [0.0, 0.6, 0.9, 0.9, 0.9], ((0, 1), (0, 1), (1, 1), 1)),  # too early
        (NEVER, [0.0, 0.1, 0.1, 0.9, 0.1], ((0, 1), (0, 1), (1, 1), 3)),
        (NEVER, [0.9, 0.1, 0.1, 0.1, 0.1], ((0, 1), (0, 1), (0, 0), 4)),
        (AT_THE_END, [0.0, 0.1, 0.1, 0.1, 0.1], ((1, 1), (1, 1), (0, 0), 4)),  # never stopped: played to the horizon
        (AT_THE_END, [0.0, 0.1, 0.5, 0.1, 0.1], ((0, 1), (1, 1), (1, 1), 2)),  # at the threshold is past it
    ],
)
def test_stopping(found, scores, wanted):
    assert stopped(found, scores) == wanted


def test_stopping_counts_over_episodes():
    found = [ACHIEVED_AND_UNDONE, NEVER, AT_THE_END]
    result = stopping(found, reflector([0, 0, 0.6, 0, 0], [0, 0.6, 0, 0, 0], [0, 0, 0, 0, 0]))
    assert result == {
        "at_reflector_stop": {"successes": 2, "n": 3},
        "at_horizon": {"successes": 1, "n": 3},
        "false_stop": {"successes": 1, "n": 2},
        "mean_stop": pytest.approx((2 + 1 + 4) / 3),
    }
    json.dumps(result)


def test_stopping_by_a_real_reflector(mini):
    """Whatever it says, the counts are counts of these episodes; a threshold that nothing passes leaves them as they were."""
    from worldenv_cli.reflector.compact import Reflector

    torch.manual_seed(0)
    judge = Reflector(mini.reflector)
    found = [episode([0, 0, 1, 0, 0]), episode([0, 0, 1])]
    for e in found:
        e.frames["front"] = np.zeros((len(e.states), 32, 32, 3), np.uint8)
    judge.threshold.fill_(1.1)
    result = stopping(found, judge)
    assert (
        result["false_stop"]["n"] == 0
        and result["at_reflector_stop"] == result["at_horizon"] == {"successes": 1, "n": 2}
        and result["mean_stop"] == 3
    )
    judge.threshold.fill_(0.0)
    result = stopping(found, judge)
    assert result["false_stop"] == {"successes": 2, "n": 2} and result["mean_stop"] == 1


def test_outcomes_and_counts_by_task():
    found = outcomes([ACHIEVED_AND_UNDONE, NEVER, AT_THE_END])
    assert found.dtype == bool and found.tolist() == [True, False, True]
    assert by_task(TASKS, A) == {"drawer": {"successes": 2, "n": 3}, "button": {"successes": 1, "n": 3}}
    assert list(by_task(["z", "a", "z"], np.ones(3, bool))) == ["z", "a"]  # the recipe's order


def test_arm():
    row = arm("SFT", TASKS, A, 1234, at_horizon={"successes": 1, "n": 6})
    assert row["name"] == "SFT" and row["real_environment_steps"] == 1234 and row["at_horizon"] == {"successes": 1, "n": 6}
    assert row["outcomes"] == A.tolist() and row["tasks"] == by_task(TASKS, A)
    interval = wilson(3, 6)
    assert row["pooled"] == {"successes": 3, "n": 6, "estimate": 0.5, "low": interval.low, "high": interval.high}
    assert json.loads(json.dumps(row)) == row


def test_compare():
    found = compare(arm("a", TASKS, A, 0), arm("b", TASKS, B, 0), TASKS)
    assert (found["a"], found["b"]) == ("a", "b")
    assert found["per_task"] == {
        "drawer": {"both": 2, "only_a": 0, "only_b": 0, "neither": 1},
        "button": {"both": 0, "only_a": 1, "only_b": 2, "neither": 0},
    }
    assert found["difference"] == newcombe_paired(A, B)._asdict() and found["difference"]["estimate"] == pytest.approx(1 / 6)
    assert found["mcnemar_p"] == pytest.approx(1.0)  # 1 against 2 of 3
    back = compare(arm("b", TASKS, B, 0), arm("a", TASKS, A, 0), TASKS)
    assert back["difference"]["low"] == pytest.approx(-found["difference"]["high"])
    json.dumps(found)


def test_compare_refuses_arms_of_other_starts():
    with pytest.raises((ValueError, IndexError)):
        compare(arm("a", TASKS, A, 0), arm("b", TASKS[:4], B[:4], 0), TASKS)


def numbers(purpose, **options):
    return {number for _, number in starts(purpose, ["a", "b"], 1000, **options)}


def test_starts_of_two_purposes_or_seeds_or_rounds_never_meet():
    """Offsets as the rounds use them: 1000 for each, fewer than ten."""
    for a, b in itertools.combinations(PURPOSES, 2):
        one, other = (set().union(*(numbers(p, offset=o, run_seed=s) for o in (0, 9000) for s in (0, 1, 99, 100, 12345))) for p in (a, b))
        assert one.isdisjoint(other), (a, b)
    for purpose in set(PURPOSES) - {"evaluation", "development"}:
        ranges = [numbers(purpose, offset=o, run_seed=s) for o, s in itertools.product((0, 1000, 9000), (0, 1, 2))]
        assert sum(map(len, ranges)) == len(set().union(*ranges)), purpose


def test_run_seed_moves_all_but_the_evaluation():
    for purpose in PURPOSES:
        moved = starts(purpose, ["a"], 3, run_seed=1) != starts(purpose, ["a"], 3, run_seed=2)
        assert moved == (purpose not in ("evaluation", "development")), purpose
    assert starts("evaluation", ["a", "b"], 2, offset=5) == [("a", 9_000_005), ("b", 9_000_005), ("a", 9_000_006), ("b", 9_000_006)]
