"""Runs that differ in their training seed as one result: a run says what one training gave, several say what to expect of the next."""

from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, StrictBool, ValidationError

from .. import __version__
from ..artifacts import FORMAT, mark
from ..atomic import read_json
from ..destination import check_destination
from ..errors import UserError
from .protocol import STOP_COUNTS, arm, compare
from .report import publish


def publish_pool(out: Path, folders: list[Path]) -> None:
    """`pool_runs` as eval.json, report.html and a card in `out`, which config.json marks as a pool's. Raises UserError before anything is written."""
    check_destination(out, "pool", folders)
    report = pool_runs(folders)
    out.mkdir(parents=True, exist_ok=True)
    mark(out, "pool")
    publish(out, report)


def pool_runs(folders: list[Path]) -> dict:
    """A report over several runs' `eval.json`: every start counts once for each run, pairs stay within their run.

    Real environment steps are those of a run on average. Raises UserError where a run has no evaluation or a damaged one, where two runs differ
    in more than the training seed and the folder, and where one seed comes twice.
    """
    reports = [_read(folder) for folder in folders]
    _check_alike(folders, reports)
    seeds = [report["protocol"]["training seed"] for report in reports]
    names = [row["name"] for row in reports[0]["arms"]]
    rows = [[row for report in reports for row in report["arms"] if row["name"] == name] for name in names]
    tasks = [task for report in reports for task in report["tasks"]]
    arms = {name: _pooled(name, same, tasks) for name, same in zip(names, rows)}
    return {
        "name": f"{reports[0]['name']}, training seeds {', '.join(map(str, seeds))}",
        "arms": list(arms.values()),
        "comparisons": [compare(arms[c["a"]], arms[c["b"]], tasks) for c in reports[0]["comparisons"]],
        "imagined_vs_real": [
            row | {"checkpoint": f"{row['checkpoint']}, seed {seed}"} for seed, report in zip(seeds, reports) for row in report["imagined_vs_real"]
        ],
        "protocol": reports[0]["protocol"] | {"training seed": ", ".join(map(str, seeds))},
        "versions": reports[0]["versions"],
        "recipe": reports[0]["recipe"],
    }


class _Counts(BaseModel):
    successes: int
    n: int


class _Arm(BaseModel):
    name: str
    outcomes: list[StrictBool]
    real_environment_steps: int
    at_reflector_stop: _Counts | None = None
    at_horizon: _Counts | None = None
    false_stop: _Counts | None = None


class _Pair(BaseModel):
    a: str
    b: str


class _Imagined(BaseModel):
    checkpoint: str


class _Report(BaseModel):
    """What is read of an eval.json."""

    name: str
    tasks: list[str]
    arms: list[_Arm]
    comparisons: list[_Pair]
    imagined_vs_real: list[_Imagined]
    protocol: dict
    versions: dict
    recipe: str


def _read(folder: Path) -> dict:
    path = folder / "eval.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `worldenv eval --real` with this run's recipe and --out {folder} first")
    report = read_json(path)
    version = str(report.get("versions", {}).get("worldenv")) if isinstance(report.get("versions"), dict) else ""
    if version and version.split(".")[:2] != FORMAT.split("."):
        raise UserError(f"{path} was written by worldenv {version}: this is {__version__}, which reads {FORMAT}.*; evaluate the run again")
    try:
        shape = _Report.model_validate(report)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        raise _not_ours(path, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", folder) from error
    names = [row.name for row in shape.arms]
    for row in shape.arms:
        if len(row.outcomes) != len(shape.tasks):
            raise _not_ours(path, f"the arm {row.name!r} has {len(row.outcomes)} outcomes for {len(shape.tasks)} starts", folder)
    unknown = [name for pair in shape.comparisons for name in (pair.a, pair.b) if name not in names]
    if not names or len(set(names)) < len(names) or unknown:
        raise _not_ours(path, f"its arms are {names}, its comparisons name {unknown or 'those'}", folder)
    return report


def _not_ours(path: Path, what: str, folder: Path) -> UserError:
    return UserError(f"{path} is not an evaluation as `worldenv eval --real` writes it ({what}); evaluate it again with --out {folder}")


def _recipe(folder: Path, report: dict) -> dict:
    try:
        recipe = yaml.safe_load(report["recipe"])
    except yaml.YAMLError as error:
        raise _not_ours(folder / "eval.json", "its recipe is no YAML", folder) from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("seed"), int) or "training seed" not in report["protocol"]:
        raise _not_ours(folder / "eval.json", "it names no training seed", folder)
    return recipe


def _check_alike(folders: list[Path], reports: list[dict]) -> None:
    recipes = [_recipe(folder, report) for folder, report in zip(folders, reports)]
    seeds = [recipe.pop("seed") for recipe in recipes]
    for folder, recipe, seed in list(zip(folders, recipes, seeds))[1:]:
        for section in sorted((recipe.keys() | recipes[0].keys()) - {"out"}):
            if recipe.get(section) != recipes[0].get(section):
                raise UserError(f"{folder} and {folders[0]} differ in `{section}` of their recipes; only runs that differ in `seed` can be pooled")
        if seeds.count(seed) > 1:
            raise UserError(f"{folder}: training seed {seed} comes more than once; another run needs another `--set seed=`")
    for folder, report in list(zip(folders, reports))[1:]:
        if [row["name"] for row in report["arms"]] != [row["name"] for row in reports[0]["arms"]]:
            raise UserError(f"{folder} and {folders[0]} have other arms; evaluate both with this version: `worldenv eval --real`")


def _pooled(name: str, rows: list[dict], tasks: list[str]) -> dict:
    success = np.concatenate([np.array(row["outcomes"], bool) for row in rows])
    steps = round(float(np.mean([row["real_environment_steps"] for row in rows])))
    counts = {key: {kind: sum(row[key][kind] for row in rows) for kind in ("successes", "n")} for key in STOP_COUNTS if key in rows[0]}
    return arm(name, tasks, success, steps, **counts)
