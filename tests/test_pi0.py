"""pi0 against what lerobot computed, against transformers' own forward, and against checkpoints that are not whole."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pi0 import changed, transformers_own, write_pi0

from worldenv_cli.errors import UserError
from worldenv_cli.policies.pi0 import EXPERT_LINEARS, LANGUAGE_LINEARS, load_pi0, padded, unfilled

FIXTURE = Path(__file__).resolve().parents[2] / "shared/fixtures/pi0_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason=f"{FIXTURE} is not here: a checkpoint and outputs made by lerobot")
CAMERAS = ("top", "wrist")
PATCHES = 4  # of a picture of the tiny checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pi0(tmp_path_factory.mktemp("pi0") / "lerobot", seed=1, cameras=CAMERAS, state_size=6, action_size=3, layers=3)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """The same weights and statistics in transformers' layout."""
    folder = tmp_path_factory.mktemp("pi0") / "transformers"
    return write_pi0(folder, seed=1, state_size=6, action_size=3, layers=3, layout="transformers")


@pytest.fixture
def loaded(folder):
    return load_pi0(folder)


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (3, 64, 64, 3), np.uint8) for _ in CAMERAS]


def inputs(model, checkpoint, pictures, instructions=("open the drawer", "push", "pick up the bowl"), **how):
    images, image_mask = model.prepare(pictures)
    tokens, token_mask = checkpoint.tokenise(list(instructions), **how)
    state = torch.linspace(-1, 1, len(instructions) * checkpoint.state_size).unflatten(0, (len(instructions), -1))
    return images, image_mask, tokens, token_mask, checkpoint.state_normaliser.normalise(state)


def point(checkpoint):
    return torch.randn(3, checkpoint.chunk, checkpoint.max_action, generator=torch.Generator().manual_seed(2)), torch.linspace(0.1, 0.9, 3)


def close(a, b, atol):
    torch.testing.assert_close(a.float(), b.float(), atol=atol, rtol=0)


@needs_fixture
@torch.no_grad()
def test_lerobot_parity():
    model, checkpoint = load_pi0(FIXTURE / "pretrained_model")
    expected = {name: torch.from_numpy(array) for name, array in np.load(FIXTURE / "expected.npz").items() if array.ndim}
    facts = json.loads((FIXTURE / "facts.json").read_text())
    tokens, token_mask = checkpoint.tokenise(facts["tasks"])
    assert torch.equal(tokens, expected["pre/observation.language.tokens"])
    assert torch.equal(token_mask, expected["pre/observation.language.attention_mask"])
    state = checkpoint.state_normaliser.normalise(expected["in/observation.state"])
    action = checkpoint.action_normaliser.normalise(expected["in/action"])
    close(state, expected["pre/observation.state"], 1e-6)
    close(action, expected["pre/action"], 1e-6)

    images, image_mask = model.prepare([expected[f"in/observation.images.{name}"].movedim(1, -1).numpy() for name in checkpoint.image_keys])
    close(images, expected["model/images"].transpose(0, 1), 1e-6)  # the fixture has cameras first
    assert torch.equal(image_mask, expected["model/img_masks"].T)
    embedded, mask = model.embed(images, image_mask, tokens, token_mask)
    close(embedded, expected["model/prefix_embs"], 2e-5)
    assert torch.equal(mask, expected["model/prefix_pad_masks"])

    prefix = model.prefix(images, image_mask, tokens, token_mask, state)
    noise, target, time = expected["in/noise"], padded(action, checkpoint.max_action), expected["in/time"]
    velocity = model.velocity(prefix, time[:, None, None] * noise + (1 - time[:, None, None]) * target, time)
    errors = (noise - target - velocity) ** 2
    close(errors, expected["expected/loss_elements"], 1e-4)
    assert errors[..., : checkpoint.action_size].mean().item() == pytest.approx(facts["loss"], abs=1e-5)
    over_all = facts["agreement_with_transformers_PI0ForConditionalGeneration"]["hf_loss_mean_over_all_padded_dims"]
    assert errors.mean().item() == pytest.approx(over_all, abs=1e-3)

    x = noise
    for step in range(checkpoint.steps):
        close(x, expected["expected/x_t"][step], 2e-5)
        velocity = model.velocity(prefix, x, torch.full_like(time, 1 - step / checkpoint.steps))
        close(velocity, expected["expected/v_t"][step], 5e-5)
        x = x - velocity / checkpoint.steps
    close(x[..., : checkpoint.action_size], expected["expected/actions_normalized"], 2e-5)
    close(checkpoint.action_normaliser.unnormalise(x[..., : checkpoint.action_size]), expected["expected/actions"], 2e-5)


@torch.no_grad()
def test_cached_prefix_is_transformers_full_forward(loaded, other_folder, pictures):
    """At time 0 both embed time alike. An absent camera has no tokens in transformers' prompt."""
    (mine, mine_checkpoint), (ours, checkpoint), theirs = loaded, load_pi0(other_folder), transformers_own(other_folder)
    x, moments = point(checkpoint)
    for cameras, time, within in ((2, torch.zeros(3), 1e-5), (1, torch.zeros(3), 1e-5), (2, moments, 2e-3)):
        images, image_mask, tokens, token_mask, state = inputs(ours, checkpoint, pictures[:cameras])
        word = theirs.config.vlm_config.image_token_id
        expected = theirs(
            state=padded(state, checkpoint.max_state),
            noise=x,
            timestep=time,
            input_ids=torch.cat([torch.full((3, PATCHES * cameras), word), tokens], 1),
            attention_mask=torch.cat([torch.ones(3, PATCHES * cameras), token_mask], 1).long(),
            pixel_values=images,
            pixel_attention_mask=image_mask,
        ).logits
        close(ours.velocity(ours.prefix(images, image_mask, tokens, token_mask, state), x, time), expected, within)
        prefix = mine.prefix(*inputs(mine, mine_checkpoint, pictures[:cameras]))  # lerobot's layout of the same weights
        close(mine.velocity(prefix, x, time), expected, within)


def test_layouts_agree(folder, loaded, other_folder, tmp_path):
    """Also with the names that transformers' `save_pretrained` writes, and with lerobot's without their "model."."""
    ours, checkpoint = load_pi0(other_folder)
    assert [checkpoint.state_size, checkpoint.action_size, checkpoint.chunk, checkpoint.steps] == [6, 3, 5, 4]
    transformers_own(other_folder).save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    others = [ours, load_pi0(tmp_path / "saved")[0], load_pi0(changed(folder, tmp_path / "bare", lambda _: bare))[0]]
    for name, tensor in loaded[0].state_dict().items():
        assert all(torch.equal(tensor, other.state_dict()[name]) for other in others), name
    for one, other in zip((loaded[1].state_normaliser, loaded[1].action_normaliser), (checkpoint.state_normaliser, checkpoint.action_normaliser)):
        close(one.normalise(torch.ones(len(one.offset))), other.normalise(torch.ones(len(one.offset))), 1e-6)
    with_bos, without = (each.tokenise(["go"], padding="longest")[0].tolist() for each in (loaded[1], checkpoint))
    assert with_bos == without and len(without[0]) == 4  # <bos>, two bytes, line break
    bare_processor = load_pi0(tmp_path / "saved")[1]
    assert not bare_processor.state_normaliser.known and not bare_processor.action_normaliser.known


@torch.no_grad()
def test_rows_of_a_prefix_can_be_picked_and_joined(loaded, pictures):
    model, checkpoint = loaded
    prefix = model.prefix(*inputs(model, checkpoint, pictures))
    before = {name: tensor.clone() for name, tensor in prefix.items()}
    x, time = point(checkpoint)
    velocity = model.velocity(prefix, x, time)
    assert {len(tensor) for tensor in prefix.values()} == {3} and prefix["keys"].shape == (3, 3, 1, 2 * PATCHES + 24, 8)
    again = [2, 0, 0]
    close(model.velocity({name: tensor[again] for name, tensor in prefix.items()}, x[again], time[again]), velocity[again], 1e-5)
    parts = [model.prefix(*(tensor[row : row + 1] for tensor in inputs(model, checkpoint, pictures))) for row in range(3)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    close(model.velocity(joined, x, time), velocity, 1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prefix.items())
    assert velocity.std() > 0.1 and (velocity[0] - velocity[1]).std() > 0.1


@torch.no_grad()
def test_only_what_is_there_matters(tmp_path, pictures):
    model, checkpoint = load_pi0(write_pi0(tmp_path, seed=5, cameras=CAMERAS, empty_cameras=1, resolution=42, width=32, head_dim=16, max_action=8))
    x, time = point(checkpoint)
    images, image_mask, tokens, token_mask, state = inputs(model, checkpoint, pictures)
    assert images.shape == (3, 3, 3, 42, 42) and image_mask.tolist() == [[True, True, False]] * 3 and (images[:, 2] == -1).all()

    def velocity(*seen):
        return model.velocity(model.prefix(*seen), x, time)

    first = velocity(images, image_mask, tokens, token_mask, state)
    close(velocity(images, image_mask, torch.where(token_mask, tokens, 9), token_mask, state), first, 0)  # padding
    shorter = inputs(model, checkpoint, pictures, padding="longest")
    assert shorter[2].shape[1] < tokens.shape[1]
    close(velocity(*shorter), first, 1e-5)
    some = image_mask.clone()
    some[0, 1] = False  # in one row only, so that its place is kept
    partly = velocity(images, some, tokens, token_mask, state)
    close(partly[1:], first[1:], 1e-5)
    close(partly[:1], velocity(*inputs(model, checkpoint, pictures[:1]))[:1], 1e-5)
    others = (1 - images, tokens, state), (images, (tokens + 1) % 256, state), (images, tokens, state + 0.3)
    for seen, said, felt in others:
        assert (velocity(seen, image_mask, said, token_mask, felt) - first).abs().amax((1, 2)).min() > 1e-3


def test_pictures_keep_their_shape(loaded):
    model, checkpoint = loaded
    wide = np.full((1, 30, 60, 3), 255, np.uint8)[:, :, ::-1]
    images, mask = model.prepare([wide])
    close(images[0, 0, 0, :, 0], torch.tensor([-1.0] * 7 + [1.0] * 14 + [-1.0] * 7), 1e-6)
    assert mask.tolist() == [[True, False]]
    close(model.prepare([wide[:, :, :12]])[0][0, 0, 0, 0], torch.tensor([-1.0] * 8 + [1.0] * 11 + [-1.0] * 9), 1e-6)
    for count in (0, 3):
        with pytest.raises(UserError, match=f"given {count} cameras: this checkpoint takes 1 to 2"):
            model.prepare([wide] * count)


def test_gradients_and_checkpointing(loaded, pictures):
    model, checkpoint = loaded
    seen, (x, time) = inputs(model, checkpoint, pictures), point(checkpoint)

    def gradients(frozen):
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(not frozen):
            prefix = model.prefix(*seen)
        (model.velocity(prefix, x, time) ** 2).mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    frozen, whole = gradients(True), gradients(False)
    assert {name.split(".")[0] for name in frozen} == {"expert"} and len(frozen) == len(list(model.expert.parameters()))
    assert {name.split(".")[0] for name in whole} == {"expert", "vlm"}
    model.checkpoint_gradients()
    for plain, again in ((frozen, gradients(True)), (whole, gradients(False))):
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            close(again[name], gradient, 1e-6)


def test_lora_finds_the_linears(loaded, pictures):
    from peft import LoraConfig, get_peft_model

    model, checkpoint = loaded
    seen, (x, time) = inputs(model, checkpoint, pictures), point(checkpoint)
    before = model.velocity(model.prefix(*seen), x, time)
    for targets, owner in ((EXPERT_LINEARS, "expert.dit"), (LANGUAGE_LINEARS, "vlm.language_model")):
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        names = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert len(names) == 2 * 7 * 3 and all(owner in name for name in names)
        assert (model.velocity(model.prefix(*seen), x, time) - before).abs().max() > 1e-3
        model = adapted.unload()
    close(model.velocity(model.prefix(*seen), x, time), before, 0)


@torch.no_grad()
def test_bfloat16(folder, loaded, pictures):
    model, checkpoint = load_pi0(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.vlm.parameters()} == {p.dtype for p in model.expert.dit.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.expert.action_out_proj.parameters()} == {torch.float32}
    x, time = point(checkpoint)
    prefix = model.prefix(*inputs(model, checkpoint, pictures))
    assert prefix["keys"].dtype == torch.bfloat16 and prefix["state"].dtype == torch.float32
    exact = loaded[0].velocity(loaded[0].prefix(*inputs(model, checkpoint, pictures)), x, time)
    found = model.velocity(prefix, x, time)
    assert found.dtype == torch.float32 and (found - exact).std() < 0.05 * exact.std()
    close(loaded[0].velocity(prefix, x, time), exact, 0.2)  # a frozen prefix in bfloat16, an expert that learns in float32
    empty = unfilled(model.config)
    assert all(p.is_meta for p in empty.parameters()) and not any(buffer.is_meta for buffer in empty.buffers())


# Checkpoints that are not whole


EXPERT = "model.paligemma_with_expert.gemma_expert.model.layers."
TOWER = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0."


def told(folder, words):
    with pytest.raises(UserError, match=words) as error:
        load_pi0(folder)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_are_all_listed(folder, tmp_path):
    def broken(tensors):
        del tensors[f"{EXPERT}1.self_attn.k_proj.weight"], tensors[f"{TOWER}mlp.fc1.bias"]
        return tensors | {f"{EXPERT}0.mlp.extra.weight": torch.zeros(2), f"{EXPERT}0.self_attn.q_proj.weight": torch.zeros(3, 32)}

    found = (
        f"(missing: {EXPERT}1.self_attn.k_proj.weight, {TOWER}mlp.fc1.bias; unexpected: {EXPERT}0.mlp.extra.weight; "
        f"wrong shape: {EXPERT}0.self_attn.q_proj.weight (3, 32) instead of (64, 32))"
    )
    told(changed(folder, tmp_path / "a", broken), re.escape(found))
    wordless = changed(folder, tmp_path / "b", lambda tensors: {n: t for n, t in tensors.items() if not n.endswith("paligemma.lm_head.weight")})
    told(wordless, r"missing: [\w.]*paligemma.lm_head.weight\)")
    told(changed(folder, tmp_path / "c", image_resolution=[42, 42]), r"position_embedding.weight \(4, 32\) instead of \(9, 32\)")


def test_wrong_configurations_are_told(folder, tmp_path):
    told(changed(folder, tmp_path / "a", type="smolvla"), "config.json is of type 'smolvla': expected 'pi0'")
    told(changed(folder, tmp_path / "b", paligemma_variant="gemma_7b"), "'gemma_7b' and 'gemma_300m': expected names out of gemma_2b, gemma_300m")
    told(changed(folder, tmp_path / "c", image_resolution=[28, 42]), "image_resolution is 28 x 42: expected a square")
    told(changed(folder, tmp_path / "d", model_type="paligemma"), "config.json is of model_type 'paligemma': expected 'pi0'")
    told(changed(folder, tmp_path / "e", model_type="pi0", vlm_config={"model_type": "no"}), "config.json is not a configuration of pi0")


def test_wrong_files_are_told(folder, tmp_path):
    cut = changed(folder, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    told(cut, "cut/model.safetensors is truncated or damaged")
    (cut / "model.safetensors").unlink()
    told(cut, "model.safetensors missing, expected the weights there")

    shards = write_pi0(tmp_path / "shards", layout="transformers", layers=1)
    processor, second = shards / "processor_config.json", shards / "model-00002-of-00002.safetensors"
    statistics = processor.read_text()
    processor.write_text(json.dumps(json.loads(statistics) | {"state_std": [1.0]}))
    told(shards, r"processor_config.json: state_std is \[1.0\]: expected a list of numbers, as long as state_mean")
    processor.write_text(statistics)
    second.write_bytes(second.read_bytes()[:-7])
    told(shards, "model-00002-of-00002.safetensors is truncated or damaged")
    second.unlink()
    told(shards, "model-00002-of-00002.safetensors missing")
