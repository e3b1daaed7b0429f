"""Another wording is not another policy."""

import copy

import numpy as np
import pytest
import torch
from test_merged import nudged

from worldenv_cli.errors import UserError
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.observation import Observation
from worldenv_cli.policies.wording import nearest
from worldenv_cli.post_train.acceptance import default_member

CLOSE, PRESS = "close the drawer", "press the coffee button"


@pytest.mark.parametrize(
    "wording, known",
    [
        (CLOSE, CLOSE),
        ("Close the drawer.", CLOSE),
        (" close  the drawer\n", CLOSE),
        ("CLOSE THE DRAWER!", CLOSE),
        ("close drawer", CLOSE),
        ("Could you please close the drawer now?", CLOSE),
        ("close the drawr", CLOSE),
        ("slowly close the top drawer", CLOSE),
        ("press the button", PRESS),
        ("press a coffee-button", PRESS),
        ("open the drawer", None),
        ("press the red switch", None),
        ("water the plants", None),
        ("the", None),
        ("", None),
    ],
)
def test_the_nearest_known_instruction(wording, known):
    assert nearest(wording, [CLOSE, PRESS]) == known


@pytest.mark.parametrize(
    "wording, known", [("close the top drawer of the cabinet", None), ("turn off the stove", None), ("open the top drawer of a cabinet", "first")]
)
def test_the_opposite_is_never_near(wording, known):
    choices = ["open the top drawer of the cabinet", "turn on the stove"]
    assert nearest(wording, choices) == (choices[0] if known else None)


@pytest.mark.parametrize(
    "wording",
    [
        "unlock the door by turning the lock clockwise",
        "lock the door by turning the lock counterclockwise",
        "do not lock the door by turning the lock clockwise",
        "don't lock the door",
        "unstack the red block",
        "opening the large middle drawer of the wooden kitchen cabinet",
        "shut the large middle drawer of the wooden kitchen cabinet",
        "x" * 200_000,
    ],
)
def test_words_that_turn_an_instruction_around_are_no_slips(wording):
    known = ["lock the door by turning the lock clockwise", "stack the red block", "close the large middle drawer of the wooden kitchen cabinet"]
    known[2] = known[2].replace("close", "open") if wording.startswith("shut") else known[2]
    assert nearest(wording, known) is None
    assert all(nearest(one.upper(), known) == one for one in known)


def test_an_instruction_that_is_known_is_itself_although_another_has_the_same_words():
    known = ["Pick the cube", "pick the cube"]
    assert [nearest(one, known) for one in known] == known


@pytest.fixture(scope="module")
def members(mini):
    torch.manual_seed(0)
    start = CompactPolicy(mini.policy)
    return {"start": start, "tuned": nudged(copy.deepcopy(start), 1)}


def seen(config, *instructions):
    rows = len(instructions)
    images = np.random.default_rng(0).integers(0, 256, (1, config.resolution, config.resolution, 3), dtype=np.uint8).repeat(rows, 0)
    return Observation({config.camera: images}, np.zeros((rows, config.state_size), np.float32), list(instructions))


def test_another_wording_gets_the_same_member_and_is_told_once(members, capsys):
    policy = ChosenPolicy(members, {CLOSE: "tuned", PRESS: "start"}, "start")
    assert [policy.member_for(one) for one in ("Close the drawer.", " close the drawer", "press the button")] == ["tuned", "tuned", "start"]
    for _ in range(2):
        policy.act(seen(policy.config, "Close the drawer.", CLOSE), explore=False)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "'Close the drawer.' is taken for 'close the drawer': it is played by tuned" in said[0]


def test_what_is_near_none_is_played_by_the_default_with_a_warning_or_refused(members, capsys):
    policy = ChosenPolicy(members, {CLOSE: "start"}, "tuned")
    for _ in range(2):
        policy.act(seen(policy.config, "water the plants"), explore=False)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: ") and "played by tuned" in said[0]
    with pytest.raises(UserError, match="'water the plants' is near none that this policy knows .*'close the drawer'"):
        ChosenPolicy(members, {CLOSE: "start"}, None).act(seen(policy.config, "water the plants"), explore=False)


def test_a_member_that_nothing_uses_is_not_kept(members):
    assert list(ChosenPolicy(members, {CLOSE: "tuned"}, "tuned").members) == ["tuned"]
    assert list(ChosenPolicy(members, {CLOSE: "tuned"}, None).members) == ["tuned"]
    assert list(ChosenPolicy(members, {CLOSE: "tuned"}, "start").members) == ["start", "tuned"]


@pytest.mark.parametrize("choice, default", [({CLOSE: "gone"}, "tuned"), ({CLOSE: "tuned"}, "gone"), ({}, None)])
def test_a_choice_of_no_member_is_refused(members, choice, default):
    with pytest.raises(UserError, match="expected members"):
        ChosenPolicy(members, choice, default)


@pytest.mark.parametrize(
    "choice, asked, default",
    [
        ({"a": "tuned", "b": "sft"}, "tuned", "tuned"),
        ({"a": "start", "b": "sft"}, "tuned", "start"),
        ({"a": "sft", "b": "sft"}, "tuned", "sft"),
        ({"a": "tuned", "b": "tuned"}, "sft", "sft"),
        ({"a": "tuned", "b": "tuned"}, "refuse", None),
    ],
)
def test_who_plays_what_is_near_none(choice, asked, default):
    assert default_member(["sft", "start", "tuned"], choice, asked) == default
