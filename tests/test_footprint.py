"""The estimate of a dry run against what torch really keeps for the way back."""

import numpy as np
import pytest
import torch
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla

from worldenv_cli.policies.footprint import Footprint
from worldenv_cli.policies.load import load_vla
from worldenv_cli.policies.lora import LoraSettings
from worldenv_cli.policies.observation import Observation
from worldenv_cli.policies.vla import VLAConfig

SHARED = {"statistics": "dataset", "resolution": 32, "gripper": "as recorded", "max_tokens": 128, "lora": LoraSettings(rank=4, alpha=4)}
LARGER = {
    "openvla": (write_openvla, {"proprio_size": 4, "side": 112, "hidden": 128, "mlp": 384, "layers": 6}),
    "pi0": (write_pi0, {"width": 128, "mlp": 384, "expert_width": 96, "expert_mlp": 256, "layers": 6, "chunk": 40}),
    "smolvla": (write_smolvla, {"chunk": 40}),
}


def kept_bytes(adapted, rows):
    """Of the tensors that autograd holds between forward and backward, weights left out, each storage once."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    obs = Observation({"front": pictures}, np.zeros((rows, 4), np.float32), ["push it"] * rows)
    act = adapted.act(obs, explore=True)
    weights = {p.untyped_storage().data_ptr() for p in adapted.parameters()} | {t.untyped_storage().data_ptr() for t in act.encoded.values()}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score = adapted.density(act.encoded, act.trace).log_prob(act.trace["sampled"]).sum()
        total = sum(seen.values())
    score.backward()
    return total, act.encoded


@pytest.mark.parametrize("family", LARGER)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_and_kept_observations_are_counted_about_right(family, checkpointed, tmp_path):
    write, sizes = LARGER[family]
    config = VLAConfig(model=str(write(tmp_path / "model", **sizes)), gradient_checkpointing=checkpointed, **SHARED)
    shapes = Footprint.of(load_vla(config, weights=False).trainable())
    policy = load_vla(config)
    policy.adopt(np.random.default_rng(0).standard_normal((50, 4)), np.random.default_rng(1).uniform(-1, 1, (50, 4)))
    adapted = policy.trainable()
    assert shapes == Footprint.of(adapted)
    assert shapes.learning == sum(p.numel() for p in adapted.parameters() if p.requires_grad) < shapes.parameters
    few, encoded = kept_bytes(adapted, 2)
    more, _ = kept_bytes(adapted, 6)
    assert 0.5 < (more - few) / 4 / shapes.row < 2 or checkpointed and (more - few) / 4 < shapes.row, ((more - few) / 4, shapes.row)
    largest = max(tensor[0].nbytes for name, tensor in encoded.items() if name in ("features", "keys"))
    assert largest <= shapes.kept <= 2.2 * largest
