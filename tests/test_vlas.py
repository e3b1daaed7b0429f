"""Every family of VLA, tiny and random, through the whole interface: acting, scoring, learning, being post-trained, saved and loaded again."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import FIXTURES
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla
from toy_world import TASKS, Recorded, adapted, climbing_world, config, moved, untrained_world, update, weights

from worldenv_cli.artifacts import Checkpoint
from worldenv_cli.errors import UserError
from worldenv_cli.hub import state_of
from worldenv_cli.merged import write_merged
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.checks import self_check
from worldenv_cli.policies.densities import TokenDensity
from worldenv_cli.policies.flow import FlowPolicy
from worldenv_cli.policies.load import load_vla
from worldenv_cli.policies.lora import AdaptedPolicy, LoraSettings
from worldenv_cli.policies.observation import Observation
from worldenv_cli.policies.openvla import inputs as inputs_of_openvla
from worldenv_cli.policies.policy import rows_of
from worldenv_cli.policies.sft import ChunkSamples, SFTConfig, fine_tune, sft_loss
from worldenv_cli.policies.vla import CONVERTED, VLAConfig, pinned
from worldenv_cli.post_train.rounds import imagined_success

needs_fixtures = pytest.mark.skipif(not FIXTURES.exists(), reason=f"{FIXTURES} is not here: checkpoints and outputs of the original implementations")
FAMILIES = {
    "openvla": (write_openvla, {"proprio_size": 4, "side": 56, "dtype": torch.float32}, {}),
    "openvla, new head": (write_openvla, {"action_size": 7, "side": 56, "dtype": torch.float32, "head": False}, {"new_head": True}),
    "openvla tokens": (
        write_openvla,
        {"proprio_size": 4, "side": 56, "dtype": torch.float32, "head": False},
        {"actions": "tokens", "temperature": 1.0},
    ),
    "pi0": (write_pi0, {}, {"noise_level": 1.0}),
    "pi0 learned": (write_pi0, {}, {"walk": "learned", "noise_level": 1.0, "noise_bounds": (0.3, 0.6)}),
    "smolvla": (write_smolvla, {}, {"noise_level": 1.0}),
}
SHARED = {"statistics": "dataset", "resolution": 32, "gripper": "as recorded", "max_tokens": 128, "lora": LoraSettings(rank=4, alpha=4)}


@pytest.fixture(scope="module", params=FAMILIES)
def settings(request, tmp_path_factory):
    write, sizes, own = FAMILIES[request.param]
    return VLAConfig(model=str(write(tmp_path_factory.mktemp("checkpoint") / "model", **sizes)), **SHARED, **own)


@pytest.fixture(scope="module")
def policy(settings):
    torch.manual_seed(0)
    made = load_vla(settings)
    rng = np.random.default_rng(0)
    made.adopt(rng.standard_normal((50, 4)).astype(np.float32), rng.uniform(-1, 1, (50, 4)).astype(np.float32))
    return made


def observation(rows=3, seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    return Observation(
        {"front": pictures}, rng.standard_normal((rows, 4)).astype(np.float32), [["push it", "lift the lid"][i % 2] for i in range(rows)]
    )


def sampled(policy, obs, seed=0):
    return policy.act(obs, explore=True, generator=torch.Generator().manual_seed(seed))


def test_the_ratio_of_an_unchanged_policy_is_one(policy):
    obs = observation()
    act = sampled(policy, obs)
    assert act.chunk.shape == (3, 4, 4) and act.log_prob.shape == (3, 4) and np.isfinite(act.log_prob).all()
    again = policy.log_prob(obs, act.trace).detach().numpy()
    np.testing.assert_array_equal(np.exp(again - act.log_prob), 1)  # the same rows: exactly
    part = policy.log_prob(obs.rows([1]), rows_of(act.trace, [1])).detach().numpy()
    np.testing.assert_allclose(np.exp(part - act.log_prob[[1]]), 1, atol=2e-3)
    np.testing.assert_array_equal(sampled(policy, obs).chunk, act.chunk)
    assert np.abs(sampled(policy, obs, 1).chunk - act.chunk).max() > 1e-3


def test_what_is_sampled_is_what_is_scored(policy):
    """Over many samples the mean ratio of another policy's density to the own one is one, after every number of played steps: only then are
    the samples those of the density that scores them, walks of several noisy steps included.
    """
    flow = isinstance(policy, FlowPolicy)
    act = sampled(policy, observation(1).rows([0] * (2000 if flow else 600)))
    for seed in (0, 1, 2) if flow else (0,):
        ratio = ratio_to_another(policy, act, seed)
        for t in range(4):
            assert abs(ratio[:, t].exp().mean() - 1) < 4 * ratio[:, t].exp().std() / len(ratio) ** 0.5, (seed, t)


@torch.no_grad()
def ratio_to_another(policy, act, seed):
    """(rows, T): log ratio of the density of the first steps, to a policy that is far enough away for a wrong score to show."""
    own = policy.density(act.encoded, act.trace).log_prob(act.trace["sampled"])
    for nudge in range(16):
        other = nudged(copy.deepcopy(policy), seed, by=0.0004 * 1.4**nudge)
        ratio = (other.density(act.encoded, act.trace).log_prob(act.trace["sampled"]) - own).double().cumsum(1)
        if ratio[:, -1].std() > 0.6:
            break
    assert 0.6 < ratio[:, -1].std() < 1.3
    return ratio


def test_in_bfloat16_too(settings, demonstrations):
    """Acting, scoring, fine-tuning with gradient checkpointing; what learns stays float32."""
    half = load_vla(settings.model_copy(update={"dtype": "bfloat16", "gradient_checkpointing": True})).trainable()
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in half.parameters()}
    fine_tune(half, demonstrations, SFTConfig(steps=2, batch=4, scale_steps=1), seed=0)
    obs = observation()
    act = sampled(half, obs)
    with torch.enable_grad():
        again = half.log_prob(obs, act.trace)
    np.testing.assert_array_equal(np.exp(again.detach().numpy() - act.log_prob), 1)
    assert half.log_prob(obs, act.trace).requires_grad and np.isfinite(act.chunk).all()


def test_answers_do_not_depend_on_the_rest_of_the_batch(policy):
    obs, seeds = observation(), [torch.Generator().manual_seed(n) for n in (3, 4, 5)]
    whole = policy.act(obs, explore=True, generator=seeds)
    alone = policy.act(obs.rows([1]), explore=True, generator=[torch.Generator().manual_seed(4)])
    np.testing.assert_allclose(alone.chunk, whole.chunk[[1]], atol=1e-4)


def test_scale_zero_is_no_exploration(policy):
    """A flow policy keeps its first noise; tokens their likeliest bin."""
    obs = observation()
    still = policy.act(obs, explore=True, scale=np.full(3, 1e-6), generator=torch.Generator().manual_seed(0)).chunk
    best = policy.act(obs, explore=False, generator=torch.Generator().manual_seed(0)).chunk
    assert policy.density_is.endswith("tokens") or np.abs(still - best).max() < 1e-3


@pytest.mark.parametrize("blind", ["picture", "instruction"])
def test_a_blind_or_deaf_policy_is_refused(policy, blind, monkeypatch):
    """The field's best-known failure: an answer that is always the same."""
    encode = policy.encode

    def same(obs):
        images = {camera: np.repeat(pictures[:1], len(pictures), 0) for camera, pictures in obs.images.items()}
        return encode(
            Observation(
                images if blind == "picture" else obs.images,
                obs.state,
                obs.instruction[:1] * len(obs.instruction) if blind != "picture" else obs.instruction,
            )
        )

    monkeypatch.setattr(policy, "encode", same)
    with pytest.raises(UserError, match=f"tiny: its answer does not depend on the {blind}"):
        self_check(policy, "tiny")


def test_weights_that_are_no_numbers_are_refused(settings):
    broken = load_vla(settings)
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if name.startswith("model.") and name.endswith("layers.0.mlp.up_proj.weight")).fill_(
            torch.nan
        )
    with pytest.raises(UserError, match="tiny: its answer is not finite"):
        self_check(broken, "tiny")


def test_what_is_encoded_is_kept_while_an_adapter_learns(policy):
    adapted_policy, obs = adapted(policy), observation()
    assert adapted_policy.reusable
    act = sampled(adapted_policy, obs)
    density = adapted_policy.density(act.encoded, act.trace)
    log_prob = density.log_prob(act.trace["sampled"])
    np.testing.assert_array_equal(log_prob.detach().numpy(), act.log_prob)
    log_prob.sum().backward()
    moving = [name for name, p in adapted_policy.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("lora_B" in name for name in moving) and all("lora_" in name or "modules_to_save" in name for name in moving)
    kl = adapted_policy.reference_density(act.encoded, act.trace).kl(adapted_policy.density(act.encoded, act.trace))
    assert kl.shape == (3, 4) and kl.abs().max() < 1e-5  # a new adapter changes nothing


def test_fine_tuning_learns_demonstrations(settings, demonstrations):
    torch.manual_seed(0)
    tuned = load_vla(settings).trainable()
    samples, plain = ChunkSamples(demonstrations, ["front"], 4), SFTConfig(shift=0, state_noise=0)
    chosen = np.arange(0, len(samples), 4)
    tuned.adopt(samples.states, np.concatenate([episode.actions for episode in demonstrations]))

    def loss():
        torch.manual_seed(0)
        with torch.no_grad():
            return sft_loss(tuned, samples, chosen, plain, np.random.default_rng(0)).item()

    before = loss()
    fine_tune(tuned, demonstrations, SFTConfig(steps=25, batch=8, learning_rate=5e-3, scale_steps=2, weight_decay=0.0), seed=0)
    assert loss() < 0.9 * before
    assert all(not p.requires_grad for name, p in tuned.named_parameters() if "lora_" not in name and "modules_to_save" not in name)


def test_post_training_moves_a_toy_reward(policy, mini, simulator_config):
    """Of the two tasks, which want opposite things, the one at which the random policy is worse."""
    world, tuned = climbing_world(untrained_world(mini, simulator_config, policy), rows=32), adapted(policy)
    before = imagined_success(tuned, world.env, world.pool, list(TASKS), 1, 0)
    rate = 4e-2 if policy.config.actions == "tokens" else 2e-2
    step = config(updates=8, starts=1, group=32, middle=0.0, backbone_rate=rate, head_rate=1e-3, minibatch=32, microbatch=16, rescore=True, epochs=2)
    rewards = [found["reward"] for found in update(world, tuned, step, tasks=(min(before, key=before.get),))["history"]]
    assert min(rewards[-2:]) > rewards[0] + 0.08, rewards


def test_updates_resume(policy, mini, simulator_config, tmp_path):
    world = climbing_world(untrained_world(mini, simulator_config, policy), rows=8)
    settings = config(updates=3, starts=2, group=4, minibatch=16)
    whole, cut, resumed = (adapted(policy) for _ in range(3))
    update(world, whole, settings)
    with pytest.raises(KeyboardInterrupt):
        update(world, cut, settings, pool=Recorded(world.pool, 5), checkpoint=Checkpoint(tmp_path))
    update(world, resumed, settings, checkpoint=Checkpoint(tmp_path))
    assert moved(weights(whole), resumed) == []


def nudged(policy, seed, by=0.05):
    """An adapter that changes something."""
    torch.manual_seed(seed)
    made = AdaptedPolicy(policy, LoraSettings(rank=2 + seed, alpha=4))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
    return made


def test_adapters_reload_to_the_same_outputs(policy, tmp_path):
    """One adapter merged and another on top of it: of the checkpoint nothing is written again."""
    tuned, obs = nudged(nudged(copy.deepcopy(policy), 0).merged(), 1), observation()
    (tmp_path / "tuned").mkdir()
    save_model(tmp_path / "tuned", "policy", tuned, {}, "# card")
    size, whole = (tmp_path / "tuned" / "model.safetensors").stat().st_size, sum(p.numel() * p.element_size() for p in policy.model.parameters())
    loaded = load_model(tmp_path / "tuned", "policy")
    assert isinstance(loaded, AdaptedPolicy) and len(loaded.base().merged_adapters) == 1
    ours, theirs = sampled(tuned, obs), sampled(loaded, obs)
    np.testing.assert_array_equal(ours.chunk, theirs.chunk)
    np.testing.assert_array_equal(ours.log_prob, theirs.log_prob)
    assert np.abs(sampled(policy, obs).chunk - ours.chunk).max() > 1e-4
    before, after = (p.reference_density(p.reference_encode(obs), ours.trace) for p in (tuned, loaded))
    assert torch.equal(centre(before), centre(after))
    names = load_names(tmp_path / "tuned" / "model.safetensors")
    assert size < whole and not any(name.endswith("embed_tokens.weight") for name in names)


def test_merged_weights_need_nothing_else(policy, tmp_path):
    """The checkpoint in its own layout comes along; the one that it was made of may go."""
    base = tmp_path / "base"
    shutil.copytree(policy.config.model, base)
    own = load_vla(policy.config.model_copy(update={"model": str(base)}))
    own.load_state_dict(policy.state_dict())
    tuned, obs = nudged(own, 1), observation()
    wanted = sampled(tuned, obs)
    (tmp_path / "merged").mkdir()
    write_merged(tmp_path / "merged", tuned, {}, "# card")
    shutil.rmtree(base)
    loaded = load_model(tmp_path / "merged", "policy")
    assert not isinstance(loaded, AdaptedPolicy)
    np.testing.assert_allclose(sampled(loaded, obs).chunk, wanted.chunk, atol=2e-3)
    if isinstance(loaded, FlowPolicy):  # in its own layout, statistics and all
        alone = load_vla(policy.config.model_copy(update={"model": str(tmp_path / "merged"), "statistics": "checkpoint"}))
        still = {"explore": False, "generator": torch.Generator().manual_seed(0)}
        np.testing.assert_allclose(
            alone.act(obs, **still).chunk, loaded.act(obs, explore=False, generator=torch.Generator().manual_seed(0)).chunk, atol=1e-5
        )


def centre(density):
    return density.logits if isinstance(density, TokenDensity) else density.mean


def load_names(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chunk": 50}, "predicts . steps, but env.chunk plays 50"),
        ({"action_size": 60, "state_size": 60}, "(another robot|at most), .*60"),
        ({"cameras": ("a", "b", "c")}, "takes 1 cameras .*, found \\['a', 'b', 'c'\\]"),
        ({"model": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_what_does_not_fit_is_told(settings, change, message):
    if "cameras" in change and Path(settings.model, "dataset_statistics.json").is_file():
        pytest.skip("an OpenVLA checkpoint does not say how many pictures it was trained with")
    if settings.new_head and not {"model", "cameras"} & change.keys():
        pytest.skip("a new head fits every robot")
    with pytest.raises(UserError, match=message) as error:
        load_vla(settings.model_copy(update=change))
    assert "\n" not in str(error.value)


# Against what the original implementations gave, through the policy


@needs_fixtures
@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
def test_a_policy_acts_as_the_original_did(kind):
    """From pictures, instruction and state in their units to actions in theirs, from the same first noise."""
    folder = FIXTURES / f"{kind}_tiny"
    expected, facts = np.load(folder / "expected.npz"), json.loads((folder / "facts.json").read_text())
    cameras = ("image", "image2")
    pictures = [expected[f"in/observation.images.{camera}"] for camera in cameras]  # (B, 3, H, W)
    noise = torch.from_numpy(expected["in/noise"])
    config = VLAConfig(model=str(folder / "pretrained_model"), cameras=cameras, chunk=noise.shape[1], state_size=8, action_size=7, resolution=64)
    policy = load_vla(config)
    policy.first_noise = lambda rows, generator: noise[:rows]
    images = {camera: picture.transpose(0, 2, 3, 1) for camera, picture in zip(cameras, pictures)}
    act = policy.act(Observation(images, expected["in/observation.state"], facts["tasks"]), explore=False)
    np.testing.assert_allclose(act.chunk, expected["expected/actions"], atol=5e-4)


@needs_fixtures
def test_openvla_acts_as_the_original_did(monkeypatch):
    """From its own resized pictures, for PIL's resizing is not tensorflow's; batched, where the original took one at a time."""
    folder = FIXTURES / "openvla_oft_tiny"
    inputs, expected, facts = (np.load(folder / "inputs.npz"), np.load(folder / "expected.npz"), json.loads((folder / "facts.json").read_text()))
    cameras = ("agent", "wrist")
    config = VLAConfig(model=str(folder / "checkpoint"), cameras=cameras, chunk=8, state_size=8, action_size=7, resolution=256)
    policy, by_tokens = load_vla(config), load_vla(config.model_copy(update={"actions": "tokens"}))
    monkeypatch.setattr(inputs_of_openvla, "resized", lambda images, _: images)
    images = {camera: np.stack([inputs[f"s{s}/image{k}_resized"] for s in (0, 1)]) for k, camera in enumerate(cameras)}
    state = np.stack([inputs[f"s{s}/proprio_raw"] for s in (0, 1)]).astype(np.float32)
    obs = Observation(images, state, facts["instructions"])
    act = policy.act(obs, explore=False)
    for row in (0, 1):
        np.testing.assert_allclose(act.chunk[row], expected[f"s{row}/env_action"], atol=5e-4)
    tokens = by_tokens.act(obs, explore=False)
    for row in (0, 1):
        np.testing.assert_allclose(tokens.chunk[row, :, :6], expected[f"s{row}/discrete_action"][:, :6], atol=5e-4)


def test_a_name_on_the_hub_is_pinned(tmp_path, monkeypatch):
    """What was learned on a checkpoint belongs to that commit of it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--owner--tiny"
    write_smolvla(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    config = VLAConfig(model="owner/tiny", **SHARED)
    (tmp_path / "policy").mkdir()
    save_model(tmp_path / "policy", "policy", nudged(load_vla(config), 0), {}, "# card")
    loaded = load_model(tmp_path / "policy", "policy")
    assert loaded.config.model == f"owner/tiny@{commit}" == pinned(config).model


@pytest.mark.parametrize("action_size, predicts, steps", [(4, 6, 6), (4, None, 8), (14, None, 25)])
def test_an_answer_may_be_longer_than_what_is_played(action_size, predicts, steps, tmp_path):
    """The first steps of an answer are played and scored; by its width of 14 an ALOHA policy is known, which answers 25 steps."""
    folder = write_openvla(tmp_path / "model", side=56, action_size=action_size)
    config = VLAConfig(model=str(folder), action_size=action_size, predicts=predicts, **(SHARED | {"statistics": "checkpoint"}))
    long = load_vla(config.model_copy(update={"chunk": steps}))
    obs = observation()
    whole, played = (one.act(obs, explore=False).chunk for one in (long, load_vla(config.model_copy(update={"chunk": 3}))))
    assert whole.shape == (3, steps, action_size) and played.shape == (3, 3, action_size) and long.model.config.chunk == steps
    np.testing.assert_array_equal(played, whole[:, :3])
    with pytest.raises(UserError, match=f"predicts {steps} steps, but env.chunk plays {steps + 1}"):
        load_vla(config.model_copy(update={"chunk": steps + 1}))


def test_a_changed_checkpoint_is_another_one(tmp_path):
    """Loading converts OpenVLA's heads beside their files, which changes nothing; a weight that changes does."""
    folder = write_openvla(tmp_path / "model", side=56, proprio_size=4)
    before = state_of(folder, CONVERTED)
    load_vla(VLAConfig(model=str(folder), **SHARED))
    assert list(folder.glob(CONVERTED)) and state_of(folder, CONVERTED) == before != state_of(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert state_of(folder, CONVERTED) != before
