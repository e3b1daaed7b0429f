import json
import shutil

import numpy as np
import pytest
import torch

from worldenv_cli import __version__, artifacts
from worldenv_cli.artifacts import (
    Checkpoint,
    content_hash,
    fingerprint,
    is_current,
    load_config,
    load_into,
    load_optimizer,
    load_tensors,
    make_provenance,
    optimizer_tensors,
    package_versions,
    rng_state,
    save_artifact,
    set_rng_state,
    under,
    write_artifact,
)
from worldenv_cli.atomic import read_json, write_tensors
from worldenv_cli.errors import UserError
from worldenv_cli.provenance import write_provenance

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16), "count": torch.tensor(7)}


def save(folder, config=None, tensors=TENSORS, settings=None):
    provenance = make_provenance(settings or {"steps": 3}, {"dataset": "abc"}, seed=1)
    save_artifact(folder, "policy", config or {"width": 3, "name": "schön"}, tensors, provenance, "# A policy")


def edit(path, **changes):
    """As another version would have written it."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_provenance(path.parent, read_json(path.parent / "provenance.json"))


def same(one, other):
    return one.keys() == other.keys() and all(one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one)


def test_round_trip(tmp_path):
    save(tmp_path / "policy")
    assert load_config(tmp_path / "policy", "policy") == {"width": 3, "name": "schön"}
    assert same(load_tensors(tmp_path / "policy"), TENSORS)
    assert len({path.stat().st_mode for path in (tmp_path / "policy").iterdir()}) == 1
    files = sorted(path.name for path in (tmp_path / "policy").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "provenance.json"]
    stored = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert stored["kind"] == "policy" and stored["worldenv_version"] == __version__
    card = (tmp_path / "policy" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: worldenv\n") and card.endswith("---\n\n# A policy\n")
    provenance = json.loads((tmp_path / "policy" / "provenance.json").read_text())
    assert provenance["seed"] == 1 and provenance["inputs"] == {"dataset": "abc"} and provenance["settings"] == {"steps": 3}
    assert provenance["packages"]["torch"] == torch.__version__ and len(provenance["fingerprint"]) == 64


def test_tensors_that_share_memory_and_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"tied": whole, "again": whole, "row": whole[1], "turned": whole.T, "parameter": torch.nn.Parameter(torch.ones(2))}
    save(tmp_path / "policy", tensors=tensors)
    assert same(load_tensors(tmp_path / "policy"), {name: tensor.detach() for name, tensor in tensors.items()})


def test_missing_and_wrong_artifacts(tmp_path):
    with pytest.raises(UserError, match=r"policy does not exist: expected the folder of a policy; run `worldenv sft RECIPE` first"):
        load_config(tmp_path / "policy", "policy", made_by="run `worldenv sft RECIPE` first")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no config.json"):
        load_config(tmp_path / "empty", "policy")
    with pytest.raises(UserError, match="empty holds no model.safetensors"):
        load_tensors(tmp_path / "empty")
    save(tmp_path / "policy")
    with pytest.raises(UserError, match="is of kind 'policy': expected 'reflector'"):
        load_config(tmp_path / "policy", "reflector")
    (tmp_path / "policy" / "config.json").write_text('{"kind": "pol')
    with pytest.raises(UserError, match="config.json is truncated or damaged"):
        load_config(tmp_path / "policy", "policy")


def test_versions(tmp_path):
    save(tmp_path / "policy")
    major, minor, _ = __version__.split(".")
    config = tmp_path / "policy" / "config.json"
    edit(config, worldenv_version=f"{major}.{minor}.999")
    load_config(tmp_path / "policy", "policy")
    for other in (f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.{minor}.0", f"{major}.{minor}1.0", None):
        edit(config, worldenv_version=other)
        with pytest.raises(UserError, match=f"written by worldenv {other}: this is {__version__}"):
            load_config(tmp_path / "policy", "policy")


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_damaged_tensors(tmp_path, damage):
    save(tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="model.safetensors is truncated or damaged"):
        load_tensors(tmp_path / "policy")


def test_load_into_lists_every_problem():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    source = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    load_into(module, source.state_dict(), "here")
    assert same(module.state_dict(), source.state_dict())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {"0.weight": torch.zeros(3, 4), "1.weight": torch.zeros(1, 3), "2.bias": torch.zeros(1), "extra": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_into(module, tensors, "runs/policy")
    assert str(caught.value).startswith("runs/policy: its tensors do not fit Sequential (")
    for part in ("missing: 0.bias, 1.bias;", "unexpected: 2.bias, extra;", "wrong shape: 0.weight (3, 4) instead of (3, 2))"):
        assert part in str(caught.value)
    assert same(module.state_dict(), before)


def test_content_hash(tmp_path):
    save(tmp_path / "one")
    before = content_hash(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name in ("README.md", ".gitattributes", "notes.txt"):
        (tmp_path / "two" / name).write_text("other")
    assert content_hash(tmp_path / "two") == before
    save(tmp_path / "two", settings={"steps": 4})
    assert content_hash(tmp_path / "two") == before  # what it is, not what it was made from
    edit(tmp_path / "one" / "config.json", width=4)
    assert content_hash(tmp_path / "one") != before
    (tmp_path / "two" / "sub").mkdir()
    (tmp_path / "two" / "sub" / "README.md").write_text("part of the data")
    write_provenance(tmp_path / "two", {"fingerprint": "x"})
    nested = content_hash(tmp_path / "two")
    (tmp_path / "two" / "sub").rename(tmp_path / "two" / "bus")
    write_provenance(tmp_path / "two", {"fingerprint": "x"})
    assert len({before, nested, content_hash(tmp_path / "two")}) == 3
    with pytest.raises(UserError, match="does not exist"):
        content_hash(tmp_path / "three")


def flipped(data):
    """One bit, in the last byte, as a failing disk does it."""
    return data[:-1] + bytes([data[-1] ^ 1])


def flip(path):
    path.write_bytes(flipped(path.read_bytes()))


DAMAGE = {
    "a flipped bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "an edited config": lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text().replace("3", "4")),
    "another run's weights": lambda folder: write_tensors(folder / "model.safetensors", {"weight": torch.zeros(2, 3)}),
    "an edited result": lambda folder: (folder / "outcomes.json").write_text('{"outcomes": [true, true]}'),
    "a missing file": lambda folder: (folder / "outcomes.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_artifact_knows_its_own_bytes(tmp_path, damage):
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "outcomes.json").write_text('{"outcomes": [true, false]}')
    provenance = make_provenance({}, {}, 0)
    write_artifact(folder, "policy", {"width": 3}, TENSORS, provenance, "# A policy")
    wanted = provenance["fingerprint"]
    assert is_current(folder, wanted) and load_config(folder, "policy")
    DAMAGE[damage](folder)
    for use in (content_hash, lambda folder, command="": load_config(folder, "policy"), lambda *a: is_current(a[0], wanted, *a[1:])):
        with pytest.raises(UserError, match=r"sft/\S+ (does not match its provenance|is missing).*make it again") as caught:
            use(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="`worldenv sft RECIPE --force`"):
        content_hash(folder, "sft")


def test_an_artifact_without_a_record_is_not_made_from(tmp_path):
    save(tmp_path / "sft")
    for text, told in (('{"fingerprint": "x"}', "does not record the files"), ("{", "truncated or damaged"), ("[]", "expected a JSON object")):
        (tmp_path / "sft" / "provenance.json").write_text(text)
        with pytest.raises(UserError, match=told):
            content_hash(tmp_path / "sft")
    (tmp_path / "sft" / "provenance.json").unlink()
    with pytest.raises(UserError, match="nothing tells what it was made from"):
        content_hash(tmp_path / "sft")


def test_a_link_out_of_an_artifact_is_not_followed(tmp_path):
    save(tmp_path / "sft")
    (tmp_path / "sft" / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "sft" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of its artifact's folder"):
        content_hash(tmp_path / "sft")


def test_a_snapshot_of_the_hub_is_links_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--me--it" / "snapshots" / ("a" * 40) / "sft"
    save(snapshot)
    blob = tmp_path / "models--me--it" / "blobs" / "1234"
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    assert content_hash(snapshot)
    flip(blob)
    with pytest.raises(UserError, match="does not match its provenance"):
        content_hash(snapshot)


def test_fingerprint_and_is_current(tmp_path, monkeypatch):
    now = fingerprint({"steps": 3, "rate": 1e-4}, {"dataset": "abc"})
    assert now == fingerprint({"rate": 1e-4, "steps": 3}, {"dataset": "abc"})
    others = [fingerprint({"steps": 4, "rate": 1e-4}, {"dataset": "abc"}), fingerprint({"steps": 3, "rate": 1e-4}, {"dataset": "abd"})]
    monkeypatch.setattr(artifacts, "FORMAT", "9.9")
    others.append(fingerprint({"steps": 3, "rate": 1e-4}, {"dataset": "abc"}))
    assert len({now, *others}) == 4
    monkeypatch.undo()
    assert not is_current(tmp_path / "policy", now)
    save(tmp_path / "policy", settings={"steps": 3, "rate": 1e-4})
    assert is_current(tmp_path / "policy", now) and not is_current(tmp_path / "policy", others[0])
    (tmp_path / "policy").rename(tmp_path / ".policy.replaced")  # as a crash between two renames leaves it
    assert is_current(tmp_path / "policy", now)
    (tmp_path / "policy" / "provenance.json").write_text("{")
    assert not is_current(tmp_path / "policy", now)


def test_package_versions():
    versions = package_versions()
    assert versions["worldenv"] == __version__ and versions["numpy"] == np.__version__
    assert {"python", "torch", "transformers", "gymnasium"} <= versions.keys()


def test_checkpoint_keeps_two(tmp_path):
    checkpoint = Checkpoint(tmp_path / "work" / "checkpoints")
    assert checkpoint.latest() is None
    for step in (5, 999999, 1000000):
        checkpoint.save(step, {"x": torch.tensor([step])}, {"step": step})
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == ["step_1000000", "step_999999"]
    step, tensors, state = checkpoint.latest()
    assert step == 1000000 and tensors["x"].item() == 1000000 and state == {"step": 1000000}
    checkpoint.save(7, {}, {})  # a run begun anew
    assert [path.name for path in checkpoint.folder.iterdir()] == ["step_000007"]
    (checkpoint.folder / "step_notes").mkdir()
    checkpoint.clear()
    assert checkpoint.latest() is None and [path.name for path in checkpoint.folder.iterdir()] == ["step_notes"]
    (checkpoint.folder / "step_notes").rmdir()
    checkpoint.clear()
    assert not checkpoint.folder.exists()
    checkpoint.clear()


@pytest.mark.parametrize(
    "file, damage",
    [
        ("model.safetensors", lambda data: data[:-1]),
        ("model.safetensors", flipped),
        ("state.json", lambda data: data[:-4]),
        ("state.json", lambda data: b"{}"),
        ("state.json", None),
    ],
)
def test_a_damaged_checkpoint_is_skipped(tmp_path, file, damage):
    checkpoint = Checkpoint(tmp_path)
    for step in (100, 200):
        checkpoint.save(step, {"x": torch.full((4,), step)}, {"step": step})
    path = tmp_path / "step_000200" / file
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.warns(UserWarning, match=f"step_000200/{file}"):
        step, tensors, state = checkpoint.latest()
    assert step == 100 and state == {"step": 100} and tensors["x"][0] == 100
    checkpoint.save(150, {}, {})  # the damaged one must not count as one of the two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000100", "step_000150"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "weight_decay": 0.3}], lr=0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
)
def test_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, make):
    def steps(module, optimizer, count):
        for step in range(count):
            optimizer.zero_grad()
            module(torch.full((1, 3), step + 1.0)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimizer = make(list(module.parameters()))
    steps(module, optimizer, 3)
    tensors, state = optimizer_tensors(optimizer)
    named = {f"optimizer.{k}": v for k, v in tensors.items()} | {f"model.{k}": v for k, v in module.state_dict().items()}
    Checkpoint(tmp_path).save(3, named, {"optimizer": state})
    _, tensors, state = Checkpoint(tmp_path).latest()

    again = torch.nn.Linear(3, 2)
    load_into(again, under("model.", tensors), "here")
    resumed = make(list(again.parameters()))
    for group in resumed.param_groups:
        group["lr"] = 123.0
    load_optimizer(resumed, under("optimizer.", tensors), state["optimizer"])
    one, other = optimizer.state_dict(), resumed.state_dict()
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    steps(module, optimizer, 3)
    steps(again, resumed, 3)
    assert same(module.state_dict(), again.state_dict())


def test_random_numbers_go_on(tmp_path):
    generator = np.random.default_rng(3)
    torch.manual_seed(3)
    torch.rand(5), generator.random(5)
    tensors, state = rng_state(generator)
    Checkpoint(tmp_path).save(1, tensors, state)
    wanted = torch.rand(5), generator.random(5)
    _, tensors, state = Checkpoint(tmp_path).latest()
    other = np.random.default_rng(4)
    torch.manual_seed(4)
    set_rng_state(other, tensors, state)
    assert torch.equal(torch.rand(5), wanted[0]) and np.array_equal(other.random(5), wanted[1])
