"""The compact policy, its adapter, its fine-tuning and its artifact."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import observation

from worldenv_cli.errors import UserError
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.lora import AdaptedPolicy, LoraSettings
from worldenv_cli.policies.observation import Observation
from worldenv_cli.policies.policy import rows_of
from worldenv_cli.policies.sft import ChunkSamples, SFTConfig, fit_scale, sft_loss


@pytest.fixture
def obs(demonstrations):
    """Four rows, two of each task."""
    return observation(demonstrations, moment=3)


def density(policy, obs):
    return policy.density(policy.encode(obs), {})


def reference(policy, obs):
    return policy.reference_density(policy.reference_encode(obs), {})


def means(policy, obs):
    with torch.no_grad():
        return density(policy, obs).mean


def changed(a, b, by=1e-4):
    """(B,) bool: rows whose chunks differ."""
    return ((a - b).abs().amax((1, 2)) > by).tolist()


@pytest.fixture
def tuned(policy):
    """The policy with an adapter that has moved away from its start."""
    adapted = AdaptedPolicy(policy, LoraSettings(rank=4, alpha=8)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


# The policy


def test_every_input_matters(trained_policy, obs):
    first = means(trained_policy, obs)
    assert first.shape == (4, 4, 4) and first.isfinite().all()
    dark = Observation({"front": obs.images["front"] // 2}, obs.state, obs.instruction)
    moved = Observation(obs.images, obs.state + np.float32([0.1, 0, 0, 0]), obs.instruction)
    told = Observation(obs.images, obs.state, obs.instruction[::-1])
    for other in (dark, moved, told):
        assert all(changed(first, means(trained_policy, other)))


def test_unseen_wording_is_an_input(trained_policy, obs):
    """Any text goes through the tokenizer, and a row does not depend on what is said to the others, however long."""
    wordings = ["shut that drawer, please", "", "drücke den Knopf \u2615 " + "very " * 100 + "gently", obs.instruction[3]]
    found = means(trained_policy, Observation(obs.images, obs.state, wordings))
    assert found.isfinite().all()
    assert changed(found, means(trained_policy, obs)) == [True, True, True, False]


def test_rows_do_not_depend_on_each_other(trained_policy, obs):
    together = means(trained_policy, obs)
    for row in range(4):
        torch.testing.assert_close(means(trained_policy, obs.rows([row])), together[[row]], atol=1e-5, rtol=0)
    mask = np.array([True, False, False, True])
    assert obs.rows(mask).instruction == [obs.instruction[0], obs.instruction[3]]


def test_acting_without_exploration_is_the_mean(trained_policy, obs):
    act = trained_policy.act(obs, explore=False)
    np.testing.assert_array_equal(act.chunk, trained_policy.act(obs, explore=False).chunk)
    np.testing.assert_array_equal(act.chunk, means(trained_policy, obs).numpy())
    assert act.chunk.dtype == np.float32 and act.log_prob.shape == (4, 4)


def test_exploring_is_seeded_and_its_scale_can_be_set(trained_policy, obs):
    def chunk(seed, scale=None):
        return trained_policy.act(obs, explore=True, scale=scale, generator=torch.Generator().manual_seed(seed)).chunk

    np.testing.assert_array_equal(chunk(1), chunk(1))
    assert (np.abs(chunk(1) - chunk(2)).max((1, 2)) > 1e-3).all()
    mean = means(trained_policy, obs).numpy()
    spread = np.abs(chunk(3, np.array([1e-6, 0.1, 1.0, 1e-6])) - mean).max((1, 2))
    assert spread[[0, 3]].max() < 1e-4 < 0.02 < spread[1] < spread[2]


def test_ratio_of_an_unchanged_policy_is_one(trained_policy, tuned, obs):
    for policy in (trained_policy, tuned):
        act = policy.act(obs, explore=True, generator=torch.Generator().manual_seed(0))
        again = policy.log_prob(obs, act.trace)
        assert again.requires_grad and again.shape == (4, 4)
        np.testing.assert_allclose((again.detach() - torch.from_numpy(act.log_prob)).exp().numpy(), 1, atol=1e-4)
        # also when it is scored beside other rows than it was sampled with
        part = policy.log_prob(obs.rows([2]), rows_of(act.trace, [2]))
        np.testing.assert_allclose((part.detach() - torch.from_numpy(act.log_prob[[2]])).exp().numpy(), 1, atol=1e-4)


def test_scales_stay_in_their_bounds_with_a_gradient(policy, obs):
    for offset in (-50.0, 0.0, 50.0):
        copied = copy.deepcopy(policy)
        with torch.no_grad():
            copied.scale_head[-1].bias.fill_(offset)
        scale = density(copied, obs).scale
        assert copied.config.scale_min * 0.999 <= scale.min() and scale.max() <= copied.config.scale_max * 1.001
    density(policy, obs).scale.sum().backward()
    assert policy.scale_head[-1].bias.grad.abs().min() > 0


# The adapter


def test_a_new_adapter_changes_nothing(trained_policy, policy, obs):
    adapted = AdaptedPolicy(policy, LoraSettings(rank=4, alpha=4))
    before, after = density(trained_policy, obs), density(adapted, obs)
    torch.testing.assert_close(after.mean, before.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.scale, before.scale, rtol=0, atol=1e-6)
    assert (reference(adapted, obs).kl(after) < 1e-5).all()


def test_without_its_adapter_it_is_the_start_policy(trained_policy, tuned, obs):
    with torch.no_grad():
        start, moved = density(trained_policy, obs), density(tuned, obs)
        assert all(changed(start.mean, moved.mean, by=1e-2)) and (start.scale - moved.scale).abs().max() > 1e-4
        unadapted = reference(tuned, obs)
        assert torch.equal(unadapted.mean, start.mean) and torch.equal(unadapted.scale, start.scale)
        assert torch.equal(density(tuned, obs).mean, moved.mean)  # and it is on again


def test_only_adapter_and_heads_train(policy, obs):
    adapted = AdaptedPolicy(policy, LoraSettings(rank=4, alpha=4))
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name or "modules_to_save" in name for name in trainable)
    for head in ("action_head", "scale_head"):
        assert {
            f"model.base_model.model.{head}.modules_to_save.default.{n}" for n, _ in policy.action_head.modules_to_save.default.named_parameters()
        } <= trainable
    lora, heads = adapted.parameter_groups(0.1, 0.2)
    assert lora["lr"] == 0.1 and heads["lr"] == 0.2
    assert sum(len(group["params"]) for group in (lora, heads)) == len(trainable)
    act = adapted.act(obs, explore=True)
    (-adapted.log_prob(obs, act.trace).mean()).backward()
    moved = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert set(moved) <= trainable and any("lora_B" in name for name in moved) and any("scale_head" in name for name in moved)
    frozen = sum(p.numel() for p in adapted.parameters() if not p.requires_grad)
    assert sum(p.numel() for group in (lora, heads) for p in group["params"]) < frozen


@pytest.fixture
def chosen(trained_policy, tuned, obs):
    """The tuned policy for the first row's instruction, the one that it started from for all other wording."""
    return ChosenPolicy({"start": trained_policy, "tuned": tuned}, {obs.instruction[0]: "tuned"}, "start")


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 2], [0]])
@pytest.mark.parametrize("explore", [False, True])
def test_each_instruction_gets_its_member(chosen, obs, order, explore):
    rows = obs.rows(np.array(order))
    scale = np.linspace(0.1, 0.4, len(order))
    act = chosen.act(rows, explore=explore, scale=scale, generator=[torch.Generator().manual_seed(row) for row in order])
    for row, instruction in enumerate(rows.instruction):
        member = chosen.members["tuned" if instruction == obs.instruction[0] else "start"]
        generator = [torch.Generator().manual_seed(order[row])]
        alone = member.act(rows.rows([row]), explore=explore, scale=scale[[row]], generator=generator)
        np.testing.assert_allclose(act.chunk[[row]], alone.chunk, atol=1e-5)
        np.testing.assert_allclose(act.log_prob[[row]], alone.log_prob, atol=1e-3)
    assert act.chunk.shape == (len(order), 4, 4)


def test_wording_without_a_choice_gets_the_default(trained_policy, tuned, obs):
    start, moved = means(trained_policy, obs).numpy(), means(tuned, obs).numpy()
    members = {"start": trained_policy, "tuned": tuned}
    for choice, default, wanted in (({}, "tuned", moved), ({}, "start", start), ({"something else": "tuned"}, "start", start)):
        np.testing.assert_allclose(ChosenPolicy(members, choice, default).act(obs, explore=False).chunk, wanted, atol=1e-5)


# The artifact


def saved(folder, policy):
    folder.mkdir()
    save_model(folder, "policy", policy, {"seed": 0}, "# A policy")
    return folder


def test_what_is_loaded_is_what_was_saved(tmp_path, trained_policy, tuned, obs):
    loaded = load_model(saved(tmp_path / "plain", trained_policy), "policy")
    assert isinstance(loaded, CompactPolicy) and not loaded.training and loaded.config == trained_policy.config
    for name, tensor in trained_policy.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    torch.testing.assert_close(means(loaded, obs), means(trained_policy, obs), rtol=0, atol=1e-6)
    assert torch.equal(means(loaded, obs), means(load_model(tmp_path / "plain", "policy"), obs))

    loaded = load_model(saved(tmp_path / "adapted", tuned), "policy")
    assert isinstance(loaded, AdaptedPolicy) and loaded.settings == tuned.settings
    torch.testing.assert_close(means(loaded, obs), means(tuned, obs), rtol=0, atol=1e-6)
    torch.testing.assert_close(reference(loaded, obs).mean, means(trained_policy, obs), rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.act(obs, explore=False).chunk, tuned.act(obs, explore=False).chunk, atol=1e-6)
    again = load_model(saved(tmp_path / "again", loaded), "policy")
    assert torch.equal(means(again, obs), means(loaded, obs))


def test_a_chosen_policy_is_loaded_as_it_was_saved(tmp_path, chosen, obs):
    loaded = load_model(saved(tmp_path / "chosen", chosen), "policy")
    assert isinstance(loaded, ChosenPolicy) and (loaded.choice, loaded.default) == (chosen.choice, "start") and not loaded.training
    assert [type(member) for member in loaded.members.values()] == [CompactPolicy, AdaptedPolicy]
    np.testing.assert_allclose(loaded.act(obs, explore=False).chunk, chosen.act(obs, explore=False).chunk, atol=1e-6)


def test_a_damaged_or_foreign_artifact_is_told(tmp_path, trained_policy):
    whole = saved(tmp_path / "whole", trained_policy)

    def broken(name, change):
        folder = shutil.copytree(whole, tmp_path / name)
        (folder / "provenance.json").unlink(missing_ok=True)  # which knows the bytes that it was written with
        change(folder)
        return folder

    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def reconfigured(**changes):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            config["policy"] |= changes.pop("policy", {})
            (folder / "config.json").write_text(json.dumps(config | changes))

        return change

    for folder, kind, said in (
        (broken("cut", cut), "policy", r"model.safetensors is truncated or damaged \(.*make it or download it again"),
        (broken("gone", lambda f: (f / "model.safetensors").unlink()), "policy", "holds no model.safetensors"),
        (whole, "simulator", "is of kind 'policy': expected 'simulator'"),
        (tmp_path / "nowhere", "policy", "nowhere does not exist: expected the folder of a policy; make it first"),
        (broken("old", reconfigured(worldenv_version="0.0.9")), "policy", r"was written by worldenv 0.0.9: this is .*"),
        (broken("other", reconfigured(policy={"depth": 2})), "policy", "config.json: policy.depth: Extra inputs .*make the policy again"),
        (broken("empty", reconfigured(policy={"width": None})), "policy", "config.json: policy.width: Input should be a valid integer"),
        (broken("wide", reconfigured(policy={"width": 64})), "policy", "declares .* numbers, but the weights are .*; they are not of one model"),
    ):
        with pytest.raises(UserError, match=said):
            load_model(folder, kind)


# Fine-tuning


def test_fine_tuning_learns_the_demonstrations(mini, demonstrations, trained_policy):
    """Held against the same policy untrained, and against always doing what is done on average."""
    samples = ChunkSamples(demonstrations, ["front"], 4)
    torch.manual_seed(0)
    untrained = CompactPolicy(mini.policy)
    untrained.state_mean.copy_(trained_policy.state_mean)
    untrained.state_std.copy_(trained_policy.state_std)
    everything, plain = np.arange(len(samples)), SFTConfig(shift=0, state_noise=0)
    with torch.no_grad():
        before, after = (sft_loss(p, samples, everything, plain, np.random.default_rng(0)).item() for p in (untrained, trained_policy))
    played = samples.mask[..., None]
    average = (samples.actions * played).sum((0, 1)) / played.sum((0, 1))
    constant = (np.abs(samples.actions - average) * played).sum() / (played.sum() * 4)
    assert after < 0.75 * before and after < 0.9 * constant
    np.testing.assert_allclose(trained_policy.state_mean.numpy(), samples.states.mean(0), atol=1e-5)


def test_the_scale_head_fits_alone(policy, demonstrations):
    samples, config = ChunkSamples(demonstrations, ["front"], 4), SFTConfig(scale_steps=40, batch=32)

    def likelihood():
        everything = observation_of(samples)
        fitted = density(policy, everything)
        fitted.shared = 0.0  # demonstrations are no samples of the policy: each step's own Laplace is fitted
        return (fitted.log_prob(torch.from_numpy(samples.actions)).detach().numpy() * samples.mask).mean()

    before, weights = likelihood(), copy.deepcopy(policy.state_dict())
    fit_scale(policy, samples, config, np.random.default_rng(0))
    assert likelihood() > before
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, weights[name]) != name.startswith("scale_head"), name


def observation_of(samples):
    return Observation(samples.frames, samples.states, list(samples.instructions))


def test_samples_are_every_step_with_what_followed(demonstrations):
    samples, n = ChunkSamples(demonstrations, ["front"], 4), 0
    assert len(samples) == sum(len(episode.actions) for episode in demonstrations)
    for episode in demonstrations:
        for t in range(len(episode.actions)):
            left = min(4, len(episode.actions) - t)
            np.testing.assert_array_equal(samples.frames["front"][n], episode.frames["front"][t])
            np.testing.assert_array_equal(samples.states[n], episode.states[t])
            np.testing.assert_array_equal(samples.actions[n, :left], episode.actions[t : t + left])
            assert samples.mask[n].tolist() == [k < left for k in range(4)] and samples.instructions[n] == episode.instruction
            n += 1


def test_padded_steps_do_not_count(policy, demonstrations):
    samples, plain = ChunkSamples(demonstrations, ["front"], 4), SFTConfig(shift=0, state_noise=0)
    last = np.flatnonzero(~samples.mask.all(1))[:4]
    before = sft_loss(policy, samples, last, plain, np.random.default_rng(0)).item()
    samples.actions[~samples.mask] = 99
    assert sft_loss(policy, samples, last, plain, np.random.default_rng(0)).item() == before
