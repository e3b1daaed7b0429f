"""What `WorldEnv.from_pretrained` takes out of a run: its models, its settings, and the first frames of its real episodes."""

import re
from pathlib import Path

import torch

from .data.dataset import read_dataset
from .data.explore import of_split
from .errors import UserError
from .hub import resolve
from .models import load_model
from .post_train.lineage import models_of
from .recipe import load_recipe
from .reflector.compact import Reflector
from .simulator.simulator import History, Simulator, history_until
from .world_env import WorldEnvConfig


def parts(run: str | Path, number: int | None, device: torch.device | str) -> tuple[Simulator, Reflector, WorldEnvConfig, list[History], float]:
    """(simulator, reflector, settings, where episodes may begin, chunks a second) of round `number`; see `WorldEnv.from_pretrained`."""
    folder = resolve(run)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{run}: no recipe.yaml there, expected the folder of a run, or the Hub's owner/name of one that was pushed whole")
    recipe = load_recipe(folder / "recipe.yaml")
    later = (int(path.name) for path in (folder / "rounds").glob("*") if re.fullmatch("[1-9][0-9]{0,8}", path.name))
    numbers = sorted({1, *(n for n in later if n <= recipe.post_train.rounds)})
    rounds = [n for n in numbers if all((folder / name).is_dir() for name in models_of(n))]
    if not rounds:
        raise UserError(f"{run}: no simulator and reflector there; make them with `worldenv run {folder / 'recipe.yaml'} --out {folder}`")
    if number is not None and number not in rounds:
        raise UserError(f"{run}: no models of round {number}; there are those of {', '.join(map(str, rounds))}")
    number = number or rounds[-1]
    simulator, reflector = (load_model(folder / name, kind, device=device) for name, kind in zip(models_of(number), ("simulator", "reflector")))
    rate = recipe.env.control_hz / recipe.env.chunk
    return simulator, reflector, recipe.world_env, _first_frames(folder, number, simulator.config.camera), rate


def _first_frames(folder: Path, number: int, camera: str) -> list[History]:
    """Of the policies' own episodes that round `number` may train on, those held out left aside."""
    probes = [f"rounds/{n}/probe" for n in range(1, number)]
    datasets = ["exploration", *(name for name in probes if (folder / name).is_dir())]
    episodes = [episode for name in datasets for episode in read_dataset(folder / name, camera, 1) if "split" in episode.info]
    return [_copied(history_until(episode, camera, 0)) for episode in of_split(episodes, "train", "calibration")]


def _copied(history: History) -> History:
    """Without the rest of its episode, which a view would keep in memory."""
    return History(history.frames.copy(), history.states.copy(), history.actions.copy(), history.instruction)
