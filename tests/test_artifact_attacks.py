"""Artifacts of this project whose config.json, weights or links somebody changed: one line each, before memory is taken for them."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint_attacks import little_memory, refused  # noqa: F401 - a fixture
from tiny_openvla import write_openvla
from tiny_smolvla import write_smolvla

from worldenv_cli.atomic import read_json, write_json
from worldenv_cli.errors import UserError
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.config import LoraSettings, TextConfig, VLAConfig
from worldenv_cli.policies.load import check_checkpoint, load_vla
from worldenv_cli.policies.lora import AdaptedPolicy
from worldenv_cli.policies.text import TextEncoder
from worldenv_cli.policies.vla import pinned
from worldenv_cli.provenance import write_provenance
from worldenv_cli.reflector.compact import Reflector


@pytest.fixture
def artifact(tmp_path, mini, trained_simulator):
    """{kind: its folder}"""
    torch.manual_seed(0)
    adapted = AdaptedPolicy(CompactPolicy(mini.policy), LoraSettings(rank=2, alpha=2))
    models = {"policy": CompactPolicy(mini.policy), "adapter": adapted, "reflector": Reflector(mini.reflector), "simulator": trained_simulator}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, kind_of(name), model, {}, "# card")
    return tmp_path


def kind_of(name):
    return "policy" if name == "adapter" else name


def changed(folder, keys, value):
    config = read_json(folder / "config.json")
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write_json(folder / "config.json", config)
    write_provenance(folder, {})


@pytest.mark.parametrize(
    "name, keys, value, told",
    [
        ("policy", ("policy", "layers"), 2**31, "layers is 2147483648, but the weights are"),
        ("policy", ("policy", "resolution"), 10**30, "sizes|numbers"),
        ("policy", ("policy", "width"), 2**16, "declares .* numbers, but the weights are"),
        ("policy", ("policy", "text", "layers"), 2**60, "layers is"),
        ("reflector", ("reflector", "text", "width"), 2**60, "sizes|numbers"),
        ("reflector", ("reflector", "width"), 2**24, "declares"),
        ("simulator", ("simulator", "unet", "layers"), 2**60, "layers is"),
        ("simulator", ("simulator", "hidden"), 2**16, "declares"),
        ("adapter", ("lora", "rank"), 2**30, "an adapter of rank 1073741824, but its tensors are 2"),
        ("adapter", ("lora", "targets"), "nothing", "an adapter that does not fit the policy"),
        ("adapter", ("lora", "targets"), "(", "an adapter that does not fit the policy"),
        ("policy", ("merged",), 5, "merged is 5, expected a list of adapters"),
        ("policy", ("members",), {"a": "policy", "b": {}}, "members or choice is missing"),
    ],
)
def test_what_is_only_declared_is_not_allocated(artifact, little_memory, name, keys, value, told):  # noqa: F811
    changed(artifact / name, keys, value)
    with pytest.raises(UserError, match=told) as caught:
        load_model(artifact / name, kind_of(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [".", "", "inner"])
def test_a_member_has_no_members(tmp_path, where):
    (tmp_path / "inner").symlink_to(".")
    write_json(tmp_path / "config.json", {"kind": "policy", "worldenv_version": version(), "members": {"a": where}, "choice": {"x": "a"}})
    with pytest.raises(UserError, match="the member 'a' has members itself"):
        load_model(tmp_path, "policy")


def version():
    from worldenv_cli import __version__

    return __version__


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_an_artifact_are_not_followed(artifact, name):
    folder = artifact / "policy"
    shutil.move(folder / name, artifact / "elsewhere")
    (folder / name).symlink_to(artifact / "elsewhere")
    (folder / "provenance.json").unlink()  # which would tell it too
    with pytest.raises(UserError, match=f"{name} is a link to .*elsewhere, outside of its folder"):
        load_model(folder, "policy")


@pytest.mark.parametrize(
    "kind, told",
    [(torch.float8_e4m3fn, "is of type float8_e4m3fn"), (torch.int64, "is of type int64 instead of float32"), (torch.complex64, "of type complex64")],
)
def test_weights_of_another_type(artifact, kind, told):
    path = artifact / "policy" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name].to(kind)}, path)
    write_provenance(path.parent, {})
    with pytest.raises(UserError, match=told):
        load_model(path.parent, "policy")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int64, torch.int8])
def test_quantized_checkpoints_are_told(tmp_path, kind):
    path = write_smolvla(tmp_path / "ck") / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file(tensors | {name: tensors[name].to(kind)}, path)
    refused(path.parent, f"of type {str(kind).removeprefix('torch.')}, expected float16, bfloat16 or float32; use the checkpoint that was not quan")


def test_json_that_nests_without_end(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="truncated or damaged"):
        load_model(tmp_path, "policy")


def test_a_text_encoder_does_not_lead_to_the_model_of_an_adapter(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "/home/me/private"})
    with pytest.raises(UserError, match="holds an adapter .* merge it into that one first"):
        TextEncoder(TextConfig(pretrained=str(tmp_path)))


@pytest.mark.parametrize("change", [{"pad_token": None}, {"pad_token": 3}])
def test_a_tokenizer_that_makes_no_batches(tmp_path, change):
    write_smolvla(tmp_path / "ck")
    path = next((tmp_path / "ck").rglob("tokenizer_config.json"))
    write_json(path, read_json(path) | change)
    refused(tmp_path / "ck", "no tokenizer that transformers can read")


def test_openvla_without_statistics_takes_those_of_the_demonstrations(tmp_path):
    folder = write_openvla(tmp_path / "ck", side=56, shards=1, proprio_size=4)
    (folder / "dataset_statistics.json").unlink()
    config = read_json(folder / "config.json")
    config.pop("norm_stats", None)
    write_json(folder / "config.json", config)
    refused(folder, "holds no statistics, .* set policy.statistics=dataset", statistics="checkpoint")
    asked = VLAConfig(model=str(folder), statistics="dataset", gripper="as recorded", resolution=32, max_tokens=128)
    check_checkpoint(asked)
    policy = load_vla(asked)
    assert not policy.actions.known and len(policy.actions.low) == 4
    rng = np.random.default_rng(0)
    policy.adopt(rng.standard_normal((50, 4)).astype(np.float32), rng.uniform(-1, 1, (50, 4)).astype(np.float32))
    assert policy.actions.known


@pytest.mark.parametrize("inner, name", [("", "me/policy"), ("members/tuned", "me/policy/members/tuned")])
def test_a_checkpoint_in_the_hubs_cache_is_named_as_what_was_downloaded(tmp_path, inner, name):
    folder = tmp_path / "models--me--policy" / "snapshots" / ("a" * 40) / inner
    folder.mkdir(parents=True)
    assert pinned(VLAConfig(model=str(folder))).model == f"{name}@{'a' * 40}"
    assert pinned(VLAConfig(model=str(tmp_path))).model == str(tmp_path)
