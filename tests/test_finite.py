"""Numbers are finite or the run stops: weights where they are read and written, and what imagination answers. (Real actions: test_rollout.py.)"""

import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_smolvla import write_smolvla
from toy_world import UP, climbing_world, untrained_world

from worldenv_cli.artifacts import TENSORS, Checkpoint, check_tensors
from worldenv_cli.errors import UserError
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.load import load_vla
from worldenv_cli.policies.vla import VLAConfig
from worldenv_cli.post_train.rollouts import imagine


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_found(dtype, value):
    tensors = {"whole": torch.arange(5), "flags": torch.ones(2, dtype=torch.bool), "none": torch.zeros(0), "one": torch.tensor(2.0, dtype=dtype)}
    check_tensors(tensors | {"w": torch.ones(7, 9, dtype=dtype)}, "here", "mend it")
    wrong = torch.ones(7, 9, dtype=dtype)
    wrong[3, 4] = value
    with pytest.raises(UserError, match=r"^here: 1 of 63 numbers in w are not finite; mend it$"):
        check_tensors(tensors | {"w": wrong}, "here", "mend it")


@pytest.mark.parametrize("kind", ["policy", "simulator", "reflector"])
def test_a_model_with_such_weights_is_neither_written_nor_read(tmp_path, request, kind):
    model = request.getfixturevalue(kind)
    save_model(tmp_path, kind, model, {}, "# A model")
    path = tmp_path / TENSORS
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path)
    (tmp_path / "provenance.json").unlink()  # which knows what the file was
    with pytest.raises(UserError, match=rf"{TENSORS}: 1 of \d+ numbers in {name} are not finite; make it or download it again"):
        load_model(tmp_path, kind)
    model.load_state_dict(tensors)
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=f"^the {kind}: 1 of .* in {name} are not finite; training went wrong"):
        save_model(tmp_path / "again", kind, model, {}, "# A model")
    assert not (tmp_path / "again" / TENSORS).exists()


def test_a_checkpoint_of_training_with_such_weights_is_passed_over(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(1, {"w": torch.ones(2)}, {})
    checkpoint.save(2, {"w": torch.tensor([1.0, torch.nan])}, {})
    with pytest.warns(UserWarning, match="1 of 2 numbers in w are not finite"):
        step, tensors, _ = checkpoint.latest()
    assert step == 1 and torch.equal(tensors["w"], torch.ones(2))


def test_a_checkpoint_of_a_vla_with_such_weights_is_refused(tmp_path):
    folder = write_smolvla(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("action_out_proj.weight"))
    tensors[name][0, 0] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    config = VLAConfig(model=str(folder), statistics="dataset", resolution=32, gripper="as recorded")
    with pytest.raises(UserError, match="action_out_proj.weight holds values that are not finite .*; use an earlier checkpoint"):
        load_vla(config)


@pytest.fixture
def world(mini, simulator_config, policy):
    return climbing_world(untrained_world(mini, simulator_config, policy))


def imagined(world, policy):
    return imagine(world.env, policy, [world.pool.first["up"][0]], 4, torch.Generator().manual_seed(0))


def test_imagination_stops_at_an_action_that_is_not_finite(world, policy):
    imagined(world, policy)
    policy.action_head[-1].bias.data[0] = torch.nan
    with pytest.raises(UserError, match=f"the policy answers '{UP}' with an action of nan"):
        imagined(world, policy)


@pytest.mark.parametrize("model", ["simulator", "reflector"])
def test_imagination_stops_at_what_a_model_says_that_is_not_finite(world, policy, monkeypatch, model):
    whole, verb = getattr(world.env, model), {"simulator": "step", "reflector": "score"}[model]
    answer = getattr(whole, verb)

    def broken(*arguments):
        first, *rest = answer(*arguments)
        return (first, rest[0] * np.nan, *rest[1:]) if model == "simulator" else (first * np.nan, *rest)

    monkeypatch.setattr(whole, verb, broken)
    with pytest.raises(UserError, match=f"imagined .* are not finite: the {model} is damaged; make it again"):
        imagined(world, policy)


def test_looking_costs_little():
    """Less than reading the weights again would: 40 MB in far less than a second."""
    tensors = {str(i): torch.ones(1_000_000) for i in range(10)}
    began = time.monotonic()
    check_tensors(tensors, "here", "mend it")
    assert time.monotonic() - began < 0.5
