"""The instant reflector: what it sees, what its word is worth, when it stops, and what is measured of it."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import COFFEE, DRAWER

from worldenv_cli.evaluation.statistics import auc, expected_calibration_error
from worldenv_cli.models import load_model, save_model
from worldenv_cli.post_train.gate import GateConfig, gate, judged
from worldenv_cli.reflector.calibration import NEVER, CalibrationConfig, Scored, choose_threshold, failures_needed, fit_scale_and_offset, measure
from worldenv_cli.reflector.compact import Reflector
from worldenv_cli.reflector.report import measured_errors
from worldenv_cli.reflector.train import (
    CalibrateConfig,
    calibrate,
    imagined_sequences,
    real_sequences,
    reflector_loss,
    score_sequences,
    train_reflector,
)
from worldenv_cli.training import TrainingConfig

# Scoring


def pictures(episodes, length=13):
    return np.stack([episode.frames["front"][:length] for episode in episodes]), [episode.instruction for episode in episodes]


@pytest.mark.parametrize("parts", [[13], [1] * 13, [1, 4, 4, 4], [5, 8]])
def test_scoring_in_parts_is_scoring_at_once(reflector, demonstrations, parts):
    frames, instructions = pictures(demonstrations)
    whole, _ = reflector.score(reflector.start(frames[:, :1], instructions), frames)
    state, found = reflector.start(frames[:, :1], instructions), []
    for part in np.split(frames, np.cumsum(parts)[:-1], axis=1):
        scores, state = reflector.score(state, part)
        found.append(scores)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-4)
    assert whole.shape == (4, 13) and whole.min() >= 0 and whole.max() <= 1 and np.ptp(whole, axis=1).min() > 1e-3
    assert (np.diff(whole, axis=1) >= 0).all()  # what has been achieved stays achieved


def test_episodes_of_different_lengths_are_scored_as_alone(reflector, demonstrations):
    frames, instructions = [e.frames["front"] for e in demonstrations], [e.instruction for e in demonstrations]
    assert len({len(f) for f in frames}) > 1
    together = reflector.score_episodes(frames, instructions, batch=3)
    for one, words, scores in zip(frames, instructions, together):
        assert scores.shape == (len(one),)
        alone, _ = reflector.score(reflector.start([one[:1]], [words]), one[None])
        np.testing.assert_allclose(scores, alone[0], atol=1e-4)


def logits_of(reflector, frames, words, first):
    """Logits of the frames by themselves, before the largest so far is taken."""
    state = reflector.start(first, words)
    found = []
    for t in range(frames.shape[1]):
        scores, state = reflector.score(state, frames[:, t : t + 1])
        found.append(state.best.numpy().copy())
        state.best.fill_(-torch.inf)
    return np.stack(found, 1)


def test_it_reads_the_instruction_the_first_frame_and_the_past(reflector, demonstrations):
    frames, instructions = pictures(demonstrations)
    plain = logits_of(reflector, frames, instructions, frames[:, :1])
    past = frames.copy()
    past[:, 9] = past[:, 0]
    for words, first, seen in ((instructions[::-1], frames, frames), (instructions, 255 - frames, frames), (instructions, frames, past)):
        other = logits_of(reflector, seen, words, first[:, :1])
        assert (np.abs(other - plain)[:, -1] > 1e-4).all()


def test_a_score_does_not_see_the_future(reflector, demonstrations):
    frames, instructions = pictures(demonstrations)
    other = frames.copy()
    other[:, 7:] = 0
    a, b = (logits_of(reflector, f, instructions, frames[:, :1]) for f in (frames, other))
    np.testing.assert_allclose(a[:, :7], b[:, :7], atol=1e-5)
    assert (np.abs(a[:, 7] - b[:, 7]) > 1e-4).all()


def test_what_is_known_at_the_start_is_seen_but_not_judged(reflector, demonstrations):
    """A logged moment: the frames before it are looked back at, and their scores are not those of the episode that begins there."""
    frames, instructions = pictures(demonstrations)
    whole = logits_of(reflector, frames, instructions, frames[:, :1])
    _, state = reflector.score(reflector.start(frames[:, :6], instructions), frames[:, 6:8])
    np.testing.assert_allclose(state.best, whole[:, 6:8].max(1), atol=1e-4)


def test_rows_that_leave_do_not_change_the_others(reflector, demonstrations):
    frames, instructions = pictures(demonstrations)
    whole, _ = reflector.score(reflector.start(frames[:, :1], instructions), frames)
    _, state = reflector.score(reflector.start(frames[:, :1], instructions), frames[:, :5])
    rest, _ = reflector.score(state.rows(torch.tensor([3, 1])), frames[[3, 1], 5:])
    np.testing.assert_allclose(rest, whole[[3, 1], 5:], atol=1e-4)
    masked, _ = reflector.score(state.rows(torch.tensor([True, False, False, True])), frames[[0, 3], 5:])
    np.testing.assert_allclose(masked, whole[[0, 3], 5:], atol=1e-4)


# Calibration


def likelihood(logits, labels, scale=1.0, offset=0.0):
    """Mean log likelihood."""
    scaled = scale * logits + offset
    return float(np.mean(-np.logaddexp(0, np.where(labels > 0, -scaled, scaled))))


@pytest.mark.parametrize("scale, offset", [(0.4, -1.0), (1.0, 0.0), (2.5, 1.5)])
def test_platt_scaling_finds_what_made_the_labels(scale, offset):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < 1 / (1 + np.exp(-(scale * logits + offset)))).astype(float)
    found = fit_scale_and_offset(logits, labels, np.ones(5000))
    assert found == pytest.approx((scale, offset), rel=0.1, abs=0.1)
    assert likelihood(logits, labels, *found) >= likelihood(logits, labels) - 1e-4
    for nudge in ((1.1, 1), (0.9, 1), (1, 1.1), (1, 0.9)):  # it is a maximum, up to the little pull towards no change
        assert likelihood(logits, labels, found[0] * nudge[0], found[1] * nudge[1]) < likelihood(logits, labels, *found) + 1e-4


def test_platt_scaling_believes_what_weighs():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, 4000), (rng.random(4000) < 0.5).astype(float)
    labels[:2000] = rng.random(2000) < 1 / (1 + np.exp(-(1.5 * logits[:2000] + 1)))
    weights = np.repeat([3.0, 1e-9], 2000)
    assert fit_scale_and_offset(logits, labels, weights) == pytest.approx((1.5, 1), rel=0.1, abs=0.1)


def test_platt_scaling_stays_a_ranking():
    logits = np.linspace(-3, 3, 100)
    scale, offset = fit_scale_and_offset(logits, (logits < 0).astype(float), np.ones(100))  # a reflector that is always wrong
    assert 0 < scale < 0.1 and np.isfinite(offset)
    scale, offset = fit_scale_and_offset(logits, (logits > 0).astype(float), np.ones(100))  # and one that is never
    assert 1 < scale < 1000
    for labels in (np.zeros(100), np.ones(100)):
        assert np.isfinite(fit_scale_and_offset(logits, labels, np.ones(100))).all()


def scored(scores, success, task="a"):
    """One episode: scores and truth by frame."""
    return Scored(task, np.array(scores, np.float32), np.array(success, bool))


def failed(bests):
    return [scored([0, best / 2, best, best / 3], [0, 0, 0, 0]) for best in bests]


@pytest.mark.parametrize("rate, count", [(0.05, 19), (0.05, 20), (0.05, 100), (0.1, 9), (0.1, 40), (0.25, 3), (0.25, 40), (0.5, 1), (0.5, 20)])
def test_the_threshold_keeps_its_promise(rate, count):
    """On calibration episodes at most the stated share is stopped; on new ones of the same kind as well, on average (conformal)."""
    config, rng, stopped = CalibrationConfig(false_termination=rate, threshold_min=0.0), np.random.default_rng(count), []
    for _ in range(400):
        bests = rng.beta(2, 3, count)
        threshold = choose_threshold(failed(bests) + [scored([0, 1, 1], [0, 1, 1])], config)
        bests = np.float32(bests)
        assert (bests >= threshold).mean() <= rate
        # brute force: the smallest threshold just above a failure's best that leaves no more above it than the promise allows
        allowed = count - int(np.ceil((count + 1) * (1 - rate)))
        ok = [b for b in np.sort(bests) if (bests > b).sum() <= allowed]
        assert threshold == np.nextafter(np.float32(ok[0]), np.float32(2))
        stopped.append((rng.beta(2, 3, 500) >= threshold).mean())
    assert np.mean(stopped) < rate * 1.1 + 0.01


@pytest.mark.parametrize("rate, needed", [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (0.5, 1), (0.9, 1), (1e-6, 10**6 - 1)])
def test_with_fewer_failures_than_the_rate_needs_nothing_is_promised(rate, needed):
    """Five failures gave a threshold that stopped .169 of those to come, with .05 promised."""
    assert failures_needed(rate) == needed
    config = CalibrationConfig(false_termination=rate)
    for count in {0, 1, 5, needed - 1} if needed < 1000 else {0, 1, 5}:
        threshold = choose_threshold(failed([0.1] * count) + [scored([0, 1, 1], [0, 1, 1])], config)
        assert (threshold > 1) == (count < needed)
    if needed < 1000:
        assert choose_threshold(failed([0.35] * needed), config) == np.nextafter(np.float32(0.35), np.float32(1))


def test_a_score_that_is_no_number_promises_nothing():
    bests = np.linspace(0.1, 0.9, 30).tolist()
    assert choose_threshold(failed(bests), CalibrationConfig()) < 1 < choose_threshold(failed([*bests, np.nan]), CalibrationConfig())


def test_thresholds_at_the_ends():
    config = CalibrationConfig(false_termination=0.5, threshold_min=0.3)

    def chosen(bests):
        return choose_threshold(failed(bests), config)

    assert chosen([0.01, 0.02]) == pytest.approx(0.3)
    for best in (0.9995, 0.99999994):  # no clip puts it below the failure that it must not stop
        assert best < chosen([best]) <= 1.0
    assert chosen([1.0]) > 1  # certain of a failure: nothing can be told from it
    assert chosen([0.4, 0.4]) > np.float32(0.4)
    assert choose_threshold([scored([0.9, 0.4, 0.2], [0, 0, 0])], config) == pytest.approx(0.4)  # the start itself is not judged


def test_calibrating_with_too_few_failures_never_stops_and_says_so(tmp_path, monkeypatch, capsys, mini, reflector, explored, simulator):
    """In what `calibrate` prints, in errors.json, on the card and in the report."""
    from worldenv_cli import stages
    from worldenv_cli.evaluation.diagnostics import reflector as shown

    count = sum(not episode.success[-1] for episode in explored if episode.info["split"] == "calibration")
    (tmp_path / "sure").mkdir()
    run = SimpleNamespace(recipe=mini, checkpoint=lambda name: None, metrics=lambda name: None)
    config = mini.calibrate.model_copy(update={"calibration": CalibrationConfig(false_termination=0.05)})
    stages.make_reflector(run, "reflector", tmp_path, {}, reflector, simulator, explored, config)
    assert reflector.threshold.item() == NEVER
    message = f"It never stops an episode: {count} failed calibration episodes, 19 are needed to promise that it stops 5% of failures at most"
    said = capsys.readouterr().out
    assert f"reflector: {message}\nreflector: for a stop it takes {19 - count} more, by explore.episodes" in said
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["never_stops"] == {"failed": count, "needed": 19, "false_termination": 0.05, "message": message}
    assert errors["real"]["false_termination"] in (0.0, None) and errors["real"]["missed_success"] in (1.0, None)
    assert message in (tmp_path / "README.md").read_text() and message in shown(errors)[0].note
    assert load_model(tmp_path, "reflector").threshold.item() == NEVER
    monkeypatch.setattr("worldenv_cli.reflector.train.choose_threshold", lambda *_: 1.0000001)  # enough failures, and certain of one
    config = mini.calibrate.model_copy(update={"calibration": CalibrationConfig(false_termination=0.6)})
    stages.make_reflector(run, "reflector", tmp_path / "sure", {}, reflector, simulator, explored, config)
    assert "certain of the success" in capsys.readouterr().out and "certain" in (tmp_path / "sure/README.md").read_text()


def test_measured_errors_by_hand():
    episodes = [
        scored([0.0, 0.2, 0.7, 0.9], [0, 0, 1, 1]),  # stops with the success
        scored([0.0, 0.6, 0.6, 0.9], [0, 0, 0, 1]),  # two steps early
        scored([0.0, 0.1, 0.2, 0.3], [0, 1, 1, 1]),  # missed
        scored([0.9, 0.1, 0.2, 0.1], [0, 0, 0, 0]),  # right to go on
        scored([0.0, 0.1, 0.8, 0.1], [0, 0, 0, 0]),  # wrongly stopped
    ]
    found = measure(episodes, 0.5)
    assert found["false_termination"] == 0.5 and found["missed_success"] == pytest.approx(1 / 3)
    assert found["delay_steps"] == pytest.approx((0 - 2) / 2)
    assert found["auc"] == auc([0.9, 0.9, 0.3, 0.2, 0.8], [1, 1, 1, 0, 0]).estimate == pytest.approx(5 / 6)
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert (found["n_episodes"], found["n_failed"], found["success"]) == (5, 2, 0.6)
    assert found["mean_score"] == pytest.approx((0.9 + 0.9 + 0.3 + 0.1 + 0.1) / 5)
    frames, labels = np.concatenate([e.scores[1:] for e in episodes]), np.concatenate([e.success[1:] for e in episodes])
    assert found["ece"] == pytest.approx(expected_calibration_error(frames, labels))  # every frame but the first
    perfect = measure([scored([0, 0, 1], [0, 0, 1]), scored([0, 0, 0], [0, 0, 0])], 0.5)
    assert (perfect["auc"], perfect["ece"], perfect["false_termination"], perfect["delay_steps"]) == (1, 0, 0, 0)


def test_measuring_one_kind_of_episode_only():
    only_failures = measure(failed([0.1, 0.9]), 0.5)
    assert only_failures["missed_success"] is None and only_failures["delay_steps"] is None and np.isnan(only_failures["auc"])
    only_successes = measure([scored([0, 1], [0, 1])], 0.5)
    assert only_successes["false_termination"] is None and only_successes["delay_steps"] == 0


def test_the_report_has_both_kinds_of_frames_for_every_task():
    real = [scored([0, 0.9], [0, 1], "a"), scored([0, 0.1], [0, 0], "a"), scored([0, 0.8], [0, 0], "b")]
    imagined = [scored([0, 0.2], [0, 1], "a"), scored([0, 0.3], [0, 0], "a"), scored([0, 0.9], [0, 0], "b")]
    found = measured_errors(real, imagined, 0.5)
    assert found["threshold"] == 0.5 and found["real"]["auc"] == 1 and found["imagined"]["auc"] == 0 and found["imagined"]["missed_success"] == 1
    assert [(row["task"], row["frames"], row["n_episodes"]) for row in found["per_task"]] == [
        ("a", "real", 2),
        ("a", "imagined", 2),
        ("b", "real", 1),
        ("b", "imagined", 1),
    ]
    assert sum(n for *_, n in found["reliability"]) == 3  # of imagined frames


# Training


def test_imagined_sequences_keep_the_real_labels(simulator, demonstrations, explored):
    episodes = [demonstrations[3], explored[0], demonstrations[0]]
    made, real = imagined_sequences(simulator, episodes, batch=2), real_sequences(episodes, "front")
    for a, b, episode in zip(made, real, episodes):
        assert a.frames.shape == b.frames.shape and a.frames.dtype == np.uint8
        np.testing.assert_array_equal(a.success, episode.success)
        np.testing.assert_array_equal(a.frames[0], episode.frames["front"][0])
        assert (a.instruction, a.task) == (b.instruction, b.task) == (episode.instruction, episode.info["task"])
        assert not np.array_equal(a.frames[-1], b.frames[-1])


def test_training_lowers_its_loss(mini, demonstrations, explored):
    torch.manual_seed(0)
    reflector, sequences = Reflector(mini.reflector), real_sequences(demonstrations + explored, "front")
    config = CalibrateConfig(training=TrainingConfig(steps=40, batch=8, learning_rate=5e-3, average=0.5), swapped=0.2)
    words = sorted({sequence.instruction for sequence in sequences})

    def loss(swapped):
        fixed = config.model_copy(update={"swapped": swapped, "shift": 0, "training": config.training.model_copy(update={"batch": 24})})
        with torch.no_grad():
            return reflector_loss(reflector.eval(), sequences, words, fixed, np.random.default_rng(0)).item()

    before = loss(0.0)
    train_reflector(reflector, sequences, config, seed=0)
    assert loss(0.0) < 0.7 * before and not reflector.training
    frames = score_sequences(reflector, sequences)
    scores, labels = np.concatenate([s.scores for s in frames]), np.concatenate([s.success for s in frames])
    assert scores[labels].mean() > 1.2 * scores[~labels].mean()


def test_swapped_instructions_count_as_failures(reflector, demonstrations):
    """All swapped, a reflector that is sure of failure has no loss, although every episode succeeds."""
    with torch.no_grad():
        reflector.reflector_head[-1].weight.zero_()
        reflector.reflector_head[-1].bias.fill_(-20.0)
    sequences, words = real_sequences(demonstrations, "front"), sorted({e.instruction for e in demonstrations})
    for swapped, low, high in ((1.0, 0, 1e-3), (0.0, 1.0, 20)):
        config = CalibrateConfig(training=TrainingConfig(batch=8), swapped=swapped)
        assert low <= reflector_loss(reflector, sequences, words, config, np.random.default_rng(0)).item() <= high


def test_calibrating_sets_scale_offset_and_threshold(reflector, demonstrations, explored, simulator):
    """More likely labels than before, and on either kind of calibration frames no more false stops than promised."""
    episodes = demonstrations + explored
    real, imagined = real_sequences(episodes, "front"), imagined_sequences(simulator, episodes)
    reflector.calibration.copy_(torch.tensor([1.0, 0.0]))

    def nll():
        both = score_sequences(reflector, real + imagined)
        p, y = np.concatenate([s.scores[1:] for s in both]).astype(float), np.concatenate([s.success[1:] for s in both])
        return -np.mean(np.log(np.where(y, p, 1 - p)))

    before, config = nll(), CalibrationConfig(false_termination=0.2)
    calibrate(reflector, real, imagined, config)
    assert nll() < before and reflector.calibration[0] > 0
    threshold = reflector.threshold.item()
    for kind in (real, imagined):
        share = measure(score_sequences(reflector, kind), threshold)["false_termination"]
        assert share is not None and share <= 0.2
    assert threshold >= config.threshold_min
    again = copy.deepcopy(reflector)
    calibrate(again, real, imagined, config)  # calibrating twice is calibrating once
    torch.testing.assert_close(again.calibration, reflector.calibration, rtol=1e-3, atol=1e-3)


def test_what_is_loaded_is_what_was_saved(tmp_path, reflector, demonstrations):
    reflector.threshold.fill_(0.625)
    (tmp_path / "r").mkdir()
    save_model(tmp_path / "r", "reflector", reflector, {}, "# A reflector")
    loaded = load_model(tmp_path / "r", "reflector")
    assert loaded.threshold.item() == 0.625 and torch.equal(loaded.calibration, reflector.calibration)
    frames, instructions = [e.frames["front"] for e in demonstrations], [e.instruction for e in demonstrations]
    for a, b in zip(reflector.score_episodes(frames, instructions), loaded.score_episodes(frames, instructions)):
        np.testing.assert_allclose(a, b, atol=1e-5)


# The gate


def test_what_an_imagined_episode_would_be_rewarded():
    assert judged(scored([0.9, 0.1, 0.7, 0.95, 0.2], [0] * 5), 0.6) == pytest.approx(0.7)
    assert judged(scored([0.9, 0.1, 0.7, 0.95, 0.2], [0] * 5), 0.99) == pytest.approx(0.2)


def test_the_gate_says_why():
    """One figure out of bounds after the other: true success, reflector on real frames, on imagined ones, and its ranking."""

    def episodes(successes, n, high, low, task):
        return [scored([0, high if i < successes else low], [0, i < successes], task) for i in range(n)]

    def upside_down(n, task):  # right on average, and always about the wrong episode
        return [scored([0, 0.1 if i < n // 2 else 0.9], [0, i < n // 2], task) for i in range(n)]

    cases = {
        "good": (episodes(5, 10, 0.9, 0.1, "good"), episodes(5, 10, 0.8, 0.2, "good"), "both models agree with the truth"),
        "never": (episodes(0, 10, 0.9, 0.1, "never"), episodes(0, 10, 0.9, 0.1, "never"), "no signal"),
        "always": (episodes(10, 10, 0.9, 0.1, "always"), episodes(10, 10, 0.9, 0.1, "always"), "no room"),
        "fooled": (episodes(5, 10, 0.99, 0.6, "fooled"), episodes(5, 10, 0.9, 0.1, "fooled"), "it would be exploited"),
        "painted": (episodes(5, 10, 0.9, 0.1, "painted"), episodes(5, 10, 0.99, 0.7, "painted"), "the simulator would be exploited"),
        "unsorted": (episodes(5, 10, 0.9, 0.1, "unsorted"), upside_down(10, "unsorted"), "AUC 0.00 on imagined frames is below 0.8"),
    }
    real, imagined = ([e for case in cases.values() for e in case[k]] for k in (0, 1))
    rows = gate(real, imagined, 0.5, [*cases, "unseen"], GateConfig())
    assert [row["task"] for row in rows] == [*cases, "unseen"]
    for row in rows[:-1]:
        assert row["open"] == (row["task"] == "good") and cases[row["task"]][2] in row["reason"], row
        assert row["n"] == 10
    assert rows[0]["real_success"] == 0.5 and rows[0]["reflector_on_real"] == pytest.approx(0.5) and rows[0]["auc_imagined"] == 1
    assert rows[-1]["open"] is False and rows[-1]["reason"] == "no unseen episodes"


def test_tasks_are_told_apart(mini, reflector, demonstrations):
    """The same frames under the other task's instruction are another question."""
    assert list(mini.env.tasks) == [COFFEE, DRAWER]
    frames = [demonstrations[0].frames["front"]] * 2
    a, b = reflector.score_episodes(frames, list(mini.env.tasks.values()))
    assert np.abs(a - b).max() > 1e-3
