"""What people name as policy.model: other kinds of policies, adapters alone, and checkpoints whose name tells more than their files."""

import json

import numpy as np
import pytest
from tiny_openvla import tiny_statistics, write_openvla
from tiny_pi0 import write_pi0
from tiny_smolvla import write_smolvla

from worldenv_cli.atomic import read_json, read_tensors, write_json, write_tensors
from worldenv_cli.errors import UserError
from worldenv_cli.policies.config import LoraSettings, VLAConfig
from worldenv_cli.policies.kinds import family
from worldenv_cli.policies.load import check_checkpoint, load_vla
from worldenv_cli.policies.openvla.pictures import check_pictures, named_pictures
from worldenv_cli.policies.shards import shard_paths

SHARED = {"statistics": "dataset", "resolution": 32, "gripper": "as recorded", "max_tokens": 128, "lora": LoraSettings(rank=4, alpha=4)}
RUN = "openvla-7b+libero_goal_no_noops+b8--image_aug--parallel_dec--8_acts_chunk--continuous_acts--L1_regression"
NOT_SAID = ("mend", "download it again", "download the", "take the file from")  # of what is whole and well-formed


def told(folder, message, **settings):
    for load in (check_checkpoint, load_vla):
        with pytest.raises(UserError, match=message) as error:
            load(VLAConfig(model=str(folder), **SHARED | settings))
        text = str(error.value)
        assert "\n" not in text and not any(words in text for words in NOT_SAID), text


@pytest.mark.parametrize("kind", ["pi05", "pi0_fast", "act", "diffusion", "groot", "xvla"])
def test_other_policies_of_lerobot(kind, tmp_path):
    write_json(tmp_path / "config.json", {"type": kind, "chunk_size": 50})
    told(tmp_path, f"a '{kind}' policy, which cannot be used here: policy.model takes OpenVLA-OFT, pi0 or SmolVLA")


def test_other_models(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "llava", "auto_map": {"AutoModel": "x.Y"}})
    told(tmp_path, "a 'llava' policy; it brings code of its own \\(auto_map\\), which is never run, which cannot be used")
    write_json(tmp_path / "config.json", {"kind": "policy", "worldenv_version": "0.2.0", "policy": {}})
    told(tmp_path, "is a policy that worldenv made")
    (tmp_path / "config.json").unlink()
    told(tmp_path, "holds no config.json: expected the checkpoint of a VLA")
    (tmp_path / "params").mkdir()
    told(tmp_path, "openpi's checkpoint in JAX's format")
    write_smolvla(tmp_path / "checkpoints" / "005000" / "pretrained_model")
    told(tmp_path, "name the folder that does, such as .*005000/pretrained_model")


@pytest.mark.parametrize("features", [True, False])
def test_pi0_of_before_lerobot_0_4(features, tmp_path):
    folder = write_pi0(tmp_path / "model")
    config = read_json(folder / "config.json")
    del config["paligemma_variant"], config["action_expert_variant"]
    write_json(folder / "config.json", config | ({} if features else {"input_features": {}, "output_features": {}}))
    told(folder, "a pi0 of before lerobot 0.4, .*begin from lerobot/pi0_base, or convert it with lerobot 0.4: `python -m lerobot.processor.migrate")


def test_adapters_without_their_base(tmp_path):
    """OpenVLA-OFT's finetune.py with merge_lora_during_training=False leaves lora_adapter/, lerobot's and peft's own the adapter alone."""
    folder = write_openvla(tmp_path / "oft", side=56)
    (folder / "lora_adapter").mkdir()
    write_json(folder / "lora_adapter" / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "openvla/openvla-7b", "r": 2})
    for file in ("config.json", *(path.name for path in folder.glob("model*"))):
        (folder / file).unlink()
    told(
        folder, "an adapter \\(lora_adapter/\\) without its base model's weights: merge it into 'openvla/openvla-7b' .*or copy .* policy.adapter=true"
    )
    folder = write_smolvla(tmp_path / "peft")
    (folder / "model.safetensors").unlink()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "lerobot/smolvla_base"})
    told(folder, "an adapter \\(LoRA\\) without its base model's weights: put it on 'lerobot/smolvla_base' with peft")
    (folder / "config.json").unlink()
    told(folder, "put it on 'lerobot/smolvla_base' with peft")


def test_why_weights_are_not_there(tmp_path):
    folder = write_smolvla(tmp_path / "model")
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n")
    told(folder, "only Git LFS's pointer to the weights; run `git lfs pull`")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    told(folder, "there are pickled weights, which are not loaded: save them as safetensors")
    (folder / "pytorch_model.bin").unlink()
    told(folder, "model.safetensors missing, expected the weights there; the folder is not complete")
    with pytest.raises(UserError):
        shard_paths(folder)


# How many pictures


@pytest.mark.parametrize(
    "name, pictures",
    [
        (f"{RUN}--3rd_person_img--wrist_img--proprio_state", 2),
        (f"{RUN}--3rd_person_img--wrist_img--proprio_state--150000_chkpt", 2),
        (f"{RUN}--3rd_person_img--proprio_state", 1),
        (f"{RUN}--25_acts_chunk--3rd_person_img--left_right_wrist_imgs--proprio_state--film", 3),
        ("openvla-7b-oft-finetuned-libero-spatial-object-goal-10", 2),
        ("Openvla-oft-SFT-libero-spatial-traj1", 1),
        (RUN, None),
        ("my-openvla", None),
    ],
)
def test_the_name_tells_how_many_pictures(name, pictures, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "link").symlink_to(name)
    for model in (folder, tmp_path / "link"):
        config = VLAConfig(model=str(model), **SHARED)
        named = named_pictures(config, model)
        assert (named and named[0]) == pictures
        for shown in (1, 2, 3):
            shown_config = config.model_copy(update={"cameras": ("a", "b", "c")[:shown]})
            if pictures in (None, shown):
                assert (check_pictures(shown_config, model) is None) == (pictures is not None)
            else:
                with pytest.raises(
                    UserError, match=f"trained with {pictures} pictures .*found {shown} in policy.cameras: set policy.cameras and env.cam"
                ):
                    check_pictures(shown_config, model)


def test_the_repository_tells_how_many_pictures(tmp_path):
    folder = tmp_path / "models--moojink--openvla-7b-oft-finetuned-libero-goal" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    config = VLAConfig(model=f"moojink/openvla-7b-oft-finetuned-libero-goal@{'a' * 40}", **SHARED)
    assert named_pictures(config, folder)[0] == named_pictures(config.model_copy(update={"model": str(folder)}), folder)[0] == 2


def test_two_pictures_are_refused_or_doubted(tmp_path, capsys):
    folder = write_openvla(tmp_path / f"{RUN}--3rd_person_img--wrist_img--proprio_state", images=2, proprio_size=4, side=56)
    told(folder, "trained with 2 pictures \\(its name tells")
    folder.rename(tmp_path / "renamed")
    check_checkpoint(VLAConfig(model=str(tmp_path / "renamed"), **SHARED))
    said = "".join(capsys.readouterr())
    assert "shown 1 picture (policy.cameras), for no file says how many" in said and "policy.cameras=[image, wrist_image]" in said
    load_vla(VLAConfig(model=str(tmp_path / "renamed"), **SHARED | {"cameras": ("front", "wrist")}), weights=False)


# Whose statistics


def test_statistics_of_several_suites(tmp_path):
    numbers = np.random.default_rng(0)
    known = {f"libero_{suite}_no_noops": tiny_statistics(numbers, 4, None) for suite in ("goal", "object")} | {
        "bridge": tiny_statistics(numbers, 4, None)
    }
    folder = write_openvla(tmp_path / "model", side=56, statistics=known)
    own = {"statistics": "checkpoint"}
    told(
        folder,
        "statistics of 3 data sets, and none is chosen; set policy.unnorm_key to one of bridge, libero_goal_no_noops, libero_object_no_noops",
        **own,
    )
    told(folder, "no statistics of 'libero_10'; set policy.unnorm_key to one of", unnorm_key="libero_10", **own)
    for key in ("libero_object", "libero_object_no_noops", "bridge"):
        load_vla(VLAConfig(model=str(folder), **SHARED | own | {"unnorm_key": key}), weights=False)
    load_vla(VLAConfig(model=str(folder), **SHARED), weights=False)  # the demonstrations' own: none is asked for


def test_statistics_decide_the_sizes(tmp_path):
    """Seven official SmolVLA checkpoints declare the base model's 6 numbers of a state; their statistics hold what they were trained with."""
    folder = write_smolvla(tmp_path / "model", state_size=8, action_size=7)
    config = read_json(folder / "config.json")
    config["input_features"]["observation.state"]["shape"] = config["output_features"]["action"]["shape"] = [6]
    write_json(folder / "config.json", config)
    sizes = {"state_size": 8, "action_size": 7}
    for statistics in ("checkpoint", "dataset"):
        policy = load_vla(VLAConfig(model=str(folder), **SHARED | sizes | {"statistics": statistics}))
        assert (len(policy.state_normaliser.scale), len(policy.action_normaliser.scale)) == (8, 7)
    told(folder, "statistics of another robot, 8 state and 7 action numbers, expected 6 and 6", state_size=6, action_size=6, statistics="checkpoint")


def test_a_base_models_statistics_are_not_taken_for_its_own(tmp_path):
    folder = write_smolvla(tmp_path / "model")
    for path in folder.glob("policy_p*.safetensors"):
        write_tensors(path, {f"{name}.buffer.{key}": tensor for key, tensor in read_tensors(path).items() for name in ("so100", "so100-red")})
    told(folder, "this base model holds only those of so100, so100-red .*set policy.statistics=dataset", statistics="checkpoint")
    for path in folder.glob("policy_p*.safetensors"):
        path.unlink()  # not wanted
    load_vla(VLAConfig(model=str(folder), **SHARED))


def test_cameras_of_every_name_in_their_order(tmp_path):
    folder = write_smolvla(tmp_path / "model", cameras=("wrist", "front"))
    config = read_json(folder / "config.json")
    picture = {"type": "VISUAL", "shape": [3, 64, 64]}
    features = {"observation.image": picture, "observation.state": config["input_features"]["observation.state"]}
    features |= {"observation.images.image": picture, "observation.images.empty_camera_0": picture, "observation.image2": picture}
    write_json(folder / "config.json", config | {"input_features": features})
    policy = load_vla(VLAConfig(model=str(folder), **SHARED | {"cameras": ("a", "b", "c")}))
    assert policy.checkpoint.image_keys == ["image", "observation.images.image", "image2"]


def test_fewer_cameras_than_trained_with_are_said(tmp_path, capsys):
    folder = write_smolvla(tmp_path / "model", cameras=("front", "wrist"))
    check_checkpoint(VLAConfig(model=str(folder), **SHARED))
    assert "takes the pictures front, wrist, is shown front (policy.cameras)" in "".join(capsys.readouterr())


def test_relative_actions_of_lerobot_0_6(tmp_path):
    """The steps are in every pi0 that it saves; switched off they change nothing."""
    folder = write_pi0(tmp_path / "model")
    for switched_on in (False, True):
        for name, step in (("policy_preprocessor.json", "relative_actions_processor"), ("policy_postprocessor.json", "absolute_actions_processor")):
            content = read_json(folder / name)
            steps = [one for one in content["steps"] if one["registry_name"] != step]
            write_json(folder / name, content | {"steps": [*steps, {"registry_name": step, "config": {"enabled": switched_on}}]})
        if switched_on:
            told(folder, "its steps relative_actions_processor are switched on and not supported", statistics="checkpoint")
        else:
            load_vla(VLAConfig(model=str(folder), **SHARED | {"statistics": "checkpoint"}))


def test_a_tokenizer_of_another_model(tmp_path):
    folder = write_openvla(tmp_path / "model", side=56)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {word: 10**6 + number for word, number in content["model"]["vocab"].items() if len(word) == 1 and word.isalpha()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its tokenizer gives words that the model does not have"):
        load_vla(VLAConfig(model=str(folder), **SHARED))


def test_families(tmp_path):
    for write, kind in ((write_openvla, "openvla"), (write_pi0, "pi0"), (write_smolvla, "smolvla")):
        assert family(write(tmp_path / kind)) == kind
    assert family(write_pi0(tmp_path / "transformers", layout="transformers")) == "pi0"
