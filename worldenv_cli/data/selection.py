"""Which of the sources' episodes and cameras are taken, and whether sources fit together."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from ..config import Config
from ..errors import UserError
from .layout import CAMERA
from .sources import Listed, Source


class Selection(Config):
    """Which of the sources' episodes, and how their pictures are kept."""

    demos_per_task: int | None = Field(None, ge=1, description="drawn by seed; all of them where it is not given")
    tasks: tuple[str, ...] | None = Field(None, description="instructions that are wanted")
    cameras: dict[str, str] | None = Field(None, description="{name in the source: name in the dataset}; all as they are where it is not given")
    resize: tuple[int, int] | None = Field(None, description="(height, width) of every picture, in pixels")
    seed: int = 0
    video: bool = Field(False, description="keep pictures as H.264 video, a tenth of the size, instead of exactly")
    skip_bad: bool = Field(False, description="leave out episodes that cannot be read, and list them, instead of stopping")


PICTURES_OF = {  # how pictures are made for sets that can be recorded without them
    "robomimic": "make them with robomimic's dataset_states_to_obs.py --camera_names agentview robot0_eye_in_hand",
    "libero": "make them with LIBERO's create_dataset script",
    "lerobot": "record it with a camera",
    "rlds": "choose a set with images in its observations",
}


def camera_names(text: str | None) -> dict[str, str] | None:
    """ "old=new,other" -> {"old": "new", "other": "other"}"""
    if not text:
        return None
    pairs = [part.strip().partition("=") for part in text.split(",")]
    wrong = next((old for old, equals, new in pairs if not old or (equals and not new)), None)
    if wrong is not None:
        raise UserError(f"--cameras {text!r}: expected old=new, or names, separated by commas")
    return {old.removeprefix(CAMERA): new or old.removeprefix(CAMERA) for old, _, new in pairs}


def picture_size(text: str | None) -> tuple[int, int] | None:
    """ "224x224" or "224" -> (height, width)"""
    if text is None:
        return None
    height, by, width = text.lower().partition("x")
    if not height.isdigit() or (by and not width.isdigit()) or not 8 <= int(height) <= 4096 or not 8 <= int(width or height) <= 4096:
        raise UserError(f"--resize {text!r}: expected height x width in pixels, 8 to 4096, such as 224x224")
    return int(height), int(width or height)


def instruction_of(listed: Listed) -> str:
    """Instructions that differ in white space only are one."""
    return " ".join(listed.instruction.split())


def choose_episodes(sources: Sequence[Source], selection: Selection, skipped: list[str]) -> list[tuple[Source, Listed]]:
    """In the sources' order. With `demos_per_task` each task's are drawn by seed, so that other tasks do not change the draw.

    Episodes without one instruction are no matter where `tasks` names others; else they stop, or with `skip_bad` they are added to `skipped`.
    """
    by_task: dict[str, list[tuple[Source, Listed]]] = {}
    for source in sources:
        for listed in source.episodes:
            instruction = instruction_of(listed)
            if listed.problem or not instruction:
                _without_instruction(source, listed, selection, skipped)
            else:
                by_task.setdefault(instruction, []).append((source, listed))
    wanted = list(by_task) if selection.tasks is None else [" ".join(task.split()) for task in selection.tasks]
    for task in wanted:
        if task not in by_task:
            raise UserError(f"--tasks {task!r}: not in the sources, which hold {sorted(by_task)[:8]}; copy the wording from `worldenv inspect`")
    chosen = []
    for task in wanted:
        found, count = by_task[task], selection.demos_per_task
        if count is not None and len(found) < count:
            raise UserError(f"task {task!r}: {len(found)} episodes, expected {count} for --demos-per-task; lower it or leave the task out")
        rows = range(len(found)) if count is None else sorted(_generator(selection.seed, task).permutation(len(found))[:count])
        chosen += [found[row] for row in rows]
    return chosen


def _without_instruction(source: Source, listed: Listed, selection: Selection, skipped: list[str]) -> None:
    message = f"{source.path}: {listed.name}: {listed.problem or 'no instruction; give one: --instruction ' + repr('lift the cube')}"
    if selection.skip_bad:
        skipped.append(message)
    elif selection.tasks is None:
        raise UserError(message)


def _generator(seed: int, task: str) -> np.random.Generator:
    return np.random.default_rng([seed, *task.encode()])


def choose_cameras(source: Source, selection: Selection) -> dict[str, str]:
    """{name in the source: name in the dataset}. What was not asked for need not be usable; where nothing was, everything has to be."""
    if not source.cameras and not source.unusable_cameras:
        raise UserError(f"{source.path}: no pictures, expected those of one camera at least; {PICTURES_OF[source.format.split()[0]]}")
    chosen = selection.cameras or {camera: camera for camera in [*source.cameras, *source.unusable_cameras]}
    for camera in chosen:
        if camera in source.unusable_cameras:
            out = f"leave it out: --cameras {','.join(source.cameras)}" if source.cameras else "there is no other"
            raise UserError(f"{source.path}: camera {camera} cannot be taken ({source.unusable_cameras[camera]}); {out}")
        if camera not in source.cameras:
            raise UserError(f"{source.path}: no camera {camera!r}, found {sorted(source.cameras)}; choose with --cameras")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(f"--cameras: two cameras would be called {max(chosen.values(), key=list(chosen.values()).count)!r}; give each its own name")
    return chosen


Fact = Callable[[Source, Sequence[str]], object]
SAME: dict[str, Fact] = {
    "control rate (Hz)": lambda source, cameras: source.control_hz,
    "state": lambda source, cameras: source.state_names,
    "action": lambda source, cameras: source.action_names,
    "action's unit": lambda source, cameras: source.action["unit"],
    "picture sizes": lambda source, cameras: {camera: source.cameras[camera]["size"] for camera in sorted(cameras)},
    "camera poses": lambda source, cameras: {camera: source.cameras[camera].get("extrinsics") for camera in sorted(cameras)},
}
SAME_WHERE_KNOWN: dict[str, Fact] = {
    "robot": lambda source, cameras: source.robot,
    "gripper": lambda source, cameras: source.gripper,
    "orientation of cameras": lambda source, cameras: (
        None
        if any(source.cameras[camera]["orientation"] is None for camera in cameras)
        else {camera: source.cameras[camera]["orientation"] for camera in cameras}
    ),
}


def check_same(sources: Sequence[Source], cameras: Sequence[str], *, resized: bool) -> None:
    """Raise UserError where sources cannot become one dataset. What one of them does not know does not keep them apart."""
    first = sources[0]
    for other in sources[1:]:
        if sorted(other.cameras) != sorted(first.cameras) and not set(cameras) <= set(other.cameras):
            raise UserError(f"{other.path}: cameras are {sorted(other.cameras)}, but {sorted(first.cameras)} in {first.path}; choose with --cameras")
        for field, of in SAME.items():
            if of(first, cameras) != of(other, cameras) and not (resized and field == "picture sizes"):
                _differ(first, other, field, of(first, cameras), of(other, cameras))
        for field, of in SAME_WHERE_KNOWN.items():
            if of(first, cameras) != of(other, cameras) and None not in (of(first, cameras), of(other, cameras)):
                _differ(first, other, field, of(first, cameras), of(other, cameras))


def _differ(first: Source, other: Source, field: str, here: object, there: object) -> None:
    raise UserError(f"{other.path}: {field} is {str(there)[:200]}, but {str(here)[:200]} in {first.path}; ingest them into two datasets")


def common(sources: Sequence[Source], of: Callable[[Source], object]) -> object:
    """What all sources say, or None: what one of them does not know is not known of all."""
    values = [of(source) for source in sources]
    return values[0] if all(value == values[0] for value in values) else None
