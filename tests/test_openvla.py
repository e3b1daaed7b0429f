"""OpenVLA-OFT: the original code's answers from its own files, and what must hold for checkpoints of any size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from recorded import FIXTURES
from safetensors.torch import load_file
from tiny_openvla import SMALL, loaded, write_openvla
from torch.nn import functional as F

from worldenv_cli.policies.openvla import model as model_module
from worldenv_cli.policies.openvla.checkpoint import load_openvla
from worldenv_cli.policies.openvla.inputs import Gripper, ImageConfig, centre_crop, pixels, prompt, resized

FIXTURE = FIXTURES / "openvla_oft_tiny"
needs_fixture = pytest.mark.skipif(not FIXTURE.exists(), reason=f"{FIXTURE} is not here: a checkpoint and answers of the original code")
AS_THEY_ARE = ImageConfig(jpeg=None, crop=None)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield constants.HF_HOME


@pytest.fixture(scope="module")
def original():
    """The original project's checkpoint, inputs and answers, and what this one makes of them."""
    facts = json.loads((FIXTURE / "facts.json").read_text())
    loaded = load_openvla(FIXTURE / "checkpoint", dtype=torch.float32, images=facts["num_images_in_input"], chunk=facts["num_actions_chunk"])
    found = SimpleNamespace(**vars(loaded), facts=facts, inputs=np.load(FIXTURE / "inputs.npz"), expected=np.load(FIXTURE / "expected.npz"))
    model = loaded.model.requires_grad_(False)
    cropped = [np.stack([found.inputs[f"s{row}/image{k}_cropped"] for row in (0, 1)]) for k in (0, 1)]
    found.pixels = pixels(cropped, AS_THEY_ARE)
    found.features = model.vision_features(found.pixels)
    found.patches = model.project(found.features)
    found.proprio = loaded.statistics.proprio.normalise(np.stack([found.inputs[f"s{row}/proprio_raw"] for row in (0, 1)]))
    found.body = model.proprio_embedding(torch.from_numpy(found.proprio))
    found.single = [answer(found, loaded.prompts.batch([words], 56), [row]) for row, words in enumerate(facts["instructions"])]
    return found


def answer(found, tokens, rows, stop=False):
    return found.model.action_hidden_states(found.patches[rows], found.body[rows], *tokens, stop=stop)


def close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance, rtol=0)


# What the original code answered


@needs_fixture
@pytest.mark.parametrize("row", [0, 1])
def test_inputs_are_the_originals(original, row):
    facts, inputs, expected = original.facts, original.inputs, original.expected
    assert prompt(facts["instructions"][row]) == facts["prompts"][row]
    assert [original.prompts.tokens(facts["instructions"][row])] == expected[f"s{row}/input_ids"].tolist()
    close(original.pixels[row : row + 1], expected[f"s{row}/pixel_values"], 1e-6)
    close(original.proprio[row], expected[f"s{row}/proprio_normalized"], 1e-12)
    close(original.body[row], expected[f"s{row}/proprio_embedding"], 1e-5)
    for k in (0, 1):
        raw, small, cropped = (inputs[f"s{row}/image{k}_{step}"][None] for step in ("raw", "resized", "cropped"))
        np.testing.assert_array_equal(centre_crop(small, 0.9), cropped)
        off = np.abs(resized(raw, original.images).astype(int) - small)  # tensorflow decodes and resizes otherwise than Pillow
        assert off.mean() < 1.2 and off.max() <= 13
        assert np.abs(resized(raw, ImageConfig(jpeg=None)).astype(int) - small).mean() > 3


@needs_fixture
@pytest.mark.parametrize("row", [0, 1])
def test_answers_are_the_originals(original, row):
    model, hidden, action = original.model, original.single[row], original.statistics.action
    expected = {name.partition("/")[2]: original.expected[name] for name in original.expected.files if name.startswith(f"s{row}/")}
    close(original.features[row : row + 1], expected["vision_features"], 1e-4)
    close(original.patches[row : row + 1], expected["projected_patch_embeddings"], 1e-4)
    tokens = original.prompts.batch([original.facts["instructions"][row]], 56)
    close(model.sequence(original.patches[[row]], original.body[[row]], *tokens)[0], expected["inputs_embeds"], 1e-4)
    close(hidden, expected["action_hidden_states"], 2e-4)
    normalised = model.action_head(hidden)[0].numpy()
    close(normalised, expected["normalized_action"], 5e-4)
    close(action.unnormalise(normalised), expected["action"], 5e-4)
    close(Gripper().to_environment(action.unnormalise(normalised)), expected["env_action"], 5e-4)
    logits = model.logits(hidden)
    close(logits[..., model.action_tokens.ids], expected["logits_last256"], 5e-4)
    ids = logits.argmax(-1)
    np.testing.assert_array_equal(ids, expected["discrete_token_ids"])
    close(action.unnormalise(model.action_tokens.decode(ids).view(8, 7).numpy()), expected["discrete_action"], 1e-12)


@needs_fixture
def test_a_padded_batch_trains_as_the_originals(original):
    expected = {name: torch.from_numpy(original.expected[f"train/{name}"]) for name in ("input_ids", "attention_mask", "labels", "target_actions")}
    labels = expected["labels"][expected["labels"] != -100].view(2, 57)
    hidden = answer(original, (expected["input_ids"], expected["attention_mask"]), [0, 1], stop=True)
    close(hidden[:, :-1], original.expected["train/action_hidden_states"], 2e-4)
    predicted = original.model.action_head(hidden[:, :-1])
    close(predicted, original.expected["train/predicted_actions"], 5e-4)
    close(F.l1_loss(predicted, expected["target_actions"]), original.expected["train/l1_loss"], 5e-4)
    entropy = F.cross_entropy(original.model.logits(hidden).flatten(0, 1), labels.flatten())
    close(entropy, original.expected["train/token_ce_loss"], 5e-4)
    assert torch.equal(original.model.action_tokens.encode(expected["target_actions"]).flatten(1), labels[:, :-1])
    own = answer(original, original.prompts.batch(original.facts["instructions"], 56), [0, 1])  # with empty places instead of action tokens
    close(own, original.expected["train/action_hidden_states"], 2e-4)
    close(original.statistics.action.unnormalise(original.expected["unnorm/in"]), original.expected["unnorm/out"], 1e-12)


@needs_fixture
@pytest.mark.parametrize("row", [0, 1])
def test_typical_mistakes_are_others(original, monkeypatch, row):
    """Made on purpose, each gives what the original code gives with it, which is not the right answer."""
    tokens = original.prompts.batch([original.facts["instructions"][row]], 56)
    right = original.expected[f"s{row}/normalized_action"]

    def mistake(name, hidden, distance):
        found = original.model.action_head(hidden)[0].numpy()
        close(found, original.expected[f"s{row}/wrong_{name}_normalized_action"], 5e-4)
        assert np.abs(found - right).max() > distance

    mistake("unshifted", answer(original, tokens, [row], stop=True)[:, 1:], 1)
    seen = model_module.visible
    monkeypatch.setattr(model_module, "visible", lambda mask: seen(mask) & (torch.arange(mask.shape[1]) < mask.shape[1] - 1))
    mistake("no_stop", answer(original, tokens, [row]), 0.03)
    monkeypatch.setattr(model_module, "visible", lambda mask: seen(mask).tril())
    mistake("causal", answer(original, tokens, [row]), 1)


# Random checkpoints of other sizes


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


KINDS = {
    "one picture": {"seed": 1, "action_size": 4, "chunk": 3},
    "three pictures and the body": {"seed": 2, "images": 3, "proprio_size": 5, "action_size": 6, "chunk": 2, "layers": 3, "shards": 1},
    "tokens": {"seed": 3, "images": 2, "proprio_size": 3, "action_size": 2, "chunk": 4, "head": False, "dtype": torch.float32},
}


def tower(tensors, pictures, prefix):
    """timm's vision transformer in plain torch: the patches' features before the last block."""
    of = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items() if name.startswith(prefix)}
    patch = F.conv2d(pictures, of["patch_embed.proj.weight"], of["patch_embed.proj.bias"], stride=14)
    x = patch.flatten(2).transpose(1, 2) + of["pos_embed"]
    registers = [of[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in of]
    x, width = torch.cat([*registers, x], 1), x.shape[-1]
    for number in range(max(int(name.split(".")[1]) for name in of if name.startswith("blocks."))):
        block = {name.removeprefix(f"blocks.{number}."): tensor for name, tensor in of.items()}
        y = F.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = (
            part.unflatten(-1, (16, -1)).transpose(1, 2) for part in F.linear(y, block["attn.qkv.weight"], block["attn.qkv.bias"]).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, block["attn.proj.weight"], block["attn.proj.bias"]) * block.get("ls1.scale_factor", 1)
        y = F.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        y = F.linear(F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"])), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        x = x + y * block.get("ls2.scale_factor", 1)
    return x[:, sum(token.shape[1] for token in registers) :]


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_is_read_from_the_tensors(tmp_path, kind):
    wanted = SMALL | KINDS[kind]
    found = loaded(write_openvla(tmp_path, **wanted))
    model, config = found.model.requires_grad_(False), found.model.config
    assert config.proprio_size == wanted.get("proprio_size") and config.action_size == found.statistics.action.size == wanted["action_size"]
    assert (config.head is None) == (model.action_head is None) == (kind == "tokens") and found.images.side == 56
    weights = {name: tensor for path in tmp_path.glob("model*.safetensors") for name, tensor in load_file(path).items()}
    pictures = [noise(seed, 2, 64, 80, 3) for seed in range(config.images)]
    values = pixels(pictures, found.images)
    expected = []
    for picture in values.split(6, 1):
        sides = [tower(weights, half, f"vision_backbone.{name}.") for half, name in zip(picture.split(3, 1), ("featurizer", "fused_featurizer"))]
        expected.append(torch.cat(sides, -1))
    features = model.vision_features(values)
    close(features, torch.cat(expected, 1), 1e-4)

    patches = model.project(features)
    body = None if config.proprio_size is None else model.proprio_embedding(torch.rand(2, config.proprio_size))
    places = config.chunk * config.action_size
    words = ["a much longer instruction than the other", "Lift"]
    together = model.action_hidden_states(patches, body, *found.prompts.batch(words, places))
    assert together.shape == (2, places, config.language.width)
    for row in (0, 1):
        alone = model.action_hidden_states(patches[[row]], body if body is None else body[[row]], *found.prompts.batch(words[row : row + 1], places))
        close(together[[row]], alone, 1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
    other = model.action_hidden_states(patches.flip(0), body, *found.prompts.batch(words, places))
    assert (together - other).abs().amax((1, 2)).min() > 1e-2  # pictures are seen
    if model.action_head is not None:
        assert model.action_head(together).shape == (2, config.chunk, config.action_size)


def test_bfloat16_checkpointing_and_lora(tmp_path):
    from peft import LoraConfig, get_peft_model

    found = loaded(write_openvla(tmp_path, **SMALL, proprio_size=3), dtype=torch.bfloat16)
    model = found.model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16} == {model.dtype}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"language_model.*_proj|vision.*(fc1|q_proj)|projector\.fc\d"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tokens, values = found.prompts.batch(["lift"], 16), pixels([noise(0, 1, 64, 64, 3)], found.images)

    def gradients():
        adapted.zero_grad()
        hidden = model.action_hidden_states(model.project(model.vision_features(values)), model.proprio_embedding(torch.ones(1, 3)), *tokens)
        model.action_head(hidden).float().pow(2).sum().backward()
        return {name: parameter.grad.clone() for name, parameter in adapted.named_parameters() if parameter.grad is not None}

    adapted.train()
    plain = gradients()
    model.set_gradient_checkpointing(True)
    assert model.language_model.model.layers[0].gradient_checkpointing
    again = gradients()
    model.set_gradient_checkpointing(False)
    assert not model.language_model.model.layers[0].gradient_checkpointing
    assert plain.keys() == again.keys() == {name for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert all(torch.equal(plain[name], again[name]) and plain[name].abs().max() > 0 for name in plain)
