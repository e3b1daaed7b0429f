"""A dataset brought into a recipe's environment: its commands in the environment's own units, its gripper the same way round, its tasks by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .actions import ROUNDING, ActionScale
from .layout import UNKNOWN, Episode
from .outcomes import Label, counted, label
from .reader import read_dataset, read_description
from .sources.lerobot import described_by_us

RARE = 0.01  # share of the action's numbers that may lie beyond the environment's range: the odd push of a hand, and not another unit
LAG = 5  # steps after which a gripper has followed its command
TELLING = 0.5  # correlation from which on the fingers tell what the command means
ENOUGH = 40  # pairs of a command and an opening


def fitting_episodes(env, source: str, folder: Path, outcome: str | None) -> tuple[list[Episode], int, list[str]]:
    """(the episodes of the recipe's tasks, what they have cost in environment steps, what was changed or taken for granted, a line each).

    `env` is the recipe's environment section, `outcome` what the user says of episodes whose outcome is unknown. Raises UserError where the dataset
    was seen or moved otherwise than the environment.
    """
    description, action, where = read_description(folder), described_by_us(folder)["action"], f"ingest.source {source}"
    for field, (there, here) in env.compared(description).items():
        if there != here:
            raise UserError(f"{where}: {field} is {there}, but {here} in the recipe's env; record it again or change the recipe")
    episodes = _of_tasks(env, where, read_dataset(folder))
    lines = [
        f"camera {camera}: orientation not recorded, taken as the environment's" for camera in env.cameras if _turned_unknown(description, camera)
    ]
    lines += _to_commands(env, where, action, episodes)
    lines += _to_gripper(env, where, action, episodes)
    for episode in episodes:
        if outcome is not None and episode.outcome == UNKNOWN:
            label(where, episode, Label(outcome == "success"))
    unknown = sum(episode.outcome == UNKNOWN for episode in episodes)
    if unknown:
        told = "they train the policy by imitation and the simulator, never the reflector; ingest.outcome: success says that they are demonstrations"
        lines.append(f"{counted([episode.outcome for episode in episodes])}: {told}")
    return episodes, description.get("environment_steps", 0), lines


def _of_tasks(env, where: str, episodes: Sequence[Episode]) -> list[Episode]:
    """Episodes that are not labelled with a task of the recipe are known by their instruction; two of LIBERO's tasks can have the same one."""
    called = {" ".join(instruction.split()): task for task, instruction in reversed(env.tasks.items())}
    for episode in episodes:
        if episode.info.get("task") not in env.tasks:
            episode.info["task"] = called.get(" ".join(episode.instruction.split()))
        episode.frames = {camera: episode.frames[camera] for camera in env.cameras}
    episodes = [episode for episode in episodes if episode.info["task"] in env.tasks]
    labels = {episode.info["task"] for episode in episodes}
    missing = sorted(task for task, instruction in env.tasks.items() if not {task, called[" ".join(instruction.split())]} & labels)
    if missing:
        raise UserError(f"{where}: no episode of env.tasks.{missing[0]}; leave the task out or record it")
    return episodes


def _turned_unknown(description: dict, camera: str) -> bool:
    about = description.get("cameras", {}).get(camera, {})
    return "orientation" in about and about["orientation"] is None


def _to_commands(env, where: str, action: dict, episodes: Sequence[Episode]) -> list[str]:
    """Stored actions -> the environment's commands in [-1, 1], in place."""
    size = len(env.action_names)
    if len(action.get("names", ())) != size:
        raise UserError(f"{where}: actions of {len(action.get('names', ()))} numbers, but {size} in the recipe's env; choose another dataset")
    if action.get("absolute"):
        raise UserError(f"{where}: actions are absolute targets, but {env.title} takes steps from where the hand is; choose another dataset")
    if _of_this_controller(env, action) is False:
        unit = _controller_unit(action)
        raise UserError(f"{where}: an action of 1 is {unit}, but {list(env.command_unit)} in the recipe's env; its controller was another one")
    scale = ActionScale.described(action, size, where)
    recorded = [scale.to_recorded(episode.actions) for episode in episodes]
    numbers = np.abs(np.concatenate(recorded))
    beyond, count = int((numbers > 1 + ROUNDING).sum()), numbers.size
    largest = f"the largest {numbers.max():.3g}"
    if beyond > RARE * count:
        told = f"{beyond:,} of {count:,} numbers of the actions lie beyond the environment's [-1, 1], {largest}"
        raise UserError(f"{where}: {told}: they are in other units than the environment's; convert them, at most {100 * RARE:g} % may be clipped")
    for episode, commands in zip(episodes, recorded, strict=True):
        episode.actions = np.clip(commands, -1, 1).astype(np.float32)
        if episode.last_action is not None:
            episode.last_action = np.clip(scale.to_recorded(episode.last_action), -1, 1).astype(np.float32)
    return [f"actions: {beyond:,} of {count:,} numbers beyond [-1, 1] are clipped, as the environment does ({largest})"] if beyond else []


def _flat(unit) -> bool:
    return isinstance(unit, list) and all(isinstance(number, (int, float)) for number in unit)


def _to_gripper(env, where: str, action: dict, episodes: Sequence[Episode]) -> list[str]:
    """Turn the gripper's command where 1 opens there and closes here, in place. What the data does not say, the fingers may tell."""
    dimension, here = env.gripper["dimension"], env.gripper["closes"]
    told, how = action.get("gripper"), "as the dataset says"
    there = _closes(told)
    if told and (there is None or told.get("dimension") != dimension):
        raise UserError(f"{where}: the action's gripper is {told}, but {env.gripper} in the recipe's env; convert it, or say --gripper to ingest")
    if there is None:
        there, how = closing_sign(episodes, dimension, env.description()["state"]["opening"]), "as its fingers move"
    if there is None:
        name, closing = env.action_names[dimension], "closes" if here > 0 else "opens"
        raise UserError(
            f"{where}: action {name}: whether 1 opens or closes the gripper is not recorded, and the states do not tell (1 {closing} in the recipe's "
            "env); say it to worldenv ingest: --gripper '1 opens' or --gripper '1 closes'"
        )
    lines, name = [], env.action_names[dimension]
    if not _of_this_controller(env, action) and _is_binary(episodes, dimension):
        _change(episodes, dimension, lambda commands: 2 * commands - 1)
        lines.append(f"action {name}: it is 0 or 1 in the dataset, and becomes -1 or 1 for the environment")
    if there != here:
        _change(episodes, dimension, lambda commands: -commands)
        lines.append(f"action {name}: 1 {'opens' if there < 0 else 'closes'} in the dataset, {how}, and is turned round for the environment")
    return lines


def _controller_unit(action: dict):
    """What the dataset says that a recorded action of 1 moves, in each dimension."""
    return action.get("recorded_unit") if "offset" in action else action.get("unit")


def _of_this_controller(env, action: dict) -> bool | None:
    """Whether an action of 1 means there what it means here; None where one of them does not say."""
    unit = _controller_unit(action)
    known = env.command_unit and _flat(unit) and len(unit) == len(env.command_unit)
    return bool(np.allclose(unit, env.command_unit)) if known else None


def _is_binary(episodes: Sequence[Episode], dimension: int) -> bool:
    """Whether a command is 0 or 1 throughout, and both: the habit of Open X-Embodiment, where 0 would hold still in an environment of -1 and 1."""
    values = np.unique(np.concatenate([episode.actions[:, dimension] for episode in episodes]).round(4))
    return values.tolist() == [0, 1]


def _change(episodes: Sequence[Episode], dimension: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for episode in episodes:
        for actions in (episode.actions, episode.last_action):
            if actions is not None:
                actions[..., dimension] = change(actions[..., dimension])


def _closes(gripper: dict | None) -> int | None:
    """The sign of the command that closes, of either form in which a gripper is described; None where it is no sign."""
    if not gripper:
        return None
    if "closes" in gripper:
        return gripper["closes"]
    ends = gripper.get("open"), gripper.get("closed")
    return {(1, -1): -1, (1, 0): -1, (-1, 1): 1, (0, 1): 1}.get(ends)


def closing_sign(episodes: Sequence[Episode], dimension: int, opening: Sequence[float]) -> int | None:
    """1 where a positive command is followed by closed fingers, -1 where by open ones, None where the states do not tell.

    `opening` are weights of the state whose sum says how far the fingers are apart.
    """
    if episodes[0].states.shape[1] != len(opening):
        return None
    pairs = [(e.actions[: len(e.states) - LAG, dimension], e.states[LAG:] @ np.asarray(opening)) for e in episodes if len(e.states) > LAG]
    if not pairs:
        return None
    commands, apart = (np.concatenate([pair[i][: min(map(len, pair))] for pair in pairs]) for i in (0, 1))
    if len(commands) < ENOUGH or commands.std() < ROUNDING or apart.std() < ROUNDING:
        return None
    correlation = float(np.corrcoef(commands, apart)[0, 1])
    return None if abs(correlation) < TELLING else (1 if correlation < 0 else -1)
