"""Which kind of policy lies in a folder, told by its small files, and what to do with the kinds that cannot be used."""

from pathlib import Path

from ..atomic import read_json
from ..confine import inside
from ..errors import UserError

FAMILIES = ("openvla", "pi0", "smolvla")
USABLE = "policy.model takes OpenVLA-OFT, pi0 or SmolVLA, such as lerobot/smolvla_base"


def family(folder: Path) -> str:
    """ "openvla", "pi0" or "smolvla". Raises UserError for every other kind, by its name."""
    path = inside(folder, "config.json", folder)
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: {without_config(folder)}")
    config = read_json(path)
    kind = config.get("type") or config.get("model_type")
    if kind in FAMILIES:
        if kind == "pi0" and "model_type" not in config and "paligemma_variant" not in config:
            raise UserError(f"{folder}: {OLD_PI0}")
        return kind
    if "kind" in config and "worldenv_version" in config:
        raise UserError(f"{folder} is a {config['kind']} that worldenv made: expected the VLA's own checkpoint, which its config.json names")
    if kind is None and "_class_name" in config:
        kind = config["_class_name"]
    remote = "; it brings code of its own (auto_map), which is never run" if "auto_map" in config else ""
    raise UserError(f"{path}: a {kind!r} policy{remote}, which cannot be used here: {USABLE}")


OLD_PI0 = (
    "a pi0 of before lerobot 0.4, which was another model with other names of its weights: begin from lerobot/pi0_base, or convert it with lerobot "
    "0.4: `python -m lerobot.processor.migrate_policy_normalization --pretrained-path NAME`"
)


def adapter_without_base(folder: Path) -> str | None:
    """What to do about a LoRA adapter whose base model is missing; None where there is no adapter."""
    for place in (folder / "lora_adapter", folder):
        path = inside(folder, f"{place.relative_to(folder).as_posix()}/adapter_config.json", folder)
        if path.is_file():
            base = read_json(path).get("base_model_name_or_path")
            break
    else:
        return None
    base = f"{base!r:.200}" if isinstance(base, str) and base else "its base model"
    if place == folder:
        return (
            f"it is an adapter (LoRA) without its base model's weights: put it on {base} with peft, `merge_and_unload()`, and name the folder of that"
        )
    return (
        f"it is an adapter (lora_adapter/) without its base model's weights: merge it into {base} by OpenVLA-OFT's "
        "vla-scripts/merge_lora_weights_and_save.py, or copy config.json and weights of the base beside it and set policy.adapter=true"
    )


def without_config(folder: Path) -> str:
    adapter = adapter_without_base(folder)
    if adapter:
        return adapter
    deeper = sorted(path.parent for before in ("", "*/", "checkpoints/*/") for path in folder.glob(f"{before}pretrained_model/config.json"))
    if deeper:
        return f"name the folder that does, such as {deeper[-1]}"
    if (folder / "params").is_dir() or (folder / "_CHECKPOINT_METADATA").is_file():
        return f"it looks like openpi's checkpoint in JAX's format, which is not read: {USABLE}"
    return f"expected the checkpoint of a VLA; {USABLE}"
