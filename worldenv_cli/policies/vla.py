"""A published VLA checkpoint as a policy: which one, how it is seen by the recipe's environment, and what a run keeps of it.

The checkpoint's weights are never written again: a run keeps adapters, heads and statistics, and names the checkpoint that they belong to.
"""

from pathlib import Path

from ..errors import UserError
from ..hub import REFERENCE, downloaded, resolve
from .config import VLAConfig

CONVERTED = "*_checkpoint.safetensors"  # heads of OpenVLA-OFT, which the first loading writes beside their pickles
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "policy_p*.safetensors")  # everything but weights


def checkpoint_folder(config: VLAConfig, weights: bool = True) -> Path:
    """On this machine; without `weights` only the small files of a Hub repository are downloaded."""
    folder = resolve(config.model, patterns=None if weights else SMALL)
    if not folder.is_dir():
        raise UserError(f"policy.model {config.model!r}: no such folder; expected a checkpoint's folder or owner/name[@revision]")
    return folder


def is_on_the_hub(config: VLAConfig) -> bool:
    return not Path(config.model).exists() and REFERENCE.fullmatch(config.model) is not None


def pinned(config: VLAConfig) -> VLAConfig:
    """With the commit that a Hub reference stands for now, so that what was learned on it is not put on another one.

    A folder in the Hub's cache, where a policy brought its own checkpoint, is named as what was downloaded: nobody else has that path.
    """
    folder = checkpoint_folder(config)
    cached = downloaded(folder)
    if cached is None:
        return config
    name, commit = cached
    inner = folder.absolute().as_posix().partition(f"/snapshots/{commit}")[2]
    return config.model_copy(update={"model": f"{name}{inner.rstrip('/')}@{commit}"})
