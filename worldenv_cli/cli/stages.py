"""The commands that run stages of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, DryRun, Force, Json, Out, Quiet, RecipeFile, Set, Verbose
from .output import errors_in_one_line, print_json, progress_elsewhere


def run(
    recipe: RecipeFile,
    set: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
    verbose: Verbose = False,
    debug: Debug = False,
):
    """All stages up to the report; what is up to date is skipped."""
    run_recipe(None, recipe, set, out, dry_run, force, debug, verbose=verbose)


def sft(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Dataset -> policy, by supervised fine-tuning."""
    run_recipe(["sft"], recipe, set, out, dry_run, force, debug)


def explore(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Policy -> more episodes to learn the world from."""
    run_recipe(["explore"], recipe, set, out, dry_run, force, debug)


def simulate(
    recipe: RecipeFile,
    compare: Annotated[bool, typer.Option("--compare", help="Then also train regression and flow matching for equal times.")] = False,
    set: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
):
    """Episodes -> world simulator."""
    run_recipe(["simulate", "compare"] if compare else ["simulate"], recipe, set, out, dry_run, force, debug)


def calibrate(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Episodes -> reflector, calibrated."""
    run_recipe(["calibrate"], recipe, set, out, dry_run, force, debug)


def post_train(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Policy -> better policy, by reinforcement in imagination."""
    run_recipe(["post-train"], recipe, set, out, dry_run, force, debug)


def evaluate(
    recipe: RecipeFile,
    real: Annotated[bool, typer.Option("--real", help="Play in the real environment.")] = False,
    set: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
):
    """Base and post-trained policy from the same starts -> report."""
    with progress_elsewhere(json, quiet):
        folder = run_recipe(["eval-real" if real else "eval"], recipe, set, out, dry_run, force, debug, verbose=verbose and not json)
        if (json or quiet) and not dry_run:
            from ..atomic import read_json

            with errors_in_one_line(debug):
                result = read_json(folder / ("eval.json" if real else "eval/imagined/imagined.json"))
                _print_result(result, json)


def _print_result(result: dict, json: bool) -> None:
    if json:
        print_json(result)
    elif "comparisons" in result:
        from ..evaluation.headline import headline

        print(headline(result))
    else:
        for name, values in result["arms"].items():
            print(f"{name}: " + ", ".join(f"{task} {value:.2f}" for task, value in values.items()))


def bench(
    recipe: RecipeFile,
    update: Annotated[
        bool, typer.Option("--update", help="One update of the policy in an untrained world, instead: time, memory, matrix peak.")
    ] = False,
    set: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
):
    """How fast each part of the recipe runs on this machine."""
    run_recipe(["bench-update" if update else "bench"], recipe, set, out, dry_run, force, debug)


def run_recipe(
    stages: list[str] | None,
    recipe: str,
    set: list[str] | None,
    out: Path | None,
    dry_run: bool,
    force: bool,
    debug: bool,
    verbose: bool = False,
) -> Path:
    """The run's folder, once the stages are done."""
    with errors_in_one_line(debug):
        from ..recipe import load_recipe

        loaded = load_recipe(recipe, set or [])  # a mistake in it is told before torch is imported
        from ..stage_runner import run_stages

        folder = out or loaded.folder
        run_stages(loaded, folder, stages, dry_run=dry_run, force=force)
        if verbose and not dry_run and (folder / "eval.json").is_file():
            from ..atomic import read_json
            from ..evaluation.report import print_tables

            print_tables(read_json(folder / "eval.json"))
        return folder
