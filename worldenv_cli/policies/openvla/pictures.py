"""How many pictures an OpenVLA-OFT checkpoint was trained with. No tensor tells, and one too few costs nearly everything: 4 % success, not 97.

OpenVLA-OFT's finetune.py writes it into the name of the folder, and the published repositories are known.
"""

import re
from pathlib import Path

from ...errors import UserError
from ...hub import downloaded
from ..vla import VLAConfig
from .files import head_file

NAMED = (  # (what a name holds, pictures), the first that fits
    (r"--3rd_person_img--left_right_wrist_imgs", 3),
    (r"--3rd_person_img--wrist_img", 2),
    (r"--3rd_person_img(?!--\w*wrist)", 1),
    (r"openvla-7b-oft-finetuned-libero-", 2),  # moojink's
    (r"Openvla-oft-SFT-libero", 1),  # Haozhan72's, of SimpleVLA-RL
)


def named_pictures(config: VLAConfig, folder: Path) -> tuple[int, str] | None:
    """(pictures, the name that tells), None where no name does: of the folder, the one above it, or the repository."""
    cached = downloaded(folder)
    names = [Path(config.model.partition("@")[0]).name, folder.resolve().name, folder.resolve().parent.name, *(cached[:1] if cached else ())]
    for pattern, pictures in NAMED:
        for name in names:
            if re.search(pattern, name, re.IGNORECASE):
                return pictures, name
    return None


def check_pictures(config: VLAConfig, folder: Path) -> str | None:
    """What is assumed, where no name tells. Raises UserError where one tells another number than policy.cameras."""
    shown = len(config.cameras)
    named = named_pictures(config, folder)
    if named is None:
        doubt = ""
        if shown == 1 and head_file(folder, "proprio_projector") is not None:
            doubt = ". It feels its body, and such policies nearly always see a wrist camera too: then set policy.cameras=[image, wrist_image]"
        pictures = "1 picture" if shown == 1 else f"{shown} pictures"
        return f"{config.model}: shown {pictures} (policy.cameras), for no file says how many it was trained with{doubt}"
    if named[0] == shown:
        return None
    cameras = {1: "[image]", 2: "[image, wrist_image]", 3: "[front, left_wrist, right_wrist]"}[named[0]]
    raise UserError(
        f"{config.model}: trained with {named[0]} pictures (its name tells: {named[1][-100:]}), found {shown} in policy.cameras: "
        f"set policy.cameras and env.cameras to {named[0]} cameras, such as {cameras}, and ingest the demonstrations with them"
    )
