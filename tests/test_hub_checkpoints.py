"""VLA checkpoints on the Hub, over real HTTP to a stand-in: what a dry run downloads, and what is told before anything is made."""

import shutil

import pytest
import torch
from hub_stand_in import Repository
from test_hub import hub  # noqa: F401 - a fixture
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla

from worldenv_cli.errors import UserError
from worldenv_cli.policies.config import VLAConfig
from worldenv_cli.policies.footprint import Footprint
from worldenv_cli.policies.load import check_checkpoint, load_vla
from worldenv_cli.policies.lora import LoraSettings

SHARED = {"statistics": "dataset", "resolution": 32, "gripper": "as recorded", "max_tokens": 128, "lora": LoraSettings(rank=4, alpha=4)}
FAMILIES = {
    "openvla": (write_openvla, {"action_size": 4, "side": 56, "hidden": 64, "dtype": torch.float32}),
    "pi0 of lerobot": (write_pi0, {"width": 96, "mlp": 256}),
    "pi0 of transformers": (write_pi0, {"layout": "transformers", "width": 96, "mlp": 256}),
    "smolvla": (write_smolvla, {"width": 64}),
}


def published(hub, folder, name):  # noqa: F811
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories[f"models/{name}"] = Repository(False)
    hub.repositories[f"models/{name}"].commit(files)
    return files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dry_run_downloads_small_files_and_headers_only(hub, family, tmp_path):  # noqa: F811
    write, sizes = FAMILIES[family]
    folder = write(tmp_path / "model", **sizes)
    local = Footprint.of(load_vla(VLAConfig(model=str(folder), **SHARED), weights=False).trainable())
    files = published(hub, folder, "me/vla")
    config = VLAConfig(model="me/vla", **SHARED)
    check_checkpoint(config)
    assert Footprint.of(load_vla(config, weights=False).trainable()) == local
    weights = {name: len(data) for name, data in files.items() if name.startswith("model") and name.endswith(".safetensors")}
    for name, size in weights.items():
        assert hub.served.get(name, 0) <= 3 * 100_001 and (size < 150_000 or hub.served.get(name, 0) < 2 * size)
    assert not [name for name in hub.served if name.endswith(".pt")]
    cached = next((tmp_path / "cache").glob("models--me--vla/snapshots/*"))
    assert not list(cached.glob("model*.safetensors")) and (cached / "config.json").is_file()
    load_vla(config)  # what is missing comes now
    assert all(hub.served[name] >= size for name, size in weights.items())


def test_of_large_weights_only_the_header_is_asked_for(hub, tmp_path):  # noqa: F811
    folder = write_smolvla(tmp_path / "model", width=256, layers=4)
    size = len(published(hub, folder, "me/vla")["model.safetensors"])
    load_vla(VLAConfig(model="me/vla", **SHARED), weights=False)
    assert size > 4_000_000 and 0 < hub.served["model.safetensors"] <= 100_001


def test_weights_that_were_never_downloaded_are_told_offline(hub, tmp_path, monkeypatch):  # noqa: F811
    from huggingface_hub import constants

    published(hub, write_smolvla(tmp_path / "model"), "me/vla")
    config = VLAConfig(model="me/vla", **SHARED)
    check_checkpoint(config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE( is set; unset it| and run it again)") as error:
        load_vla(config)
    assert "\n" not in str(error.value)


def test_a_wrong_name_is_told_before_anything_is_made(hub, tmp_path, mini):  # noqa: F811
    from worldenv_cli.stage_runner import run_stages

    for name, told in (("me/none", "me/none: .*check the name"), (str(tmp_path / "none"), "does not exist")):
        recipe = mini.model_copy(update={"policy": VLAConfig(model=name, **SHARED)})
        with pytest.raises(UserError, match=told):
            run_stages(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_in_a_folder_of_a_repository(hub, tmp_path):  # noqa: F811
    write_smolvla(tmp_path / "whole" / "last")
    published(hub, tmp_path / "whole", "me/vla")
    load_vla(VLAConfig(model="me/vla/last", **SHARED), weights=False)
    assert hub.served["last/model.safetensors"] <= 100_001
    shutil.rmtree(tmp_path / "whole")
    load_vla(VLAConfig(model="me/vla/last", **SHARED))
