"""lerobot's checkpoint layout: normalisation in every mode and both ways, instructions as tokens, and what is said of a folder that does not fit."""

import re

import pytest
import torch
from tiny_smolvla import VLM, statistics, write_smolvla

from worldenv_cli.atomic import read_json, read_tensors, write_json, write_tensors
from worldenv_cli.errors import UserError
from worldenv_cli.policies.lerobot import read_lerobot, read_weights
from worldenv_cli.policies.normaliser import STATISTICS, Normaliser

BEFORE, AFTER = "policy_preprocessor_step_5_normalizer_processor.safetensors", "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_smolvla(tmp_path / "tiny", cameras=("front", "wrist"), state_size=5, action_size=3, mode="QUANTILES")


def change(path, **values):
    write_json(path, read_json(path) | values)


def change_step(path, index, **values):
    content = read_json(path)
    content["steps"][index] |= values
    write_json(path, content)


def refused(folder, message, kind="smolvla"):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        read_lerobot(folder, kind)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def test_what_a_folder_says(folder):
    found = read_lerobot(folder, "smolvla")
    assert (found.image_keys, found.image_shapes) == (["front", "wrist"], {"front": (64, 64), "wrist": (64, 64)})
    assert (found.image_size, found.empty_cameras, found.state_size, found.action_size) == ((32, 32), 0, 5, 3)
    assert (found.max_state, found.max_action, found.chunk, found.steps, found.config["n_action_steps"]) == (8, 8, 4, 4, 4)


# Normalisation


def test_modes():
    first, second, x = torch.tensor([-1.0, 2.0, 4.0]), torch.tensor([3.0, 2.5, 4.0]), torch.tensor([[0.0, 3.0, 4.0], [5.0, 2.0, 4.5]])
    for mode, names in STATISTICS.items():
        normaliser = Normaliser(mode, 3, dict(zip(names, (first, second), strict=False)))
        expected = {"MEAN_STD": (x - first) / (second + 1e-8), "IDENTITY": x}.get(mode)
        if expected is None:  # [-1, 1] between the bounds; a feature that never moved is -1 there
            span = torch.where(second == first, 1e-8, second - first)
            expected = 2 * (x - first) / span - 1
            assert expected[0, 2] == -1
        found = normaliser.normalise(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(normaliser.unnormalise(found), x)


def test_statistics_come_from_the_files(folder):
    found, numbers = read_lerobot(folder, "smolvla"), statistics(5, 3, 0)
    for normaliser, name in ((found.state_normaliser, "observation.state"), (found.action_normaliser, "action")):
        low, high = numbers[f"{name}.q01"], numbers[f"{name}.q99"]
        torch.testing.assert_close(normaliser.normalise(low), -torch.ones_like(low))
        torch.testing.assert_close(normaliser.unnormalise(torch.ones_like(low)), high)
        assert normaliser.known and torch.allclose(normaliser.std, (high - low) / 2)
        fitted = Normaliser("QUANTILES", len(low))
        fitted.load_state_dict(normaliser.state_dict())
        assert torch.equal(fitted.normalise(high), normaliser.normalise(high))


def test_a_base_model_has_no_statistics_and_takes_those_it_is_given(folder):
    for name in (BEFORE, AFTER):  # as in smolvla_base, whose statistics have names of their own
        write_tensors(folder / name, {"so100.buffer.action.mean": torch.zeros(6)})
    normaliser = read_lerobot(folder, "smolvla").action_normaliser
    x = torch.rand(50, 3)
    assert not normaliser.known and torch.equal(normaliser.normalise(x), x) and torch.equal(normaliser.unnormalise(x), x)
    normaliser.fit(x.numpy())
    inside = normaliser.normalise(x).abs() <= 1 + 1e-5
    assert normaliser.known and inside.float().mean() > 0.9
    for path, step in (("policy_preprocessor.json", 5), ("policy_postprocessor.json", 0)):
        change_step(folder / path, step, state_file=None)
    assert not read_lerobot(folder, "smolvla").state_normaliser.known


def test_statistics_among_the_weights(folder):
    """As lerobot wrote them before 0.4, without pipelines."""
    before = read_lerobot(folder, "smolvla")
    numbers, weights = read_tensors(folder / BEFORE), read_tensors(folder / "model.safetensors")
    old = {"normalize_inputs.buffer_observation_state": "observation.state", "unnormalize_outputs.buffer_action": "action"}
    for prefix, feature in old.items():
        weights |= {f"{prefix}.{name}": numbers[f"{feature}.{name}"].clone() for name in ("q01", "q99")}
    write_tensors(folder / "model.safetensors", weights)
    for path in folder.glob("policy_*"):
        path.unlink()
    after = read_lerobot(folder, "smolvla")
    x = torch.rand(4, 3)
    assert torch.equal(after.action_normaliser.unnormalise(x), before.action_normaliser.unnormalise(x))
    assert after.tokenizer_settings == before.tokenizer_settings
    assert not [name for name in read_weights(folder) if "normalize" in name]
    plain = {name: tensor for name, tensor in read_tensors(folder / "model.safetensors").items() if name in read_weights(folder)}
    write_tensors(folder / "model.safetensors", plain)
    refused(folder, "holds no policy_preprocessor.json, and model.safetensors no statistics")


# Instructions


def test_instructions_as_tokens(folder):
    checkpoint = read_lerobot(folder, "smolvla")
    tokens, mask = checkpoint.tokenise(["open the drawer", "open the drawer\n", "push"])
    assert torch.equal(tokens[0], tokens[1]) and mask.dtype == torch.bool and mask.sum(1).tolist() == (tokens != tokens[2, -1]).sum(1).tolist()
    padded, there = checkpoint.tokenise(["open the drawer"], padding="max_length")
    assert padded.shape == (1, 24) and torch.equal(padded[there], tokens[0][mask[0]])
    assert checkpoint.tokenise(["put the cup on the plate " * 20])[0].shape == (1, 24)


def test_a_tokenizer_beside_the_checkpoint(folder):
    expected = read_lerobot(folder, "smolvla").tokenise(["push"])[0]
    (folder / VLM).rename(folder.parent / VLM)
    assert torch.equal(read_lerobot(folder, "smolvla").tokenise(["push"])[0], expected)
    (folder.parent / VLM).rename(folder.parent / "elsewhere")
    with pytest.raises(UserError, match=f"tokenizer '{VLM}' could not be loaded .*HF_HUB_OFFLINE") as raised:
        read_lerobot(folder, "smolvla").tokenise(["push"])
    assert "\n" not in str(raised.value)


# Folders that do not fit


def test_files_that_are_missing_or_cut(folder):
    refused(folder.parent, "holds no config.json")
    refused(folder, "is of type 'smolvla': expected 'pi0'", "pi0")
    (folder / AFTER).rename(folder / "aside")
    refused(folder, f"{AFTER} does not exist")
    (folder / "aside").rename(folder / AFTER)
    (folder / BEFORE).write_bytes((folder / BEFORE).read_bytes()[:-7])
    refused(folder, f"{BEFORE} is truncated or damaged")
    (folder / "policy_postprocessor.json").unlink()
    refused(folder, "policy_postprocessor.json does not exist")
    folder.rename(folder.with_name("pretrained_model"))
    refused(folder.parent, "name the folder that does, such as")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk_size": "many"}, "chunk_size"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [2, 7]}}}, "the feature action is of shape (2, 7)"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [5]}}}, "lists no picture"),
        ({"max_action_dim": 2}, "max_action_dim 2, less than its features: 5 and 3"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha"),
        ({"chunk_size": 10**9}, "chunk_size"),
        ({"max_state_dim": 10**9}, "max_state_dim"),
        ({"empty_cameras": 10**9}, "empty_cameras"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"resize_imgs_with_padding": [10**9, 10**9]}, "resize_imgs_with_padding"),
    ],
)
def test_configurations_that_do_not_fit(folder, values, message):
    change(folder / "config.json", **values)
    refused(folder, message)


def test_statistics_that_do_not_fit(folder):
    numbers = read_tensors(folder / BEFORE)
    cases = {
        "observation.state.q99 is missing: mode QUANTILES needs it": {name: one for name, one in numbers.items() if name != "observation.state.q99"},
        "observation.state.q01 is missing": {name: one for name, one in numbers.items() if name.startswith("action")},
        "observation.state.q99 is of shape (5,): expected one number": numbers | {"observation.state.q01": torch.zeros(9)},
        "observation.state.q01 is of shape (5, 1): expected one number": numbers | {"observation.state.q01": torch.zeros(5, 1)},
        "observation.state.q01 is not finite": numbers | {"observation.state.q01": torch.full((5,), torch.inf)},
        "normalises actions otherwise": numbers | {"action.q01": numbers["action.q01"] - 1},
    }
    for message, tensors in cases.items():
        write_tensors(folder / BEFORE, tensors)
        refused(folder, message)


def test_steps_that_are_not_known(folder):
    path = folder / "policy_preprocessor.json"
    change_step(path, 5, config={"eps": 1e-8, "norm_map": {"STATE": "LOG"}})
    refused(folder, "observation.state is normalised by 'LOG': expected one of MEAN_STD")
    change_step(path, 1, registry_name="relative_actions_processor", config={"enabled": True})
    refused(folder, "its steps relative_actions_processor are switched on and not supported")
    change_step(path, 1, config={"enabled": False})
    change_step(path, 3, registry_name="to_batch_processor")
    refused(folder, "lacks tokenizer_processor")


def test_paths_stay_inside(folder):
    """Somebody else wrote the files: nothing outside the checkpoint is opened on their word."""
    path, steps = folder / "policy_preprocessor.json", read_json(folder / "policy_preprocessor.json")["steps"]
    number = next(number for number, step in enumerate(steps) if "tokenizer_name" in step["config"])
    for wrong, told in (
        ("/etc", "its tokenizer '/etc' is a folder of the machine that wrote this"),
        ("../../secrets", "names '../../secrets', expected a file"),
    ):
        change_step(path, number, config=steps[number]["config"] | {"tokenizer_name": wrong})
        with pytest.raises(UserError, match=told):
            read_lerobot(folder, "smolvla").tokenise(["push"])
    number = next(number for number, step in enumerate(steps) if "state_file" in step)
    change_step(path, number, state_file="../" + steps[number]["state_file"])
    refused(folder, "expected a file inside its own folder; do not use what you do not trust")
