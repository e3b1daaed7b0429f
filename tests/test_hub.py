"""Up to the Hub and down again, over real HTTP to a stand-in on the loopback interface."""

import json
import os
import shutil
import subprocess
import sys

import hub_stand_in
import numpy as np
import pytest
import torch
from hub_stand_in import GATED, PULLING, PUSHING, at
from recorded import lerobot_folder, robomimic_file
from typer.testing import CliRunner

from worldenv_cli.cli import app
from worldenv_cli.data.dataset import read_dataset
from worldenv_cli.errors import UserError
from worldenv_cli.hub import downloaded, resolve
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.lora import AdaptedPolicy, LoraSettings
from worldenv_cli.policies.observation import Observation
from worldenv_cli.provenance import write_provenance
from worldenv_cli.push import push
from worldenv_cli.reflector.compact import Reflector
from worldenv_cli.simulator.simulator import Simulator
from worldenv_cli.stage_runner import run_stages


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants, file_download, hf_api

    with hub_stand_in.running() as hub:
        for module in (constants, hf_api, file_download):
            for name in ("ENDPOINT", "HF_ENDPOINT"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, hub.address)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
        yield hub


@pytest.fixture
def policy_folder(tmp_path, mini):
    torch.manual_seed(0)
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    save_model(folder, "policy", CompactPolicy(mini.policy), {"seed": 0}, "# A policy")
    return folder


def means(policy):
    size = policy.config.resolution
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return policy.act(Observation({"front": images}, np.zeros((2, 4), np.float32), ["open it", "shut it"]), explore=False).chunk


def test_a_policy_goes_up_and_comes_down_the_same(hub, policy_folder):
    push(policy_folder, "me/policy")
    assert hub.repositories["models/me/policy"].private
    loaded = CompactPolicy.from_pretrained("me/policy")
    np.testing.assert_array_equal(means(loaded), means(load_model(policy_folder, "policy")))
    commit = hub.repositories["models/me/policy"].refs["main"]
    assert downloaded(resolve("me/policy")) == ("me/policy", commit) and downloaded(policy_folder) is None
    np.testing.assert_array_equal(means(CompactPolicy.from_pretrained(f"me/policy@{commit}")), means(loaded))


def test_only_what_changed_is_sent(hub, policy_folder, mini):
    push(policy_folder, "me/policy")
    sent = len(hub.puts)
    push(policy_folder, "me/policy")
    assert len(hub.puts) == sent and len(hub.repositories["models/me/policy"].commits) == 2
    (policy_folder / "README.md").write_text((policy_folder / "README.md").read_text() + "\nMore.\n")
    push(policy_folder, "me/policy")
    assert len(hub.puts) == sent and len(hub.repositories["models/me/policy"].commits) == 3


def test_public_only_when_asked_for(hub, policy_folder):
    push(policy_folder, "me/policy", public=True)
    assert not hub.repositories["models/me/policy"].private


def run_of_parts(folder, parts=3):
    """A run of artifacts that are no more than files."""
    for number in range(parts):
        (folder / f"part{number}").mkdir(parents=True)
        (folder / f"part{number}" / "weights.bin").write_bytes(np.random.default_rng(number).bytes(20_000))
        write_provenance(folder / f"part{number}", {"fingerprint": "x"})
    (folder / "recipe.yaml").write_text("name: x\n")
    return folder


def pushed_files(hub, name):
    repository = hub.repositories[name]
    return repository.commits[repository.refs["main"]]


def test_an_upload_that_was_cut_off_goes_on(hub, tmp_path, monkeypatch):
    """The second file's connection is cut; the second call sends only what is missing."""
    run = run_of_parts(tmp_path / "run")
    (run / ".unfinished").mkdir()
    (run / ".unfinished" / "big.bin").write_bytes(b"x" * 5000)
    seen = []

    def cut_the_second(method, path):
        if method == "PUT":
            seen.append(path)
            return "cut" if path in list(dict.fromkeys(seen))[1:2] else None

    hub.fail = cut_the_second
    monkeypatch.setattr("time.sleep", lambda _: None)  # between huggingface_hub's own tries
    with pytest.raises(UserError, match="me/run: .*what was sent is not sent twice"):
        push(run, "me/run")
    before = list(hub.puts)
    hub.fail = None
    push(run, "me/run")
    assert 0 < len(before) < 3 and len(hub.puts) == len(set(hub.puts)) == 3
    parts = [f"part{number}/{name}" for number in range(3) for name in ("provenance.json", "weights.bin")]
    assert sorted(pushed_files(hub, "models/me/run")) == ["README.md", *parts, "recipe.yaml"]


def test_a_push_that_was_killed_finishes_when_run_again(hub, tmp_path):
    """The Hub kills the process that pushes, at the second upload."""
    run, seen = run_of_parts(tmp_path / "run"), []
    code = f"from pathlib import Path; from worldenv_cli.push import push; push(Path({str(run)!r}), 'me/run')"
    told = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | told, stderr=subprocess.PIPE)

    def kill_at_the_second(method, path):
        if method == "PUT":
            seen.append(path)
            if len(seen) == 2:
                process.kill()
                process.wait()
        return "cut" if method == "PUT" and len(seen) > 1 else None

    hub.fail = kill_at_the_second
    assert process.wait(60) == -9, process.stderr.read().decode()
    hub.fail, before = None, list(hub.puts)
    push(run, "me/run")
    assert len(hub.puts) == len(set(hub.puts)) == 3 and len(before) < 3
    push(run, "me/run")
    assert len(hub.puts) == 3


def test_an_adapter_goes_up_as_it_is_or_merged(hub, policy_folder, tmp_path):
    policy = AdaptedPolicy(load_model(policy_folder, "policy"), LoraSettings(rank=4, alpha=8)).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_model(folder, "policy", policy, {"seed": 0}, "# A tuned policy")
    push(folder, "me/tuned", base_model="me/policy", datasets=["me/data", "you/data"])
    push(folder, "me/whole", merged=True)
    adapted, merged = CompactPolicy.from_pretrained("me/tuned"), CompactPolicy.from_pretrained("me/whole")
    assert isinstance(adapted, AdaptedPolicy) and type(merged) is CompactPolicy
    np.testing.assert_allclose(means(adapted), means(policy), atol=1e-6)
    np.testing.assert_allclose(means(merged), means(policy), atol=1e-5)
    files = [hub.repositories[f"models/me/{name}"] for name in ("tuned", "whole")]
    card, other = (repository.commits[repository.refs["main"]]["README.md"].decode() for repository in files)
    assert (
        "base_model: me/policy\n" in card and "- me/data\n- you/data\n" in card and "library_name: worldenv\n" in card and "# A tuned policy" in card
    )
    assert other.startswith("---\nlibrary_name: worldenv\n") and "part of the weights" in other
    with pytest.raises(UserError, match="a CompactPolicy has no adapter to merge"):
        push(policy_folder, "me/policy", merged=True)
    with pytest.raises(UserError, match="'data': expected a repository"):
        push(folder, "me/tuned", datasets=["data"])


def test_a_folder_of_a_run_is_a_reference_too(hub, policy_folder):
    (policy_folder.parent / "recipe.yaml").write_text("name: x\n")
    push(policy_folder.parent, "me/run")
    np.testing.assert_array_equal(means(CompactPolicy.from_pretrained("me/run/sft")), means(load_model(policy_folder, "policy")))
    with pytest.raises(UserError, match="no folder 'rounds/1/tuned'"):
        resolve("me/run/rounds/1/tuned")


def test_a_dataset_goes_up_with_its_tag_and_is_ingested_from_there(hub, tmp_path):
    runner, out = CliRunner(), tmp_path / "set"
    path = robomimic_file(tmp_path / "image.hdf5")
    assert runner.invoke(app, ["ingest", str(path), "--out", str(out), "--instruction", "lift"]).exit_code == 0
    for _ in range(2):  # the tag moves
        result = runner.invoke(app, ["push-to-hub", str(out), "me/data"])
        assert result.exit_code == 0 and "/datasets/me/data" in result.output
    repository = hub.repositories["datasets/me/data"]
    assert repository.refs["v3.0"] == repository.refs["main"]
    again = tmp_path / "again"
    result = runner.invoke(app, ["ingest", "me/data@v3.0", "--out", str(again)])
    assert result.exit_code == 0, result.output
    for mine, theirs in zip(read_dataset(again), read_dataset(out), strict=True):
        np.testing.assert_array_equal(mine.frames["agentview"], theirs.frames["agentview"])
        np.testing.assert_array_equal(mine.actions, theirs.actions)
    sources = json.loads((again / "meta/worldenv.json").read_text())["sources"]
    assert sources[0]["name"] == "me/data" and sources[0]["commit"] == repository.refs["main"]


@pytest.mark.parametrize(
    "wrong, pushing, pulling",
    [
        (401, "HF_TOKEN", "a private repository, or none of this name: .*log in"),
        (403, "token may not write there", "token may not read it"),
        (404, "no such repository", "no such repository"),
        (409, "another push to it is under way", "conflict"),
        (429, "wait a little", "wait a little"),
        (500, "answers 500.*again later", "answers 500.*again later"),
        (GATED, "accept its terms", r"accept its terms on http://127.0.0.1:\d+/me/other with the account of your token"),
        ("cut", "check the network", "check the network"),
    ],
)
def test_refusals_are_told_without_the_token(hub, policy_folder, wrong, pushing, pulling, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fail = lambda method, path: wrong
    for call, told in ((lambda: push(policy_folder, "me/policy"), pushing), (lambda: resolve("me/other"), pulling)):
        with pytest.raises(UserError, match=told) as error:
            call()
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
        assert "write" not in str(error.value) or told is pushing


READ = ("preupload", "lfs batch", "commit", "revision", "list")  # steps whose answers are read
WRONG = [(step, "cut") for step in PUSHING | PULLING] + [(step, wrong) for step in READ for wrong in ("half", "garbage", 500)]


def one_line(result):
    """A command that failed as one does who is not to blame: exit code 2, one line, no traceback, no token."""
    said = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and len(said) == 1 and said[0].startswith("error: me/"), (result.exit_code, result.stderr)
    assert "secret" not in result.output + result.stderr and "Traceback" not in result.stderr
    return said[0]


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "set"
    path = robomimic_file(out.with_name("image.hdf5"))
    assert CliRunner().invoke(app, ["ingest", str(path), "--out", str(out), "--instruction", "lift"]).exit_code == 0
    return out


@pytest.mark.parametrize("step, wrong", [(step, wrong) for step, wrong in WRONG if step in PUSHING])
def test_a_push_that_breaks_off_at_any_step_is_told_in_one_line_and_finishes_later(hub, dataset_folder, step, wrong, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    runner = CliRunner()
    assert runner.invoke(app, ["push-to-hub", str(dataset_folder), "me/data"]).exit_code == 0 or step != "delete tag"
    if step != "delete tag":
        hub.repositories.clear()
        hub.objects.clear()
    hub.fail = at(step, wrong)
    one_line(runner.invoke(app, ["push-to-hub", str(dataset_folder), "me/data"]))
    hub.fail = None
    assert runner.invoke(app, ["push-to-hub", str(dataset_folder), "me/data"]).exit_code == 0
    assert "data/chunk-000/file-000.parquet" in pushed_files(hub, "datasets/me/data")


@pytest.mark.parametrize("step, wrong", [(step, wrong) for step, wrong in WRONG if step in PULLING])
def test_a_download_that_breaks_off_at_any_step_is_told_in_one_line_and_finishes_later(hub, policy_folder, step, wrong, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    push(policy_folder, "me/policy")
    runner, hub.fail = CliRunner(), at(step, wrong)
    said = one_line(runner.invoke(app, ["pool", "me/policy"]))
    assert "write" not in said and "had from" not in said
    hub.fail = None
    np.testing.assert_array_equal(means(load_model("me/policy", "policy")), means(load_model(policy_folder, "policy")))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid", "nonsense"])
def test_no_network_is_told_in_one_line(policy_folder, tmp_path, endpoint):
    """Refused, no such host, no address at all: in a process of its own, as a user's."""
    told = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secretsecret",
    }
    code = "import time; time.sleep = lambda seconds: None; from worldenv_cli.cli import main; main()"
    for arguments in (["inspect", "me/data"], ["push-to-hub", str(policy_folder), "me/policy"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | told, capture_output=True, text=True, timeout=120)
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(said) == 1 and "network" in said[0], done.stderr
        assert "secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_missing_token_is_told(hub, policy_folder):
    hub.token = "hf_another"
    with pytest.raises(UserError, match="log in with `hf auth login` or set HF_TOKEN"):
        push(policy_folder, "me/policy")


def test_nothing_else_is_pushed_and_names_are_checked(hub, tmp_path, policy_folder):
    with pytest.raises(UserError, match="neither an artifact"):
        push(lerobot_folder(tmp_path / "foreign"), "me/x")
    for wrong in ("me", "me/a/b", "me/../x", "https://x/y"):
        with pytest.raises(UserError, match="expected a repository owner/name"):
            push(policy_folder, wrong)
    assert hub.requests == []


def test_references(tmp_path):
    assert resolve(tmp_path) == tmp_path == resolve(str(tmp_path))
    for wrong in (str(tmp_path / "none"), "none", "./runs/policy", "owner/name@", "owner/../name", tmp_path / "none"):
        with pytest.raises(UserError, match=r"does not exist: expected a folder or a Hub reference owner/name\[@revision\]"):
            resolve(wrong)


def test_offline_is_told(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="me/other: not"):
        resolve("me/other")
    assert hub.requests == []


def test_a_run_that_was_pushed_and_pulled_evaluates_to_the_same_numbers(hub, finished, mini, tmp_path):
    push(finished.folder, "me/run")
    pulled = tmp_path / "pulled"
    shutil.copytree(resolve("me/run"), pulled)
    shutil.rmtree(pulled / "eval")
    (pulled / "eval.json").unlink()
    run_stages(mini, pulled)
    before, after = (json.loads((folder / "eval.json").read_text()) for folder in (finished.folder, pulled))
    for mine, theirs in zip(after["arms"], before["arms"], strict=True):
        assert (mine["name"], mine["outcomes"]) == (theirs["name"], theirs["outcomes"])
    assert after["comparisons"] == before["comparisons"] and after["trust_table"] == before["trust_table"]
    assert [row["imagined"] for row in after["imagined_vs_real"]] == pytest.approx([row["imagined"] for row in before["imagined_vs_real"]], abs=1e-4)
    assert isinstance(Simulator.from_pretrained("me/run/simulator"), Simulator) and isinstance(
        Reflector.from_pretrained("me/run/reflector"), Reflector
    )
    assert isinstance(ChosenPolicy.from_pretrained("me/run/post-trained"), ChosenPolicy)
    assert (pulled / "sft" / "provenance.json").read_bytes() == (finished.folder / "sft" / "provenance.json").read_bytes()  # nothing was made again


def test_a_recipe_may_begin_from_a_dataset_on_the_hub(hub, finished, mini, tmp_path):
    push(finished.folder / "demonstrations", "me/demos")

    def begin(folder, **ingest):
        recipe = mini.model_copy(update={"ingest": mini.ingest.model_copy(update={"source": "me/demos"} | ingest)})
        run_stages(recipe, folder, ["ingest"])
        return read_dataset(folder / "demonstrations")

    for mine, theirs in zip(begin(tmp_path / "new"), read_dataset(finished.folder / "demonstrations"), strict=True):
        np.testing.assert_array_equal(mine.frames["front"], theirs.frames["front"])
        np.testing.assert_array_equal(mine.actions, theirs.actions)
    provenance = json.loads((tmp_path / "new/demonstrations/provenance.json").read_text())
    assert provenance["downloaded"] == ["me/demos", hub.repositories["datasets/me/demos"].refs["main"]]
    mini = mini.model_copy(update={"env": mini.env.model_copy(update={"tasks": {**mini.env.tasks, "door-open-v3": "open the door"}})})
    with pytest.raises(UserError, match="no episode of env.tasks.door-open-v3"):
        begin(tmp_path / "other")
    mini = mini.model_copy(update={"env": mini.env.model_copy(update={"action_repeat": 2})})
    with pytest.raises(UserError, match="ingest.source me/demos: control_hz is 20, but 40 in the recipe's env"):
        begin(tmp_path / "another")
