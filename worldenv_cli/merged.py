"""Policies for readers who have nothing else: adapters in the weights, a VLA's checkpoint in its own layout at the root of the repository.

pi0, SmolVLA, OpenVLA   what their own projects read at the root, and the artifact of this project in worldenv/
compact policies        the artifact of this project
several members         members/<name>/ with one of these each, and which is for which instruction in config.json
"""

from dataclasses import dataclass
from pathlib import Path

from .artifacts import write_artifact
from .atomic import read_json
from .data.actions import ActionScale
from .errors import UserError
from .models import INNER, OWN_CHECKPOINT, save_model
from .policies.chosen import ChosenPolicy
from .policies.kinds import family
from .policies.lora import AdaptedPolicy, learned_tensors
from .policies.policy import Policy
from .policies.vla import VLAConfig, checkpoint_folder
from .provenance import CARD

MEMBERS = "members"


@dataclass(frozen=True)
class Merged:
    """What was written: the family of a checkpoint that other projects read, and which member is for which instruction."""

    family: str | None  # "pi0", "smolvla", "openvla"; None for a compact policy
    library: str | None  # that reads it: "lerobot" or "transformers"
    cameras: tuple[str, ...]
    choice: dict[str, str]  # {instruction: member}; empty where there is one policy for all


def write_merged(folder: Path, policy: Policy, provenance: dict, card: str, scale: ActionScale | None = None) -> Merged:
    """Write `policy` into `folder`; its adapters are used up. `scale`: of the dataset that it learned from, for readers in recorded units.

    Raises UserError where there is nothing to merge, and what write_checkpoint does.
    """
    if not isinstance(policy, ChosenPolicy):
        if not isinstance(policy, AdaptedPolicy):
            raise UserError(f"a {type(policy).__name__} has no adapter to merge; push it without --merged")
        return _write(folder, policy, provenance, card, scale)
    if len(policy.members) == 1:
        return _write(folder, next(iter(policy.members.values())), provenance, card, scale)
    for name, member in policy.members.items():
        about = f"# Policy {name}\n\nOne of several: `README.md` of the repository says for which instructions."
        written = _write(folder / MEMBERS / name, member, provenance, about, scale)
    places = {name: f"{MEMBERS}/{name}" for name in policy.members}
    write_artifact(folder, "policy", {"members": places, "choice": policy.choice, "default": policy.default}, None, provenance, card)
    return Merged(written.family, written.library, written.cameras, policy.choice)


def _write(folder: Path, policy: Policy, provenance: dict, card: str, scale: ActionScale | None) -> Merged:
    from .policies.export import write_checkpoint

    plain, cameras = policy.plain(), policy.config.cameras
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(plain.config, VLAConfig):
        save_model(folder, "policy", plain, provenance, card)
        return Merged(None, None, cameras, {})
    kind = family(checkpoint_folder(plain.config))
    write_checkpoint(plain, folder, scale)
    update = {"model": OWN_CHECKPOINT, "adapter": False}
    if kind == "smolvla":  # which the files that were just written tell otherwise than those that it was loaded from
        update["shifted_patches"] = plain.model.config.shifted_patches
    plain.merged_adapters, plain.config = [], plain.config.model_copy(update=update)
    config = {"policy": plain.config.model_dump(mode="json"), "merged": []}
    (folder / INNER).mkdir()
    write_artifact(folder / INNER, "policy", config, {name: t.contiguous() for name, t in learned_tensors(plain).items()}, provenance, card)
    (folder / INNER / CARD).rename(folder / CARD)
    return Merged(kind, "lerobot" if "type" in read_json(folder / "config.json") else "transformers", cameras, {})
