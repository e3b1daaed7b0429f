"""An OpenVLA-OFT checkpoint's files: what is read of them, what is not, and how a broken one is told."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_openvla import SMALL, loaded, tiny_statistics, write, write_openvla, write_shards

from worldenv_cli.errors import UserError
from worldenv_cli.policies.openvla.inputs import Bounds, Gripper, Statistics
from worldenv_cli.policies.openvla.model import ActionTokens


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


# Units and their way back


def test_normalisation_and_its_way_back():
    bounds = Bounds(low=(-1, 2, 0, 5), high=(1, 6, 1, 5), mask=(True, True, False, True), constant=(False, False, False, True))
    values = np.array([[0.5, 3, 0.25, 5], [-1, 6, 1, 5]])
    normalised = bounds.normalise(values)
    np.testing.assert_allclose(normalised, [[0.5, -0.5, 0.25, 0], [-1, 1, 1, 0]], atol=1e-8)
    np.testing.assert_allclose(bounds.unnormalise(normalised), values, atol=1e-8)
    np.testing.assert_allclose(bounds.normalise(np.array([9, -9, 7, 5])), [1, -1, 7, 0])  # bounds are kept, but not by what the mask leaves out
    np.testing.assert_allclose(bounds.unnormalise(np.array([2, 0, 7, 0])), [2, 4, 7, 5], atol=1e-7)


@pytest.mark.parametrize("binarise", [True, False])
def test_the_gripper_and_its_way_back(binarise):
    gripper = Gripper(binarise=binarise)
    trained = np.array([[0.1, 0.0], [0.2, 1.0], [0.3, 0.9]])  # closed, open, nearly open
    sent = gripper.to_environment(trained)
    np.testing.assert_allclose(sent, [[0.1, 1], [0.2, -1], [0.3, -1 if binarise else -0.8]])
    np.testing.assert_allclose(gripper.to_training(sent), trained[:, :1].repeat(2, 1) * [1, 0] + [[0, 0], [0, 1], [0, 1 if binarise else 0.9]])
    unchanged = Gripper(convention="unchanged")
    assert unchanged.to_environment(trained) is trained and unchanged.to_training(trained) is trained


def test_action_tokens_and_their_way_back():
    tokens = ActionTokens(256, 32000)
    assert tokens.encode(torch.tensor([-9.0, -1.0, 1.0, 9.0])).tolist() == [31999, 31999, 31744, 31744] and tokens.ids == slice(31744, 32000)
    values = torch.linspace(-1, 1, 999)
    assert (tokens.decode(tokens.encode(values)) - values).abs().max() <= 1 / 255 + 1e-6
    every = torch.arange(31745, 32000)  # the two highest tokens mean the same bin
    assert torch.equal(tokens.encode(tokens.decode(every)), every)
    assert torch.equal(tokens.decode(torch.tensor([0, 31744, 32063])), tokens.decode(torch.tensor([31745, 31745, 31999])))


def test_the_un_norm_key_is_chosen(tmp_path):
    numbers = np.random.default_rng(0)
    known = {"libero_goal_no_noops": tiny_statistics(numbers, 3, 2), "libero_10_no_noops": tiny_statistics(numbers, 4, None)}
    assert Statistics.choose(known, "libero_goal", tmp_path)[0] == "libero_goal_no_noops"
    quantiles, extremes = (Statistics.choose(known, "libero_10", tmp_path, bounds)[1] for bounds in ("quantiles", "extremes"))
    assert quantiles.action.high[:3] < extremes.action.high[:3] and quantiles.proprio is None and quantiles.action.mask[-1] is False
    only = {"pusht": known["libero_goal_no_noops"]}
    assert Statistics.choose(only, None, tmp_path)[0] == "pusht"
    for wrong, key, told in [
        (known, None, "statistics of 2 data sets, and none is chosen; set policy.unnorm_key to one of libero_10_no_noops, libero_goal_no_noops"),
        (known, "bridge", "no statistics of 'bridge'; set policy.unnorm_key to one of libero_10_no_noops, libero_goal_no_noops"),
        ({"x": {}}, "x", "x has no 'action'"),
        ({"x": 3}, "x", "x.action holds no usable statistics"),
        ({"x": {"action": known["libero_10_no_noops"]["action"] | {"q99": [1.0]}}}, "x", "x.action holds no usable statistics .*4 lower and 1 upper"),
        ({"x": {"action": known["libero_10_no_noops"]["action"] | {"q01": [float("nan")] * 4}}}, "x", "not finite"),
    ]:
        with pytest.raises(UserError, match=told) as caught:
            Statistics.choose(wrong, key, tmp_path)
        assert "\n" not in str(caught.value)


def test_the_fine_tunings_statistics_are_used(tmp_path):
    folder = write_openvla(tmp_path, **SMALL, action_size=7)
    assert loaded(folder).unnorm_key == "tiny"
    (folder / "dataset_statistics.json").unlink()
    assert loaded(folder).unnorm_key == "bridge_orig"


# What lies beside the weights


def test_an_adapter_is_merged_only_when_asked(tmp_path):
    folder = write_openvla(tmp_path / "published", **SMALL, shards=1, dtype=torch.float32)
    merged = shutil.copytree(folder, tmp_path / "merged")
    weights, adapter = load_file(folder / "model.safetensors"), {}
    for name in ("vision_backbone.featurizer.blocks.0.attn.qkv", "language_model.model.layers.1.mlp.up_proj"):
        rows, columns = weights[f"{name}.weight"].shape
        a, b = torch.randn(3, columns), torch.randn(rows, 3)
        weights[f"{name}.weight"] += 2 * b @ a
        adapter |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(weights, merged / "model.safetensors")
    (folder / "lora_adapter").mkdir()
    write(folder / "lora_adapter" / "adapter_config.json", {"r": 3, "lora_alpha": 6, "rank_pattern": {}})
    save_file(adapter, folder / "lora_adapter" / "adapter_model.safetensors")
    states = [loaded(path, adapter=asked).model.state_dict() for path, asked in ((merged, False), (folder, True), (folder, False))]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[0])
    changed = [name for name in states[0] if not torch.equal(states[0][name], states[2][name])]
    assert len(changed) == 4  # query, key and value of one block, and the language model's layer
    save_file(adapter | {"base_model.model.other.lora_A.weight": torch.zeros(3, 3)}, folder / "lora_adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="base_model.model.other.lora_A.weight: expected A and B of rank 3"):
        loaded(folder, adapter=True)
    with pytest.raises(UserError, match="lora_adapter: adapter_config.json or adapter_model.safetensors is missing"):
        loaded(merged, adapter=True)


@pytest.mark.parametrize("writable", [True, False])
def test_a_pickle_is_read_once(tmp_path, monkeypatch, writable):
    folder = write_openvla(tmp_path / "checkpoint", **SMALL, proprio_size=2, seed=10 + writable)
    folder.chmod(0o755 if writable else 0o555)
    before = set(folder.iterdir())
    first = loaded(folder).model.state_dict()
    made = set(folder.iterdir()) - before
    assert (
        sorted(path.name for path in made) == ["action_head--100_checkpoint.safetensors", "proprio_projector--100_checkpoint.safetensors"] * writable
    )
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened again"))
    second = loaded(folder).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    if writable:
        (folder / "action_head--100_checkpoint.pt").unlink()
        assert loaded(folder, head="l1").model.config.head is not None
    monkeypatch.undo()
    (folder / "proprio_projector--100_checkpoint.pt").write_bytes(b"not a pickle")  # another file: what was made of the old one is not it
    with pytest.raises(UserError, match="proprio_projector--100_checkpoint.pt .*is not loaded|proprio_projector--100_checkpoint.pt is truncated"):
        loaded(folder)


# Broken checkpoints


def _json(name, **changed):
    return lambda folder: write(folder / name, json.loads((folder / name).read_text()) | changed)


def _tensors(change):
    """Weights changed by a function of {name: tensor}, in one file."""

    def broken(folder):
        tensors = {name: tensor for path in folder.glob("model-*") for name, tensor in load_file(path).items()}
        for path in folder.glob("model*"):
            path.unlink()
        change(tensors)
        write_shards(folder, tensors, 1)

    return broken


def _truncate(folder):
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _two_and_one(tensors):
    del tensors["projector.fc2.bias"], tensors["vision_backbone.featurizer.blocks.1.attn.qkv.weight"]
    tensors["vision_backbone.featurizer.extra"] = torch.zeros(1)


def _cut(name):
    return _tensors(lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()}))


def _unlink(name):
    return lambda folder: (folder / name).unlink()


def _other_robot(name, action_size, proprio_size):
    return lambda folder: write(folder / "dataset_statistics.json", {name: tiny_statistics(np.random.default_rng(0), action_size, proprio_size)})


class _Code:
    def __reduce__(self):
        return (print, ("run",))


HEAD, BODY = "action_head--100_checkpoint.pt", "proprio_projector--100_checkpoint.pt"
QKV, LM = "vision_backbone.fused_featurizer.blocks.0.attn.qkv.bias", "language_model.lm_head.weight"
BROKEN = {
    "no config": (_unlink("config.json"), "config.json: missing"),
    "another model": (_json("config.json", model_type="pi9"), "model_type is 'pi9', expected 'openvla'. .*remote code is not run"),
    "other towers": (_json("config.json", timm_model_ids=["resnet50"]), r"timm_model_ids are \['resnet50'\], expected"),
    "film": (lambda folder: (folder / "vision_backbone--100_checkpoint.pt").touch(), "FiLM vision backbone"),
    "no head": (_unlink(HEAD), "no action_head--\\*_checkpoint.pt, expected the L1 head"),
    "two heads": (lambda folder: shutil.copy(folder / HEAD, folder / HEAD.replace("100", "200")), "expected one action_head"),
    "a head of code": (lambda folder: torch.save({"module.model.fc1.weight": _Code()}, folder / HEAD), "holds more than plain tensors"),
    "a damaged head": (lambda folder: (folder / HEAD).write_bytes((folder / HEAD).read_bytes()[:999]), f"{HEAD} .*download"),
    "another robot": (_other_robot("bridge", 7, 3), "head answers 4 numbers, the statistics of 'bridge' hold 7"),
    "another body": (_other_robot("franka", 4, 9), "proprio_projector takes 3 numbers, the proprio statistics of 'franka' hold 9"),
    "no body": (_other_robot("franka", 4, None), "proprio_projector takes 3 numbers, the proprio statistics of 'franka' hold none"),
    "names": (
        _tensors(_two_and_one),
        "missing: projector.fc2.bias, vision_backbone.featurizer.blocks.1.attn.qkv.weight; unexpected: vision_backbone.featurizer.extra",
    ),
    "a shape": (_cut(QKV), rf"\(wrong shape: {QKV} \(47,\) instead of \(48,\)\)"),
    "another shape": (_cut(LM), rf"\(wrong shape: {LM} \(32064, 23\) instead of \(32064, 24\)\)"),
    "an unused shape": (_cut("vision_backbone.fused_featurizer.attn_pool.latent"), "attn_pool.latent"),
    "a patch's shape": (_cut("vision_backbone.featurizer.patch_embed.proj.weight"), "patch_embed.proj.weight"),
    "positions": (_cut("vision_backbone.featurizer.pos_embed"), r"\(wrong shape: vision_backbone.featurizer.pos_embed"),
    "a truncated shard": (_truncate, "model-00002-of-00002.safetensors is truncated or damaged"),
    "a missing shard": (_unlink("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors missing"),
    "a damaged index": (_json("model.safetensors.index.json", weight_map=3), "has no weight_map"),
    "no weights": (_unlink("model.safetensors.index.json"), "model.safetensors missing"),
    "heads": (_json("config.json", text_config={"num_attention_heads": 7}), "language_model is 24 wide, expected a multiple of its 7 heads"),
    "no tokenizer": (_unlink("tokenizer.json"), "tokenizer.json: missing"),
    "a damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json is truncated or damaged"),
    "no towers": (_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "vision" in name]), "sizes of no OpenVLA: dino.depth"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_openvla(tmp_path_factory.mktemp("whole") / "checkpoint", **SMALL, proprio_size=3)


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints_are_told(tmp_path, whole, what):
    folder = shutil.copytree(whole, tmp_path / "checkpoint")
    breaking, told = BROKEN[what]
    breaking(folder)
    with pytest.raises(UserError, match=told) as caught:
        loaded(folder, head="l1", unnorm_key=None)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_without_a_head_means_tokens(whole, tmp_path):
    assert loaded(whole, head="tokens").model.action_head is None
    folder = shutil.copytree(whole, tmp_path / "checkpoint")
    for path in folder.glob("action_head*"):
        path.unlink()
    assert loaded(folder).model.config.head is None
