"""SmolVLA against arrays that lerobot computed, and on random checkpoints of other sizes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from recorded import FIXTURES
from tiny_smolvla import SPECIAL, VLM, write_smolvla, write_tokenizer
from torch.nn import functional as F

from worldenv_cli.atomic import read_json, read_tensors, write_json, write_tensors
from worldenv_cli.errors import UserError
from worldenv_cli.policies.smolvla import load_smolvla

FIXTURE = FIXTURES / "smolvla_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason=f"{FIXTURE} is not here: a checkpoint and what lerobot made of it")
WORDS = ["open the top drawer", "press it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_smolvla(tmp_path_factory.mktemp("smolvla") / "tiny", seed=1, layers=3, cameras=("front", "wrist"))


@pytest.fixture
def loaded(folder):
    return load_smolvla(folder)


def observed(model, checkpoint, rows=2, seed=0, padding=None, words=WORDS):
    """Arguments of `prefix` for random observations."""
    rng = np.random.default_rng(seed)
    sizes = [checkpoint.image_shapes[name] for name in checkpoint.image_keys]
    images, image_mask = model.prepare([rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8) for size in sizes])
    state = torch.from_numpy(rng.normal(size=(rows, checkpoint.state_size)).astype(np.float32))
    return images, image_mask, *checkpoint.tokenise(words[:rows], padding), state


def point(checkpoint, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, checkpoint.chunk, checkpoint.max_action, generator=generator), torch.rand(rows, generator=generator)


def close(found, expected, tolerance):
    return found.shape == expected.shape and (found - expected).abs().max() <= tolerance


# What lerobot computed


@pytest.fixture(scope="module")
def known():
    arrays = np.load(FIXTURE / "expected.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, json.loads((FIXTURE / "facts.json").read_text())


@needs_fixture
def test_lerobots_numbers(known):
    arrays, facts = known
    model, checkpoint = load_smolvla(FIXTURE / "pretrained_model")
    tokens, token_mask = checkpoint.tokenise(facts["tasks"])
    assert torch.equal(tokens, arrays["pre/observation.language.tokens"])
    assert torch.equal(token_mask, arrays["pre/observation.language.attention_mask"])
    state = checkpoint.state_normaliser.normalise(arrays["in/observation.state"])
    action = checkpoint.action_normaliser.normalise(arrays["in/action"])
    assert close(state, arrays["pre/observation.state"], 1e-6) and close(action, arrays["pre/action"], 1e-6)
    images, image_mask = model.prepare(
        [arrays[f"in/observation.images.{name}"].movedim(1, -1).contiguous().numpy() for name in checkpoint.image_keys]
    )
    assert close(images.transpose(0, 1), arrays["model/images"], 1e-6) and torch.equal(image_mask.T, arrays["model/img_masks"])
    with torch.no_grad():
        embedded, mask = model.vlm.embed(images, image_mask, tokens, token_mask, state)
        assert close(embedded, arrays["model/prefix_embs"], 1e-4) and torch.equal(mask, arrays["model/prefix_pad_masks"])
        prefix = model.prefix(images, image_mask, tokens, token_mask, state)

        noise, time = arrays["in/noise"], arrays["in/time"]
        action = F.pad(action, (0, checkpoint.max_action - checkpoint.action_size))
        x = time[:, None, None] * noise + (1 - time[:, None, None]) * action
        elements = (model.velocity(prefix, x, time) - (noise - action)) ** 2
        assert close(elements, arrays["expected/loss_elements"], 5e-4)
        assert elements.mean().item() == pytest.approx(arrays["expected/loss"].item(), rel=1e-4) == pytest.approx(facts["loss"], rel=1e-4)

        x = noise
        for k in range(checkpoint.steps):
            assert close(x, arrays["expected/x_t"][k], 5e-4)
            velocity = model.velocity(prefix, x, torch.full((len(x),), 1 - k / checkpoint.steps))
            assert close(velocity, arrays["expected/v_t"][k], 5e-4)
            x = x - velocity / checkpoint.steps
    played = x[..., : checkpoint.action_size]
    assert close(played, arrays["expected/actions_normalized"], 1e-3)
    assert close(checkpoint.action_normaliser.unnormalise(played), arrays["expected/actions"], 1e-3)
    assert close(played[:, :2].transpose(0, 1), arrays["expected/select_action_first_two_normalized"], 1e-3)


@needs_fixture
def test_patches_are_where_transformers_4_57_put_them(known):
    """Where the positions are right, prefix embeddings are far from lerobot's: the checkpoint was run with ones that are off by one."""
    arrays, _ = known
    embedded = [load_smolvla(FIXTURE / "pretrained_model", shifted_patches=choice)[0].vlm for choice in (None, True, False)]
    with torch.no_grad():
        found = [vlm.image_features(arrays["model/images"][0]) * 8 - arrays["model/prefix_embs"][:, :4] for vlm in embedded]
    assert [one.abs().max() < 1e-4 for one in found] == [True, True, False]


# Other sizes


def whole(model, images, image_mask, tokens, token_mask, state, x, time):
    """The velocity without a cache, masks as numbers and attention by hand: prefix and actions go through the layers together."""
    hidden, there = model.vlm.embed(images, image_mask, tokens, token_mask, state)
    expert, length, steps = model.expert, hidden.shape[1], x.shape[1]
    moment = expert._embedded(time).float()[:, None].expand(-1, steps, -1)
    actions = expert.action_time_mlp_out(F.silu(expert.action_time_mlp_in(torch.cat([expert.action_in_proj(x), moment], -1))))
    there = torch.cat([there, there.new_ones(len(x), steps)], 1)
    block = torch.cat([torch.zeros(length - 1), torch.arange(1, steps + 2)])  # what is seen: blocks up to one's own
    seen = (block[:, None] >= block) & there[:, None, :]
    place = there.cumsum(1) - 1

    def turned(x, place):
        angle = place[..., None, None] / 10_000 ** (torch.arange(x.shape[-1] // 2) / (x.shape[-1] // 2))
        number = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([number.real, number.imag], -1)

    def attention(layer, hidden, query, key, value, seen):
        key, value = (one.repeat_interleave(query.shape[2] // key.shape[2], 2) for one in (key, value))
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weights = (weights + (~seen[:, None]) * -1e9).softmax(-1)
        hidden = hidden + layer.self_attn.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def parts(layer, hidden):
        normed, size = layer.input_layernorm(hidden), layer.self_attn.head_dim
        return [project(normed).unflatten(-1, (-1, size)) for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)]

    for below, above, crossing in zip(model.vlm.layers, expert.layers, model.config.crossing, strict=True):
        q, k, v = parts(below, hidden)
        q, k = turned(q, place[:, :length]), turned(k, place[:, :length])
        if crossing:
            size = above.self_attn.head_dim
            query = turned(above.self_attn.q_proj(above.input_layernorm(actions)).unflatten(-1, (-1, size)), torch.arange(steps)[None])
            key, value = (p(one.flatten(2)).unflatten(-1, (-1, size)) for p, one in ((above.self_attn.k_proj, k), (above.self_attn.v_proj, v)))
            actions = attention(above, actions, query, key, value, seen[:, length:, :length])
        else:
            own_q, own_k, own_v = parts(above, actions)
            key, value = torch.cat([k, turned(own_k, place[:, length:])], 1), torch.cat([v, own_v], 1)
            actions = attention(above, actions, turned(own_q, place[:, length:]), key, value, seen[:, length:])
        hidden = attention(below, hidden, q, k, v, seen[:, :length, :length])
    return expert.action_out_proj(expert.norm(actions))


SIZES = [
    {},
    {"layers": 4, "heads": (3, 1), "width": 36, "expert_width": 0.5, "chunk": 7, "joined": 3, "image_size": 48, "max_state": 11, "state_size": 9},
    {"layers": 3, "heads": (4, 4), "self_attention_every": 3, "empty_cameras": 2, "cameras": ("a", "b"), "action_size": 7, "resolution": 40},
    {"layers": 2, "self_attention_every": -1, "load_vlm_weights": True, "padding": "max_length", "expert_width": 1.25},
]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_cached_prompt_changes_nothing(tmp_path, sizes):
    model, checkpoint = load_smolvla(write_smolvla(tmp_path / "tiny", seed=len(sizes), **sizes))
    inputs, (x, time) = observed(model, checkpoint), point(checkpoint)
    with torch.no_grad():
        velocity = model.velocity(model.prefix(*inputs), x, time)
        assert velocity.shape == x.shape and velocity.std() > 0.05
        torch.testing.assert_close(velocity, whole(model, *inputs, x, time), atol=1e-4, rtol=1e-4)


def test_rows_of_the_prompt_are_picked_joined_and_used_again(loaded):
    model, checkpoint = loaded
    x, time = point(checkpoint)
    with torch.no_grad():
        short, long = (model.prefix(*observed(model, checkpoint, padding=padding)) for padding in ("longest", "max_length"))
        expected = model.velocity(short, x, time)
        torch.testing.assert_close(model.velocity(long, x, time), expected)  # padding takes up no position
        alone = [model.prefix(*(one[row : row + 1] for one in observed(model, checkpoint, padding="max_length"))) for row in (1, 0)]
        joined = {name: torch.cat([one[name] for one in alone]) for name in long}
        torch.testing.assert_close(model.velocity({name: one[[1, 0]] for name, one in joined.items()}, x, time), expected)
        later = x.clone()
        later[:, 2:] += 1
        changed = (model.velocity(long, later, time) - expected).abs().amax((0, 2))
    assert changed[:2].max() < 1e-5 and changed[2:].min() > 1e-3  # actions see those before them, not those after


def test_empty_cameras_are_not_seen(tmp_path):
    folder = write_smolvla(tmp_path / "tiny")
    model, checkpoint = load_smolvla(folder)
    config = read_json(folder / "config.json")
    feature = {"observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 480, 640]}}
    write_json(folder / "config.json", config | {"empty_cameras": 1, "input_features": config["input_features"] | feature})
    more, other = load_smolvla(folder)
    images, mask = more.prepare([np.zeros((2, 30, 64, 3), np.uint8)])
    assert other.image_keys == ["image"] and images.shape == (2, 2, 3, 32, 32) and mask.tolist() == [[True, False]] * 2 and images.max() == -1
    x, time = point(checkpoint)
    expected = model.velocity(model.prefix(*observed(model, checkpoint)), x, time)
    torch.testing.assert_close(more.velocity(more.prefix(*observed(more, other)), x, time), expected)


def test_pictures_keep_their_shape(loaded):
    model, _ = loaded
    images, _ = model.prepare([np.full((1, 16, 64, 3), 255, np.uint8), np.full((1, 64, 32, 3), 255, np.uint8)])
    wide, high = images[0, 0, 0] == 1, images[0, 1, 0] == 1
    assert wide[24:].all() and not wide[:24].any() and high[:, 16:].all() and not high[:, :16].any()


# Learning


def gradients(model, prefix, x, time):
    model.zero_grad()
    model.velocity(prefix, x, time).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.expert.named_parameters()}


def test_the_expert_learns_from_a_prompt_without_gradients(loaded):
    model, checkpoint = loaded
    inputs, (x, time) = observed(model, checkpoint), point(checkpoint)
    with torch.no_grad():
        prefix = model.prefix(*inputs)
    expected = gradients(model, prefix, x, time)
    assert all(grad.abs().max() > 0 for grad in expected.values())
    for again in (False, True):
        model.checkpoint_gradients(again)
        torch.testing.assert_close(gradients(model, model.prefix(*inputs), x, time), expected)
        idle = [name for name, p in model.vlm.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert not idle or all(re.search(r"layers\.2\.(self_attn\.[qo]_|mlp|post)", name) for name in idle)  # of the last layer, only keys and values


def test_lora_on_the_expert(loaded):
    from peft import LoraConfig, get_peft_model

    model, checkpoint = loaded
    inputs, (x, time) = observed(model, checkpoint), point(checkpoint)
    linear = [f"expert.{name}" for name, module in model.expert.named_modules() if isinstance(module, torch.nn.Linear)]
    expected = model.velocity(model.prefix(*inputs), x, time)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=linear, init_lora_weights=False))
    model.velocity(model.prefix(*inputs), x, time).sum().backward()
    assert all(".expert." in name and p.grad is not None for name, p in tuned.named_parameters() if p.requires_grad)
    with tuned.disable_adapter():
        torch.testing.assert_close(model.velocity(model.prefix(*inputs), x, time), expected)


def test_bfloat16(folder, loaded):
    model, checkpoint = loaded
    half, _ = load_smolvla(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    inputs, (x, time) = observed(model, checkpoint), point(checkpoint)
    with torch.no_grad():
        expected = model.velocity(model.prefix(*inputs), x, time)
        prefix = half.prefix(*inputs)
        for found in (half.velocity(prefix, x, time), half.expert.float()(prefix, x, time)):
            assert found.dtype == torch.float32 and (found - expected).abs().max() < 0.1 * expected.abs().max()


# Weights that do not fit


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    path = write_smolvla(tmp_path / "tiny") / "model.safetensors"
    tensors = read_tensors(path)
    tensors["model.surplus"] = tensors.pop("model.state_proj.bias").clone()
    tensors["model.action_out_proj.bias"] = torch.zeros(3)
    write_tensors(path, tensors)
    with pytest.raises(UserError) as raised:
        load_smolvla(path.parent)
    assert "missing: model.state_proj.bias; unexpected: model.surplus; wrong shape: model.action_out_proj.bias (3,) instead of (8,)" in str(
        raised.value
    )
    assert "\n" not in str(raised.value) and str(path.parent) in str(raised.value)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_smolvla(path.parent)


def test_tied_words_and_compiled_names(tmp_path):
    folder = write_smolvla(tmp_path / "tiny")
    words = load_smolvla(folder)[0].vlm.embed_tokens.weight
    tensors = read_tensors(folder / "model.safetensors")
    tensors["model.vlm_with_expert.vlm.lm_head.weight"] = tensors.pop("model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight")
    write_tensors(folder / "model.safetensors", {name.replace("model.", "model._orig_mod.", 1): one for name, one in tensors.items()})
    assert torch.equal(load_smolvla(folder)[0].vlm.embed_tokens.weight, words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_expert_layers": 1}, "num_expert_layers is 1: expected 2"),
        ({"add_image_special_tokens": True}, "add_image_special_tokens"),
        ({"resize_imgs_with_padding": [32, 48]}, "pictures of 48x32 pixels: expected a square"),
        ({"vlm_model_name": "no/such-model"}, "vision-language model 'no/such-model' could not be loaded"),
    ],
)
def test_kinds_that_are_not_known(tmp_path, change, message):
    folder = write_smolvla(tmp_path / "tiny")
    write_json(folder / "config.json", read_json(folder / "config.json") | change)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load_smolvla(folder)
    assert "\n" not in str(raised.value)


# What lerobot 0.6 and other settings change


def test_words_around_pictures(tmp_path):
    """add_image_special_tokens: two words before and one after each picture, unscaled, and there for a masked picture too."""
    plain = write_smolvla(tmp_path / "plain", cameras=("front", "wrist"), empty_cameras=1)
    folder = tmp_path / "words"
    shutil.copytree(plain, folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"add_image_special_tokens": True})
    with pytest.raises(UserError, match="lacks <fake_token_around_image> or <global-img>"):
        load_smolvla(folder)
    write_tokenizer(folder / VLM, (*SPECIAL[:1], "<fake_token_around_image>", "<global-img>", *SPECIAL[1:]))
    model, checkpoint = load_smolvla(folder)
    assert (model.config.before_picture, model.config.after_picture) == ((1, 2), (1,)) and model.image_tokens == 4 + 3
    images, image_mask, tokens, token_mask, state = observed(model, checkpoint)
    with torch.no_grad():
        embedded, mask = model.vlm.embed(images, image_mask, tokens, token_mask, state)
        without, _ = load_smolvla(plain)[0].vlm.embed(images, image_mask, tokens, token_mask, state)
        word = model.vlm.embed_tokens.weight
        prefix = model.prefix(images, image_mask, tokens, token_mask, state)
    for camera in range(3):
        found, seen = embedded[:, 7 * camera : 7 * camera + 7], mask[:, 7 * camera : 7 * camera + 7]
        assert torch.equal(found[:, :2], word[[1, 2]].expand(2, 2, -1)) and torch.equal(found[:, 6], word[1].expand(2, -1))
        assert torch.equal(found[:, 2:6], without[:, 4 * camera : 4 * camera + 4])
        assert seen.tolist() == [[True, True, *[camera < 2] * 4, True]] * 2
    assert torch.equal(embedded[:, 21:], without[:, 12:]) and prefix["mask"].shape[1] == 21 + tokens.shape[1] + 1


@pytest.mark.parametrize(
    "changes, shifted",
    [({}, True), ({"load_vlm_weights": True}, False), ({"pretrained_revision": None}, False), ({"pretrained_revision": "main"}, False)],
)
def test_positions_of_patches_by_version(tmp_path, changes, shifted):
    folder = write_smolvla(tmp_path / "tiny")
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)
    for chosen, expected in ((None, shifted), (True, True), (False, False)):
        assert load_smolvla(folder, shifted_patches=chosen, weights=False)[0].config.shifted_patches is expected
