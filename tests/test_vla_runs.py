"""The whole loop with a tiny random checkpoint of each family, in real Meta-World: artifacts, report, and a second call that does nothing."""

import json
from pathlib import Path

import pytest
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla

from worldenv_cli.models import load_model
from worldenv_cli.recipe import load_recipe
from worldenv_cli.stage_runner import run_stages

MINI = Path(__file__).with_name("mini.yaml")
FAMILIES = {
    "openvla": (write_openvla, {"proprio_size": 4, "side": 56}, ", max_tokens: 128, gripper: as recorded"),
    "pi0": (write_pi0, {}, ", walk: learned"),
    "smolvla": (write_smolvla, {}, ""),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_from_demonstrations_to_report(family, tmp_path, capsys):
    write, sizes, own = FAMILIES[family]
    model = write(tmp_path / "checkpoint", **sizes)
    policy = f"policy={{model: {model}, statistics: dataset, lora: {{rank: 4, alpha: 4}}{own}}}"
    recipe = load_recipe(
        MINI, [policy, "post_train.rounds=1", "post_train.updates.microbatch=16", "post_train.updates.rescore=true", "eval.starts=1"]
    )
    run_stages(recipe, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert [arm["name"] for arm in report["arms"]][:3] == ["SFT", "filtered SFT", "post-trained"]
    weights = (tmp_path / "run" / "sft" / "model.safetensors").stat().st_size
    assert weights < sum(path.stat().st_size for path in model.glob("model*.safetensors"))  # an adapter, no checkpoint
    assert load_model(tmp_path / "run" / "post-trained", "policy").config.model == str(model)
    capsys.readouterr()
    run_stages(recipe, tmp_path / "run")
    assert "making it" not in capsys.readouterr().out
