"""Policies that leave: merged weights in their own project's layout and in recorded units, peft's adapters, and cards whose snippets run."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from test_hub import hub, pushed_files  # noqa: F401 - a fixture
from test_vlas import SHARED, nudged, observation
from tiny_openvla import write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla

from worldenv_cli.atomic import read_json, read_tensors, write_json
from worldenv_cli.data.actions import ActionScale
from worldenv_cli.errors import UserError
from worldenv_cli.hub import resolve
from worldenv_cli.models import load_model, save_model
from worldenv_cli.policies.chosen import ChosenPolicy
from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.load import load_vla
from worldenv_cli.policies.lora import AdaptedPolicy
from worldenv_cli.policies.policy import Policy
from worldenv_cli.policies.vla import VLAConfig
from worldenv_cli.push import push

FAMILIES = {
    "pi0": (write_pi0, {}, "pi0", "lerobot"),
    "pi0 of transformers": (write_pi0, {"layout": "transformers"}, "pi0", "transformers"),
    "smolvla": (write_smolvla, {}, "smolvla", "lerobot"),
    "smolvla by extremes": (write_smolvla, {"mode": "MIN_MAX"}, "smolvla", "lerobot"),
    "smolvla as it is": (write_smolvla, {"mode": "IDENTITY"}, "smolvla", "lerobot"),
    "openvla": (write_openvla, {"proprio_size": 4, "side": 56, "dtype": torch.float32}, "openvla", "transformers"),
}
SCALE = ActionScale(np.array([1.0, -2.0, 0.0, 3.0]), np.array([0.5, 4.0, 1.0, 10.0]))


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def tuned_policy(folder, write, sizes, seed=1):
    made = load_vla(VLAConfig(model=str(write(folder, **sizes)), **SHARED))
    rng = np.random.default_rng(0)
    made.adopt(rng.standard_normal((50, 4)).astype(np.float32), rng.uniform(-1, 1, (50, 4)).astype(np.float32))
    return nudged(made, seed)


def run_with(folder, action):
    """A run's folder as far as a push reads it."""
    (folder / "demonstrations" / "meta").mkdir(parents=True)
    write_json(folder / "demonstrations" / "meta" / "worldenv.json", {"action": action})
    (folder / "recipe.yaml").write_text("name: x\n")
    return folder


def saved(folder, policy, card="# A policy"):
    folder.mkdir(parents=True)
    save_model(folder, "policy", policy, {"seed": 0}, card)
    return folder


def answer(policy, obs=None):
    return policy.act(obs or observation(), explore=False, generator=torch.Generator().manual_seed(0)).chunk


def test_a_merged_repository_is_a_checkpoint_of_its_own_project_in_recorded_units(hub, tmp_path, family):  # noqa: F811
    """The same repository is ours, in the units that the policy plays, and theirs, in those of the recording."""
    write, sizes, kind, library = family
    run = run_with(tmp_path / "run", {"meaning": "x", **SCALE.description()})
    tuned = tuned_policy(tmp_path / "base", write, sizes)
    wanted = answer(tuned)
    saved(run / "post-trained", tuned)
    push(run / "post-trained", "me/whole", merged=True, base_model="lab/base", datasets=["me/data"], license="mit")
    (tmp_path / "base").rename(tmp_path / "gone")
    ours = load_model("me/whole", "policy")
    assert not isinstance(ours, AdaptedPolicy)
    np.testing.assert_allclose(answer(ours), wanted, atol=2e-3)
    place = resolve("me/whole")
    config = read_json(place / "config.json")
    assert config.get("type", config.get("model_type")) == kind and "worldenv_version" not in config
    theirs = load_vla(VLAConfig(model=str(place), **SHARED | {"statistics": "checkpoint"}))
    np.testing.assert_allclose(answer(theirs), SCALE.to_recorded(answer(ours)), atol=2e-4)
    card = pushed_files(hub, "models/me/whole")["README.md"].decode()
    told = ("base_model: lab/base\n", "- me/data\n", "license: mit\n", "- arxiv:2509.24948\n", f"library_name: {library}\n", "# A policy")
    assert all(text in card for text in told), card
    assert not any(name.endswith(".pt") for name in pushed_files(hub, "models/me/whole"))


def test_units_that_need_no_change_keep_the_statistics(tmp_path):
    from worldenv_cli.merged import write_merged

    made = load_vla(VLAConfig(model=str(write_smolvla(tmp_path / "base")), **SHARED | {"statistics": "checkpoint"}))
    write_merged(tmp_path / "out", nudged(made, 1), {}, "# card")
    for path in (tmp_path / "base").glob("policy_*.safetensors"):
        before, after = read_tensors(path), read_tensors(tmp_path / "out" / path.name)
        assert all(torch.equal(before[name], after[name]) for name in after if name.endswith((".mean", ".std")))


def test_a_checkpoint_of_before_lerobot_0_4_becomes_one_of_today(tmp_path):
    """Its statistics lay among the weights."""
    from safetensors.torch import save_file

    from worldenv_cli.merged import write_merged

    base = write_smolvla(tmp_path / "base")
    before = next(base.glob("policy_preprocessor_*.safetensors"))
    statistics = read_tensors(before)
    old = {f"normalize_inputs.buffer_observation_state.{name}": statistics[f"observation.state.{name}"] for name in ("mean", "std")}
    old |= {f"unnormalize_outputs.buffer_action.{name}": statistics[f"action.{name}"] for name in ("mean", "std")}
    save_file({name: tensor.clone() for name, tensor in (read_tensors(base / "model.safetensors") | old).items()}, base / "model.safetensors")
    for path in base.glob("policy_*"):
        path.unlink()
    tuned = nudged(load_vla(VLAConfig(model=str(base), **SHARED | {"statistics": "checkpoint"})), 1)
    wanted = answer(tuned)
    write_merged(tmp_path / "out", tuned, {}, "# card", SCALE)
    theirs = load_vla(VLAConfig(model=str(tmp_path / "out"), shifted_patches=False, **SHARED | {"statistics": "checkpoint"}))
    np.testing.assert_allclose(answer(theirs), SCALE.to_recorded(wanted), atol=2e-4)
    np.testing.assert_allclose(answer(load_model(tmp_path / "out", "policy")), wanted, atol=2e-4)
    assert not any("normalize" in name for name in read_tensors(tmp_path / "out" / "model.safetensors"))


def test_names_in_a_checkpoint_that_lead_out_of_it_are_not_written_to(tmp_path):
    """A switched-off step whose file is somewhere else, and a link: neither written, nor copied."""
    from worldenv_cli.merged import write_merged

    tuned, outside = tuned_policy(tmp_path / "base", write_smolvla, {}), tmp_path / "precious.safetensors"
    outside.write_text("mine")
    pipeline = tmp_path / "base" / "policy_preprocessor.json"
    content = read_json(pipeline)
    step = next(step for step in content["steps"] if step["registry_name"] == "normalizer_processor")
    write_json(pipeline, content | {"steps": [*content["steps"], step | {"state_file": str(outside), "config": step["config"] | {"enabled": False}}]})
    write_merged(tmp_path / "out", copy.deepcopy(tuned), {}, "# card")
    write_json(pipeline, content | {"steps": [{**one, "state_file": str(outside)} if one is step else one for one in content["steps"]]})
    with pytest.raises(UserError, match="policy_preprocessor.json: names .*precious"):
        write_merged(tmp_path / "again", copy.deepcopy(tuned), {}, "# card")
    write_json(pipeline, content)
    (tmp_path / "base" / "notes.json").symlink_to(outside)
    with pytest.raises(UserError, match="notes.json is a link to .*precious"):
        write_merged(tmp_path / "third", tuned, {}, "# card")
    assert outside.read_text() == "mine"


# Several members


@pytest.fixture
def compact(mini):
    torch.manual_seed(0)
    return CompactPolicy(mini.policy)


def test_one_member_is_one_checkpoint(hub, compact, tmp_path):  # noqa: F811
    """The final policy can leave: every task chose the tuned member, and nothing else is kept."""
    tuned = nudged(copy.deepcopy(compact), 1)
    size = compact.config.resolution
    obs = observation()
    obs.images["front"] = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    wanted = answer(tuned, obs)
    policy = ChosenPolicy({"start": compact, "tuned": tuned}, {"push it": "tuned", "lift the lid": "tuned"}, "tuned")
    assert list(policy.members) == ["tuned"]
    folder = saved(run_with(tmp_path / "run", {}) / "post-trained", policy)
    assert not any("start" in name for name in read_tensors(folder / "model.safetensors"))
    push(folder, "me/final", merged=True)
    final = Policy.from_pretrained("me/final")
    assert type(final) is CompactPolicy
    np.testing.assert_allclose(answer(final, obs), wanted, atol=1e-5)


def test_several_members_are_written_each_and_the_card_says_which_is_for_what(hub, tmp_path):  # noqa: F811
    write, sizes, *_ = FAMILIES["pi0"]
    members = {name: tuned_policy(tmp_path / name, write, sizes, seed) for seed, name in ((1, "start"), (2, "tuned"))}
    policy = ChosenPolicy(members, {"push it": "start", "lift the lid": "tuned"}, "tuned")
    obs = observation()
    wanted = {name: answer(member, obs) for name, member in members.items()}
    folder = saved(run_with(tmp_path / "run", {}) / "post-trained", policy)
    push(folder, "me/two", merged=True, base_model="lab/pi0")
    both = load_model("me/two", "policy")
    assert isinstance(both, ChosenPolicy) and both.choice == policy.choice and both.default == "tuned"
    for name in members:
        np.testing.assert_allclose(answer(both.members[name], obs), wanted[name], atol=2e-3)
        np.testing.assert_allclose(answer(load_model(f"me/two/members/{name}", "policy"), obs), wanted[name], atol=2e-3)
        assert read_json(resolve("me/two") / "members" / name / "config.json")["type"] == "pi0"
    card = pushed_files(hub, "models/me/two")["README.md"].decode()
    assert "| push it | `members/start` |" in card and "| lift the lid | `members/tuned` |" in card and "base_model: lab/pi0\n" in card
    assert "library_name: worldenv\n" in card


@pytest.mark.parametrize("choice, default", [({"a": "none"}, "tuned"), ({"a": "tuned"}, "none"), ({}, None), ({"a": ["tuned"]}, "tuned")])
def test_a_choice_of_what_is_not_there_is_refused(compact, tmp_path, choice, default):
    folder = saved(tmp_path / "policy", ChosenPolicy({"tuned": compact}, {"a": "tuned"}, "tuned"))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"choice": choice, "default": default})
    (folder / "provenance.json").unlink()
    with pytest.raises(UserError, match="choice"):
        load_model(folder, "policy")


def test_members_folders_stay_inside(compact, tmp_path):
    folder = saved(tmp_path / "policy", ChosenPolicy({"tuned": compact}, {"a": "tuned"}, "tuned"))
    config = read_json(folder / "config.json")
    for name in ("../elsewhere", str(tmp_path)):
        write_json(folder / "config.json", config | {"members": {"tuned": name}})
        (folder / "provenance.json").unlink(missing_ok=True)
        with pytest.raises(UserError, match="expected a file inside its own folder"):
            load_model(folder, "policy")


# peft


def test_adapters_go_up_in_pefts_layout_too(hub, compact, tmp_path):  # noqa: F811
    """peft itself puts them on the policy that they were made for."""
    from peft import PeftModel

    folder = saved(tmp_path / "tuned", nudged(copy.deepcopy(compact), 1))
    push(folder, "me/tuned")
    tuned = load_model("me/tuned", "policy")
    size, obs = compact.config.resolution, observation()
    obs.images["front"] = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    theirs = PeftModel.from_pretrained(compact, str(resolve("me/tuned") / "adapters" / "0"))
    np.testing.assert_allclose(answer(theirs.base_model.model, obs), answer(tuned, obs), atol=1e-6)
    assert np.abs(answer(theirs.base_model.model, obs) - answer(load_model(folder, "policy").plain(), obs)).max() < 1e-5


def test_adapters_upon_adapters_go_up_in_their_order(hub, tmp_path):  # noqa: F811
    from peft import PeftModel

    write, sizes, *_ = FAMILIES["pi0"]
    twice = nudged(tuned_policy(tmp_path / "base", write, sizes).merged(), 2)
    wanted = answer(twice)
    push(saved(tmp_path / "twice", twice), "me/twice", base_model="lab/pi0")
    place, policy = resolve("me/twice"), load_vla(twice.config)
    policy.adopt(*(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32) for _ in range(2)))
    for name in ("state_normaliser", "action_normaliser"):
        getattr(policy, name).load_state_dict(getattr(twice.base(), name).state_dict())
    for number in (0, 1):
        policy.config = policy.config if isinstance(policy.config, dict) else policy.config.model_dump()
        policy = PeftModel.from_pretrained(policy, str(place / "adapters" / str(number))).merge_and_unload()
    policy.config = twice.config
    np.testing.assert_allclose(answer(policy), wanted, atol=1e-4)
    assert read_json(place / "config.json")["policy"]["model"] == "lab/pi0"


# Cards and what travels


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_snippet_of_a_pushed_card_runs_as_it_stands(hub, finished):  # noqa: F811
    push(finished.folder, "me/run", datasets=["me/data"])
    for name in ("README.md", "sft/README.md", "post-trained/README.md", "simulator/README.md", "reflector/README.md", "rounds/1/tuned/README.md"):
        text = pushed_files(hub, "models/me/run")[name].decode()
        assert "owner/name" not in text
        for code in snippets(text):
            names = {}
            exec(compile(code, name, "exec"), names)
            if "chunk" in code:
                assert names["chunk"].shape[0] == 1 and np.isfinite(names["chunk"]).all()
        assert snippets(text), name
    push(finished.folder / "demonstrations", "me/demos")
    files = pushed_files(hub, "datasets/me/demos")
    card = files["README.md"].decode()
    exec(compile(snippets(card)[0], "card", "exec"), {})
    assert "size_categories:\n- n<1K\n" in card and "license: unknown\n" in card and "- LeRobot\n" in card


def test_a_card_carries_the_measured_success(hub, finished):  # noqa: F811
    from huggingface_hub import ModelCard

    push(finished.folder / "post-trained", "me/final", merged=True)
    card = ModelCard(pushed_files(hub, "models/me/final")["README.md"].decode())
    arm = next(arm for arm in json.loads((finished.folder / "eval.json").read_text())["arms"] if arm["name"] == "post-trained")
    results = {result.dataset_config: result for result in card.data.eval_results}
    assert results.keys() == {"all tasks", *arm["tasks"]}
    whole = results["all tasks"]
    assert whole.metric_value == round(arm["pooled"]["successes"] / arm["pooled"]["n"], 4) and whole.metric_args["n"] == arm["pooled"]["n"]
    assert "arxiv:2509.24948" in card.data.tags and card.data.license == "unknown"
    outcomes = finished.folder / "eval/post-trained/outcomes.json"
    written = outcomes.read_text()
    outcomes.write_text(written.replace("false", "true") + " ")
    try:
        with pytest.raises(UserError, match="outcomes.json does not match its provenance"):
            push(finished.folder / "post-trained", "me/better", merged=True)
    finally:
        outcomes.write_text(written)


def test_no_path_of_this_machine_travels_and_all_still_belongs_together(hub, compact, tmp_path):  # noqa: F811
    from worldenv_cli.artifacts import content_hash, make_provenance
    from worldenv_cli.provenance import verify

    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(f"name: x\ningest:\n  source: {tmp_path}/my recordings/lift.hdf5\nfolder: {run}\n")
    first, second = run / "sft", run / "tuned"
    for folder, inputs in ((first, {}), (second, {"sft": None})):
        folder.mkdir()
        write_json(folder / "note.json", {"read": f"took {tmp_path}/other/lift.hdf5: 3 episodes", "home": str(tmp_path)})
        inputs = {name: content_hash(run / name) for name in inputs}
        save_model(folder, "policy", compact, make_provenance({"source": f"{tmp_path}/x.hdf5"}, inputs, 0), f"# From {tmp_path}/x.hdf5")
    push(run, "me/run")
    for name, content in pushed_files(hub, "models/me/run").items():
        assert str(tmp_path).encode() not in content, name
    place = resolve("me/run")
    assert verify(place / "sft") and verify(place / "tuned")
    assert read_json(place / "tuned" / "provenance.json")["inputs"] == {"sft": content_hash(place / "sft")}
    assert str(tmp_path) in (run / "recipe.yaml").read_text()


def test_an_adapter_of_a_checkpoint_that_nobody_else_has_is_not_pushed(hub, tmp_path):  # noqa: F811
    write, sizes, *_ = FAMILIES["pi0"]
    folder = saved(tmp_path / "tuned", tuned_policy(tmp_path / "base", write, sizes))
    with pytest.raises(UserError, match="on this machine alone: name where it is on the Hub with --base-model OWNER/NAME, or .*--merged"):
        push(folder, "me/tuned")
    assert hub.requests == []


def test_the_license_of_the_base_model_is_kept(hub, tmp_path):  # noqa: F811
    tuned = tuned_policy(tmp_path / "base", write_pi0, {})
    (tmp_path / "base" / "README.md").write_text("---\nlicense: gemma\n---\n# Base\n")
    push(saved(tmp_path / "run" / "tuned", tuned), "me/tuned", base_model="lab/base")
    assert "license: gemma\n" in pushed_files(hub, "models/me/tuned")["README.md"].decode()


@pytest.mark.parametrize("name, content, told", [("README.md", b"caf\xe9", "not UTF-8"), ("recipe.yaml", b"name: [x\n", "recipe.yaml is damaged")])
def test_texts_that_nobody_can_read_are_told(hub, tmp_path, name, content, told):  # noqa: F811
    run = run_with(tmp_path / "run", {})
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        push(run, "me/run")
    assert "\n" not in str(error.value) and hub.requests == []


def test_only_what_belongs_travels_and_links_out_are_refused(hub, compact, tmp_path, capsys):  # noqa: F811
    folder, key = saved(tmp_path / "policy", compact), tmp_path / "id_rsa"
    key.write_text("private")
    (folder / "notes.txt").write_text("mine")
    push(folder, "me/policy")
    assert "notes.txt" in capsys.readouterr().out and "notes.txt" not in pushed_files(hub, "models/me/policy")
    requests = len(hub.requests)
    for name in ("notes.json", "adapters", "model.safetensors"):
        if (folder / name).exists():
            (folder / name).unlink()
        (folder / name).symlink_to(key)
        with pytest.raises(UserError, match="link|leads out"):
            push(folder, "me/policy")
        (folder / name).unlink()
    assert len(hub.requests) == requests
