"""Checkpoints and artifacts that want more than to be read: files elsewhere, code, gigabytes, or to act with weights that are no numbers."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import VLM, write_smolvla, write_tokenizer

from worldenv_cli.atomic import read_json, write_json
from worldenv_cli.errors import UserError
from worldenv_cli.merged import write_merged
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.config import LoraSettings, TextConfig, VLAConfig
from worldenv_cli.policies.load import check_checkpoint, load_vla
from worldenv_cli.policies.lora import AdaptedPolicy
from worldenv_cli.policies.text import TextEncoder
from worldenv_cli.provenance import write_provenance

SHARED = {"statistics": "dataset", "resolution": 32, "gripper": "as recorded", "max_tokens": 128, "lora": LoraSettings(rank=4, alpha=4)}
WRITERS = {
    "openvla": (write_openvla, {"side": 56, "shards": 1, "proprio_size": 4}),
    "pi0": (write_pi0, {}),
    "pi0 of transformers": (write_pi0, {"layout": "transformers"}),
    "smolvla": (write_smolvla, {}),
}
families = pytest.mark.parametrize("family", WRITERS)


def checkpoint(family, folder):
    write, sizes = WRITERS[family]
    return write(folder, **sizes)


def refused(folder, message, **settings):
    with pytest.raises(UserError, match=message) as error:
        load_vla(VLAConfig(model=str(folder), **SHARED | settings))
    assert "\n" not in str(error.value)


def weights(folder):
    return sorted(folder.glob("model*.safetensors"))[-1]


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# Files elsewhere


@families
@pytest.mark.parametrize("name", ["config.json", "weights"])
def test_links_out_of_a_checkpoint_are_not_followed(family, name, tmp_path):
    folder = checkpoint(family, tmp_path / "model")
    path = weights(folder) if name == "weights" else folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused(folder, f"{path.name} is a link to .*elsewhere, outside of its folder")


def test_state_files_stay_inside_even_of_steps_that_are_switched_off(tmp_path):
    folder = write_smolvla(tmp_path / "model")
    path = folder / "policy_preprocessor.json"
    content = read_json(path)
    for name in (str(tmp_path / "authorized_keys"), "../authorized_keys", "a\\..\\b"):
        step = {"registry_name": "anything", "config": {"enabled": False}, "state_file": name}
        write_json(path, content | {"steps": [*content["steps"], step]})
        for statistics in ("dataset", "checkpoint"):
            refused(folder, "policy_preprocessor.json: names .*expected a file inside its own folder", statistics=statistics)


def test_an_index_stays_inside(tmp_path):
    for family in ("openvla", "pi0 of transformers"):
        folder = write_openvla(tmp_path / family, side=56) if family == "openvla" else write_pi0(tmp_path / family, layout="transformers")
        index = folder / "model.safetensors.index.json"
        content = read_json(index)
        for wrong in ("../model.safetensors", "/etc/passwd", 7):
            write_json(index, content | {"weight_map": content["weight_map"] | {"x": wrong}})
            refused(folder, "expected a file inside its own folder|7 missing")


def tuned(folder):
    policy = load_vla(VLAConfig(model=str(folder), **SHARED))
    policy.adopt(np.random.default_rng(0).standard_normal((50, 4)), np.random.default_rng(1).uniform(-1, 1, (50, 4)))
    return AdaptedPolicy(policy, LoraSettings(rank=2, alpha=2))


def test_a_linked_key_is_not_published(tmp_path):
    """Neither beside the weights, nor in a folder that the checkpoint names, nor one of the user's that it names by chance."""
    key = tmp_path / "id_rsa"
    key.write_text("PRIVATE")
    folder = write_smolvla(tmp_path / "checkpoints" / "model")
    for place in (folder / "notes.json", folder / VLM / "vocab.json"):
        policy = tuned(folder)
        place.unlink(missing_ok=True)
        place.symlink_to(key)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="is a link to .*id_rsa, outside of its folder"):
            write_merged(tmp_path / "out", policy, {}, "# card")
        place.unlink()
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]


# Code


def test_a_part_with_code_of_its_own_is_refused_without_a_question(tmp_path):
    """In another process, with an answer at hand for whoever asks."""
    encoder = tmp_path / "encoder"
    write_tokenizer(encoder)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (encoder / name).write_text(code)
    kinds = {"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own", "AutoTokenizer": ["tokenization_own.Own", None]}
    write_json(encoder / "config.json", {"model_type": "own", "architectures": ["Own"], "auto_map": kinds})
    script = f"from worldenv_cli.policies.text import TextConfig, TextEncoder; TextEncoder(TextConfig(pretrained={str(encoder)!r}))"
    done = subprocess.run([sys.executable, "-c", script], input="y\ny\ny\n", capture_output=True, text=True, timeout=120)
    assert done.returncode and not (tmp_path / "ran").exists() and "[y/N]" not in done.stdout + done.stderr
    assert "brings code of its own (auto_map), which is never run" in done.stderr.strip().splitlines()[-1]


def test_code_named_by_a_checkpoint_is_refused(tmp_path):
    folder = write_smolvla(tmp_path / "model")
    for file in ("config.json", "tokenizer_config.json"):
        content = read_json(folder / VLM / file)
        write_json(folder / VLM / file, content | {"auto_map": {"AutoConfig": "x.Y"}})
        refused(folder, "this (vision-language model|tokenizer) brings code of its own")
        write_json(folder / VLM / file, content)


def test_a_text_encoder_comes_from_safetensors_of_its_own_size(tmp_path):
    from transformers import BertConfig, BertModel

    size = write_tokenizer(tmp_path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=size, **sizes)).save_pretrained(tmp_path / "bert")
    encoder = TextEncoder(TextConfig(pretrained=str(tmp_path / "bert"), width=8))
    assert encoder(["push it", "lift it"]).shape == (2, 8) and not any(p.requires_grad for p in encoder.encoder.parameters())
    config = read_json(tmp_path / "bert" / "config.json")
    for change in ({"num_hidden_layers": 10**9}, {"vocab_size": 10**11}, {"hidden_size": 16 * 10**6}):
        write_json(tmp_path / "bert" / "config.json", config | change)
        with pytest.raises(UserError, match="this configuration is not theirs|parameters are declared"):
            TextEncoder(TextConfig(pretrained=str(tmp_path / "bert")))
    write_json(tmp_path / "bert" / "config.json", config)
    torch.save(load_file(tmp_path / "bert" / "model.safetensors"), tmp_path / "bert" / "pytorch_model.bin")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there are pickled weights, which are not loaded"):
        TextEncoder(TextConfig(pretrained=str(tmp_path / "bert")))


# Gigabytes


@pytest.fixture
def little_memory():
    """An allocation of gigabytes fails; this process has what it has, and 4 GiB more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


LAYER = {
    "openvla": "language_model.model.layers.{}.input_layernorm.weight",
    "pi0": "model.paligemma_with_expert.gemma_expert.model.layers.{}.input_layernorm.weight",
    "pi0 of transformers": "model.dit.layers.{}.input_layernorm.weight",
    "smolvla": "model.vlm_with_expert.lm_expert.layers.{}.input_layernorm.weight",
}


@families
@pytest.mark.parametrize("number", ["999999999", "9" * 5000, "5000"])
def test_a_tensor_of_a_layer_that_cannot_be(family, number, tmp_path, little_memory):
    folder = checkpoint(family, tmp_path / "model")
    rewrite(weights(folder), lambda tensors: tensors.update({LAYER[family].format(number): torch.ones(4)}))
    refused(folder, f"a tensor is of layer {number[:20]}|unexpected: [\\w.]*{number[:20]}|no .* of these sizes")


DECLARED = {
    "openvla": [{"text_config": {"num_hidden_layers": 10**9}}, {"text_config": {"hidden_size": 10**12}}, {"text_config": {"vocab_size": 10**15}}],
    "pi0": [{"chunk_size": 10**10}, {"max_state_dim": 10**10}, {"num_inference_steps": 10**10}, {"image_resolution": [2**30, 2**30]}],
    "pi0 of transformers": [{"chunk_size": 10**10}, {"max_state_dim": 10**400}, {"num_inference_steps": 10**10}],
    "smolvla": [{"chunk_size": 10**10}, {"max_action_dim": 10**10}, {"expert_width_multiplier": 1e9}, {"empty_cameras": 10**9}],
}


@families
def test_sizes_that_are_only_declared_are_not_allocated(family, tmp_path, little_memory):
    folder = checkpoint(family, tmp_path / "model")
    config = read_json(folder / "config.json")
    for change in DECLARED[family]:
        write_json(folder / "config.json", config | change)
        refused(folder, "config|sizes|fit")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"hidden_size": 2**40}, {"intermediate_size": 2**40}, {"vocab_size": 2**40}])
def test_a_vision_language_model_of_declared_gigabytes(part, change, tmp_path, little_memory):
    folder = write_smolvla(tmp_path / "model")
    config = read_json(folder / VLM / "config.json")
    write_json(folder / VLM / "config.json", config | {part: config[part] | change})
    if not (part == "vision_config" and "vocab_size" in change):
        refused(folder, "layers is|fit|sizes|configuration")


def test_shapes_without_bytes_are_no_sizes(tmp_path, little_memory):
    """A dimension of zero makes room for any other in a header."""
    for family, name in (("openvla", "vision_backbone.featurizer.pos_embed"), ("pi0", "model.paligemma_with_expert.paligemma.lm_head.weight")):
        folder = checkpoint(family, tmp_path / family)
        path = weights(folder)
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        entry = header[name]
        entry["shape"], entry["data_offsets"] = [1, 2**50, 0][: len(entry["shape"])][::-1], [entry["data_offsets"][0]] * 2
        changed = json.dumps(header).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
        refused(folder, "truncated or damaged|fit|sizes")


def test_a_head_that_claims_more_than_its_file_holds(tmp_path, little_memory):
    folder = write_openvla(tmp_path / "model", side=56)
    head = next(folder.glob("action_head*"))
    torch.save({"module.model.fc1.weight": torch.zeros(1).expand(10**6, 10**6)}, head)
    refused(folder, "claims larger tensors than it holds")


# Numbers that are none


@families
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(family, value, tmp_path):
    folder = checkpoint(family, tmp_path / "model")
    name = LAYER[family].format(0)

    def spoil(tensors):
        tensors[name].view(-1)[1] = value

    rewrite(next(path for path in folder.glob("model*.safetensors") if name in load_file(path)), spoil)
    refused(folder, f"{name} holds values that are not finite")


def test_heads_and_adapters_that_are_not_finite_are_named(tmp_path):
    folder = write_openvla(tmp_path / "model", side=56)
    head = next(folder.glob("action_head*"))
    tensors = torch.load(head, weights_only=True)
    tensors["module.model.fc2.bias"][0] = torch.nan
    torch.save(tensors, head)
    refused(folder, f"{head.name}: model.fc2.bias holds values that are not finite")


# Artifacts


@pytest.fixture
def chosen(tmp_path, mini):
    torch.manual_seed(0)
    members = {"before": CompactPolicy(mini.policy), "after": CompactPolicy(mini.policy)}
    folder = tmp_path / "chosen"
    folder.mkdir()
    save_model(folder, "policy", ChosenPolicy(members, {"push it": "after"}, "before"), {}, "# card")
    return folder


@pytest.mark.parametrize(
    "change, told",
    [
        ({"choice": {"push it": "gone"}}, "choice or default names 'gone', expected one of before, after"),
        ({"choice": {"push it": 3}}, "names 3, expected one of before, after"),
        ({"default": "gone"}, "names 'gone'"),
        ({"choice": ["after"]}, "members or choice is missing"),
        ({"members": {}}, "members or choice is missing"),
    ],
)
def test_a_choice_that_names_no_member_is_refused(chosen, change, told):
    assert set(load_model(chosen, "policy").members) == {"before", "after"}
    write_json(chosen / "config.json", read_json(chosen / "config.json") | change)
    write_provenance(chosen, {})  # whoever makes an artifact makes its hashes too
    with pytest.raises(UserError, match=told):
        load_model(chosen, "policy")


@pytest.mark.parametrize("name", ["/home/me/model", "../model", "model"])
def test_a_downloaded_artifact_names_no_folder_of_this_machine(tmp_path, mini, name):
    folder = tmp_path / "models--me--policy" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    save_model(folder, "policy", CompactPolicy(mini.policy), {}, "# card")
    load_model(folder, "policy")
    config = read_json(folder / "config.json")
    text = config["policy"]["text"] | {"pretrained": name}
    for policy in (config["policy"] | {"text": text}, {"model": name}):
        write_json(folder / "config.json", config | {"policy": policy})
        write_provenance(folder, {})
        with pytest.raises(UserError, match=r"expected owner/name\[@revision\] on the Hub"):
            load_model(folder, "policy")


def test_the_check_reads_no_weights(tmp_path, monkeypatch):
    for family in WRITERS:
        folder = checkpoint(family, tmp_path / family)
        monkeypatch.setattr("worldenv_cli.policies.shards.tensors_in", lambda *_: pytest.fail("weights were read"))
        check_checkpoint(VLAConfig(model=str(folder), **SHARED))


@pytest.mark.parametrize("section", ["policy", "reflector"])
def test_a_text_encoder_with_code_is_told_before_anything_is_made(tmp_path, mini, section):
    from worldenv_cli.stage_runner import run_stages

    (tmp_path / "encoder").mkdir()
    write_json(tmp_path / "encoder" / "config.json", {"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}})
    model = getattr(mini, section)
    text = model.text.model_copy(update={"pretrained": str(tmp_path / "encoder")})
    recipe = mini.model_copy(update={section: model.model_copy(update={"text": text})})
    with pytest.raises(UserError, match="this text encoder brings code of its own"):
        run_stages(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
