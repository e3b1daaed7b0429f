"""The command line: arguments in, messages and exit codes out. Nothing heavy is imported before a command needs it."""

import glob
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import UserError

app = typer.Typer(
    help="Post-train a robot policy inside a learned world model, from a few demonstrations and a counted number of real rollouts.",
    epilog="Start with `worldenv run quickstart`, on any machine. Every command continues where it was cut off.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    pretty_exceptions_enable=False,
)


def _recipe_names(incomplete: str) -> list[str]:
    """For the shell's completion: the shipped recipes, and the YAML files that begin so."""
    from .shipped import names

    files = sorted(str(path) for path in Path().glob(f"{glob.escape(incomplete)}*") if path.suffix in (".yaml", ".yml") or path.is_dir())
    return [name for name in names() if name.startswith(incomplete)] + files


def _shipped_names(incomplete: str) -> list[str]:
    from .shipped import names

    return [name for name in names() if name.startswith(incomplete)]


RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or a name that `worldenv recipes` lists.", show_default=False, autocompletion=_recipe_names),
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Change a setting of the recipe. May be repeated.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run, instead of the recipe's.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, with its cost, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again although it is up to date.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every table of the report at the end.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
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
    _run(None, recipe, set, out, dry_run, force, debug, verbose=verbose)


Format = Annotated[str | None, typer.Option("--format", help="lerobot, libero, robomimic or rlds; found out where it is not given.")]
State = Annotated[str | None, typer.Option(metavar="A,B", help="Names in the source that make up observation.state.")]
Action = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the action in the source.")]
Instruction = Annotated[str | None, typer.Option(help="Of every episode, for sources that record none.")]
ControlHz = Annotated[
    float | None, typer.Option("--control-hz", help="Actions a second, where the source records none, or not the one played.", show_default=False)
]
Outcome = Annotated[str | None, typer.Option(metavar="success|failure", help="Of every episode whose outcome is not recorded; else it is unknown.")]
Success = Annotated[str | None, typer.Option(metavar="COLUMN|FILE", help="Where outcomes are: a column of the source, a CSV or JSON of episodes.")]
Gripper = Annotated[
    str | None, typer.Option(metavar="'1 opens'|'1 closes'", help="What the action's last number does, where the source does not say.")
]
FilterKey = Annotated[str | None, typer.Option(help="robomimic: only the demonstrations of this mask; RLDS: only this split.")]


@app.command()
def ingest(
    sources: Annotated[list[str], typer.Argument(metavar="RECIPE|SOURCE...", help="A recipe, or recorded data: files, folders, Hub datasets.")],
    set: Set = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run, or of the dataset.", show_default=False)] = None,
    format: Format = None,
    demos_per_task: Annotated[int | None, typer.Option(min=1, help="Episodes of each task, drawn by --seed; else all.")] = None,
    tasks: Annotated[list[str] | None, typer.Option("--tasks", help="Only this instruction. May be repeated.")] = None,
    cameras: Annotated[str | None, typer.Option(metavar="OLD=NEW,...", help="Only these cameras, under these names.")] = None,
    resize: Annotated[str | None, typer.Option(metavar="HxW", help="Size of every picture, in pixels.")] = None,
    state: State = None,
    action: Action = None,
    instruction: Instruction = None,
    filter_key: FilterKey = None,
    control_hz: ControlHz = None,
    outcome: Outcome = None,
    success: Success = None,
    gripper: Gripper = None,
    drop_no_ops: Annotated[bool, typer.Option("--drop-no-ops", help="LIBERO: leave out steps that move nothing.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of --demos-per-task.")] = 0,
    video: Annotated[bool, typer.Option("--video", help="Keep pictures as H.264 video instead of exactly.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and list what cannot be read.")] = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
):
    """Experts of a recipe, or recorded data -> dataset."""
    if len(sources) == 1 and _is_recipe(sources[0]):
        _run(["ingest"], sources[0], set, out, dry_run, force, debug)
        return
    with _told(debug):
        from .data.ingest import ingest_sources
        from .data.selection import Selection, camera_names, picture_size

        if out is None:
            raise UserError("--out is missing: expected the folder of the dataset that is made from recorded data")
        chosen = {"demos_per_task": demos_per_task, "tasks": tasks, "cameras": camera_names(cameras), "resize": picture_size(resize)}
        told = {"state": state, "action": action, "instruction": instruction, "filter_key": filter_key, "control_hz": control_hz}
        told |= {"outcome": outcome, "success": success, "gripper": gripper, "drop_no_ops": drop_no_ops, "skip_bad": skip_bad}
        opened, unopened = _opened(sources, format, told)
        selection = Selection(**chosen, seed=seed, video=video, skip_bad=skip_bad)
        ingest_sources(opened, out, selection, unopened=unopened, dry_run=dry_run, force=force)


@app.command()
def inspect(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Datasets or recorded data: files, folders, Hub datasets.")],
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Where to draw pictures of some episodes.")] = None,
    format: Format = None,
    state: State = None,
    action: Action = None,
    instruction: Instruction = None,
    filter_key: FilterKey = None,
    control_hz: ControlHz = None,
    outcome: Outcome = None,
    success: Success = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
):
    """What is in a dataset, or in recorded data."""
    with _told(debug), _heard(json, quiet):
        from .data.inspection import inspect_source, print_inspection
        from .destination import check_destination

        if sheet is not None:
            check_destination(sheet, "file", [Path(source) for source in sources])
        told = {"state": state, "action": action, "instruction": instruction, "filter_key": filter_key, "control_hz": control_hz}
        found = [inspect_source(source) for source in _opened(sources, format, told | {"outcome": outcome, "success": success})[0]]
        if json:
            _document([_facts(name, one, sheet) for name, one in zip(sources, found, strict=True)])
        else:
            for one in found:
                print_inspection(one, sheet)


def _facts(source: str, inspection, sheet: Path | None) -> dict:
    """An inspection for programs."""
    tasks = [dict(zip(("instruction", "episodes", "actions", "success"), row, strict=False)) for row in inspection.tasks]
    dimensions = [dict(zip(("name", "range", "mean", "remark"), row, strict=False)) for row in inspection.dimensions]
    facts = {
        "source": source,
        **dict(inspection.facts),
        "notes": [": ".join(note) for note in inspection.notes],
        "tasks": tasks,
        "dimensions": dimensions,
    }
    if sheet is not None:
        from .evaluation.video import contact_sheet

        facts["sheet"] = str(contact_sheet(sheet, inspection.frames))
    return facts


def _is_recipe(name: str) -> bool:
    from .shipped import SHIPPED

    return name.endswith((".yaml", ".yml")) or (not Path(name).exists() and (SHIPPED / f"{name}.yaml").is_file())


def _opened(sources: list[str], format: str | None, told: dict) -> tuple[list, list[str]]:
    """(the sources of a command line, listed but not read; those that --skip-bad has left out, with the reasons)."""
    from pydantic import ValidationError

    from .data.description import without_folders
    from .data.sources import SourceConfig, open_source
    from .hub import resolve

    try:
        config = SourceConfig(**told | {"state": tuple(told["state"].split(",")) if told["state"] else None})
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise UserError(f"--{option} {wrong['input']!r}: {wrong['msg'].lower()}") from error
    opened, unopened = [], []
    for source in sources:
        try:
            opened.append(open_source(resolve(source, "dataset"), config, format))
        except UserError as error:
            if not config.skip_bad or len(sources) == 1:
                raise
            unopened.append(without_folders(str(error), [Path(source)]))
    if not opened:
        raise UserError(unopened[0])
    return opened, unopened


@app.command()
def sft(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Dataset -> policy, by supervised fine-tuning."""
    _run(["sft"], recipe, set, out, dry_run, force, debug)


@app.command()
def explore(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Policy -> more episodes to learn the world from."""
    _run(["explore"], recipe, set, out, dry_run, force, debug)


@app.command()
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
    _run(["simulate", "compare"] if compare else ["simulate"], recipe, set, out, dry_run, force, debug)


@app.command()
def calibrate(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Episodes -> reflector, calibrated."""
    _run(["calibrate"], recipe, set, out, dry_run, force, debug)


@app.command("post-train")
def post_train(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Policy -> better policy, by reinforcement in imagination."""
    _run(["post-train"], recipe, set, out, dry_run, force, debug)


@app.command("eval")
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
    with _heard(json, quiet):
        folder = _run(["eval-real" if real else "eval"], recipe, set, out, dry_run, force, debug, verbose=verbose and not json)
        if (json or quiet) and not dry_run:
            from .atomic import read_json

            with _told(debug):
                result = read_json(folder / ("eval.json" if real else "eval/imagined/imagined.json"))
                _print_result(result, json)


def _print_result(result: dict, json: bool) -> None:
    if json:
        _document(result)
    elif "comparisons" in result:
        from .evaluation.headline import headline

        print(headline(result))
    else:
        for name, values in result["arms"].items():
            print(f"{name}: " + ", ".join(f"{task} {value:.2f}" for task, value in values.items()))


@app.command()
def pool(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Evaluated runs that differ in their training seed: folders, or on the Hub.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pooled eval.json and report.html.")] = Path("runs/pooled"),
    debug: Debug = False,
):
    """Runs of several training seeds -> one report."""
    with _told(debug):
        from .evaluation.pool import publish_pool
        from .hub import resolve

        publish_pool(out, [resolve(run) for run in runs])


@app.command("push-to-hub")
def push_to_hub(
    folder: Annotated[Path, typer.Argument(metavar="RUN|ARTIFACT", help="A run's folder, or that of one of its artifacts.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made where it is not there yet.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is private without this.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="A policy's adapter as part of its weights.")] = False,
    base_model: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="For the card: what it was made from.")] = None,
    datasets: Annotated[list[str] | None, typer.Option("--dataset", metavar="OWNER/NAME", help="For the card. May be repeated.")] = None,
    license: Annotated[str | None, typer.Option(metavar="NAME", help="For the card, as the Hub calls it: apache-2.0, mit, ...")] = None,
    debug: Debug = False,
):
    """A run or artifact -> the Hub, what changed of it."""
    with _told(debug):
        from .push import push

        print(push(folder, repository, public=public, merged=merged, base_model=base_model, datasets=datasets or (), license=license))


@app.command()
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
    _run(["bench-update" if update else "bench"], recipe, set, out, dry_run, force, debug)


@app.command()
def doctor(json: Json = False, quiet: Quiet = False, debug: Debug = False):
    """What this machine has and lacks; exit code 1 if that matters."""
    with _told(debug), _heard(json, quiet):
        from .doctor import examine, print_checks

        checks = examine()
        if json:
            _document([check._asdict() for check in checks])
        else:
            print_checks([check for check in checks if check.ok is False] if quiet else checks)
        if any(check.ok is False for check in checks):
            raise typer.Exit(1)


recipes = typer.Typer(help="The recipes that come with worldenv: list, show, copy, and every setting explained.", rich_markup_mode=None)
app.add_typer(recipes, name="recipes")
Shipped = Annotated[str, typer.Argument(metavar="NAME", help="One that `worldenv recipes` lists.", autocompletion=_shipped_names)]


@recipes.callback(invoke_without_command=True)
def list_recipes(context: typer.Context):
    if context.invoked_subcommand is None:
        from .shipped import names, summary

        width = max(map(len, names()), default=0)
        for name in names():
            print(f"{name:{width}}  {summary(name)}")
        print("\nworldenv recipes show NAME, copy NAME [FILE], explain [SETTING]; worldenv run NAME")


@recipes.command("show")
def show_recipe(name: Shipped):
    """Print a recipe."""
    with _told(False):
        from .shipped import find

        print(find(name).read_text(encoding="utf-8"), end="")


@recipes.command("copy")
def copy_recipe(name: Shipped, place: Annotated[Path | None, typer.Argument(metavar="[FILE|FOLDER]", help="Here, where left out.")] = None):
    """Copy a recipe, to change it; nothing is overwritten."""
    with _told(False):
        from .shipped import copy

        print(copy(name, place))


@recipes.command("explain")
def explain_settings(setting: Annotated[str | None, typer.Argument(metavar="[SECTION[.SETTING]]", help="All, where left out.")] = None):
    """What settings mean: type, bounds, default."""
    with _told(False):
        from .recipe_explained import explained

        for one in explained(setting):
            default = f"; default {one.default}" if one.default not in ("", "required") else f"; {one.default}" if one.default else ""
            print(f"{one.name}{f' ({one.variant})' if one.variant else ''}: {one.type}{default}\n    {one.description}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"worldenv {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")]


@app.callback()
def options(version: Version = False):
    pass


def _run(
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
    with _told(debug):
        from .recipe import load_recipe

        loaded = load_recipe(recipe, set or [])  # a mistake in it is told before torch is imported
        from .pipeline import run_stages

        folder = out or loaded.folder
        run_stages(loaded, folder, stages, dry_run=dry_run, force=force)
        if verbose and not dry_run and (folder / "eval.json").is_file():
            from .atomic import read_json
            from .evaluation.report import print_tables

            print_tables(read_json(folder / "eval.json"))
        return folder


@contextmanager
def _heard(json: bool, quiet: bool) -> Iterator[None]:
    """Progress beside a JSON document goes to stderr, with --quiet nowhere."""
    if not json and not quiet:
        yield
        return
    from .progress import voice

    with voice("quiet" if quiet else "stderr"):
        yield


def _document(value) -> None:
    """The one JSON document of a command. What is not finite becomes null."""
    import json
    import math

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if value is None or isinstance(value, (bool, int, str)) else plain(value.item()) if hasattr(value, "item") else str(value)

    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


@contextmanager
def _told(debug: bool) -> Iterator[None]:
    """Every way to fail as one line on stderr and an exit code: 2 a mistake the user can mend, 130 interrupted, 1 ours."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _message(error, debug)
        print(message, file=sys.stderr)
        raise typer.Exit(code) from error


def _message(error: BaseException, debug: bool) -> tuple[str, int]:
    from .atomic import disk_full_message, is_disk_full, os_error_message
    from .errors import UserError

    if isinstance(error, KeyboardInterrupt):
        return "interrupted: run the same command again and it continues from the last checkpoint", 130
    if isinstance(error, UserError):
        return f"error: {' '.join(str(error).splitlines())}", 2
    if is_disk_full(error):
        return f"error: {disk_full_message(Path(getattr(error, 'filename', None) or '.'))}", 2
    if (told := os_error_message(error)) is not None:
        return f"error: {told}", 2
    text = " ".join(str(error).split())
    hint = "" if debug else "; run again with --debug for the traceback"
    return f"internal error: {type(error).__name__}{': ' if text else ''}{text}{hint}", 1


def main() -> None:
    app(prog_name="worldenv")
