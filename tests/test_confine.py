"""No name out of a checkpoint, dataset or artifact leads out of its folder."""

import pytest

from worldenv_cli.confine import inside
from worldenv_cli.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["model.safetensors", "lora_adapter/adapter_model.safetensors", "not there yet.json", ".", "a..b", "näme.json"])
def test_a_name_inside_is_a_path(tmp_path, name):
    assert inside(tmp_path, name, "config.json") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../other", "a/../../other", "..", "C:/x", "C:x", "a\\..\\b", "a\0b", "a\nb", "\ud800", "x" * 300, "~/../x", None, 7, ["a"]],
)
def test_a_name_that_may_lead_outside_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="policy_preprocessor.json: names"):
        inside(tmp_path, name, "policy_preprocessor.json")


def test_a_link_is_followed_inside_its_folder_only(tmp_path):
    folder, key = tmp_path / "checkpoint", tmp_path / "id_rsa"
    (folder / "deep").mkdir(parents=True)
    key.write_text("private")
    (folder / "real.json").write_text("{}")
    (folder / "alias.json").symlink_to("real.json")
    (folder / "key.json").symlink_to(key)
    (folder / "relative.json").symlink_to("../id_rsa")
    (folder / "deep" / "up").symlink_to("../..")
    (folder / "chain.json").symlink_to("key.json")
    (folder / "dangling.json").symlink_to(tmp_path / "nowhere")
    assert inside(folder, "alias.json", folder).read_text() == "{}"
    for name in ("key.json", "relative.json", "deep/up", "deep/up/id_rsa", "chain.json", "dangling.json"):
        with pytest.raises(UserError, match="outside of its folder"):
            inside(folder, name, folder)


def test_a_folder_that_is_itself_a_link_is_its_target(tmp_path):
    (tmp_path / "000100").mkdir()
    (tmp_path / "000100" / "config.json").write_text("{}")
    (tmp_path / "last").symlink_to("000100")
    assert inside(tmp_path / "last", "config.json", "x").read_text() == "{}"


def test_the_hubs_cache_may_link_to_its_own_blobs_only(tmp_path):
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / COMMIT
    (snapshot / "lora_adapter").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abc").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    (tmp_path / "secret").write_text("private")
    (cache / "blobs" / "linked").symlink_to(tmp_path / "secret")
    (tmp_path / "models--owner--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--owner--other" / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "lora_adapter" / "adapter_config.json").symlink_to("../../../blobs/abc")
    for folder, name in (
        (snapshot, "config.json"),
        (snapshot, "lora_adapter/adapter_config.json"),
        (snapshot / "lora_adapter", "adapter_config.json"),
    ):
        assert inside(folder, name, "x").read_text() == "{}"
    for number, target in enumerate(("../../blobs/linked", "../../refs/main", "../../../models--owner--other/blobs/abc", "../../blobs")):
        (snapshot / f"{number}.json").symlink_to(target)
        with pytest.raises(UserError, match="outside of its folder"):
            inside(snapshot, f"{number}.json", "x")
