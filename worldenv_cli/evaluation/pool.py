"""Runs that differ in their training seed as one result: a run says what one training gave, several say what to expect of the next."""

from pathlib import Path

import numpy as np
import yaml

from ..artifacts import mark
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

    Real environment steps are those of a run on average. Raises UserError where a run has no evaluation, where two runs differ in more than the
    training seed and the folder, and where one seed comes twice.
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


def _read(folder: Path) -> dict:
    path = folder / "eval.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `worldenv eval --real` with this run's recipe and --out {folder} first")
    return read_json(path)


def _check_alike(folders: list[Path], reports: list[dict]) -> None:
    recipes = [yaml.safe_load(report["recipe"]) for report in reports]
    seeds = [recipe.pop("seed") for recipe in recipes]
    for folder, recipe, seed in list(zip(folders, recipes, seeds))[1:]:
        for section in recipe.keys() - {"out"}:
            if recipe[section] != recipes[0][section]:
                raise UserError(f"{folder} and {folders[0]} differ in `{section}` of their recipes; only runs that differ in `seed` can be pooled")
        if seeds.count(seed) > 1:
            raise UserError(f"{folder}: training seed {seed} comes more than once; another run needs another `--set seed=`")


def _pooled(name: str, rows: list[dict], tasks: list[str]) -> dict:
    success = np.concatenate([np.array(row["outcomes"], bool) for row in rows])
    steps = round(float(np.mean([row["real_environment_steps"] for row in rows])))
    counts = {key: {kind: sum(row[key][kind] for row in rows) for kind in ("successes", "n")} for key in STOP_COUNTS if key in rows[0]}
    return arm(name, tasks, success, steps, **counts)
