"""A published VLA checkpoint as a policy: which one, how it is seen by the recipe's environment, and what a run keeps of it.

Families are told by config.json: OpenVLA-OFT's own layout, lerobot's (pi0, SmolVLA) and transformers' (pi0). The checkpoint's weights are never
written again: a run keeps adapters, heads and statistics, and names the checkpoint that they belong to.
"""

from pathlib import Path

from ..atomic import read_json
from ..errors import UserError
from ..hub import REFERENCE, downloaded, resolve
from .config import VLAConfig

FAMILIES = ("openvla", "pi0", "smolvla")
CONVERTED = "*_checkpoint.safetensors"  # heads of OpenVLA-OFT, which the first loading writes beside their pickles


def checkpoint_folder(config: VLAConfig) -> Path:
    folder = resolve(config.model)
    if not folder.is_dir():
        raise UserError(f"policy.model {config.model!r}: no such folder; expected a checkpoint's folder or owner/name[@revision]")
    return folder


def pinned(config: VLAConfig) -> VLAConfig:
    """With the commit that a Hub reference stands for now, so that what was learned on it is not put on another one."""
    cached, named = downloaded(checkpoint_folder(config)), REFERENCE.fullmatch(config.model)
    if cached is None or named is None:
        return config
    return config.model_copy(update={"model": f"{cached[0]}{named['folder']}@{cached[1]}"})


def family(folder: Path) -> str:
    """ "openvla", "pi0" or "smolvla"."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json: expected the checkpoint of a VLA; check policy.model")
    config = read_json(path)
    found = config.get("type") or config.get("model_type")
    if found not in FAMILIES:
        remote = "; its own code (auto_map) is not run" if "auto_map" in config else ""
        raise UserError(f"{path}: a {found!r} model, expected one of {', '.join(FAMILIES)}{remote}")
    return found
