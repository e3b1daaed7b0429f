"""The command line: arguments in, messages and exit codes out. Nothing heavy is imported before a command needs it."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from . import __version__

app = typer.Typer(
    help="Post-train a vision-language-action policy inside a learned world: from a few demonstrations, without touching the robot again.",
    epilog="Start with `worldenv run quickstart`, on any machine. Every command continues where it was cut off.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of one in recipes/.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Change a setting of the recipe. May be repeated.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run, instead of the recipe's.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, with its cost, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again although it is up to date.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def run(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """All stages up to the report; what is up to date is skipped."""
    _run(None, recipe, set, out, dry_run, force, debug)


@app.command()
def ingest(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """Demonstrations -> dataset."""
    _run(["ingest"], recipe, set, out, dry_run, force, debug)


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
    debug: Debug = False,
):
    """Base and post-trained policy from the same starts -> report."""
    _run(["eval-real" if real else "eval"], recipe, set, out, dry_run, force, debug)


@app.command()
def pool(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs that differ in their training seed.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pooled eval.json and report.html.")] = Path("runs/pooled"),
    debug: Debug = False,
):
    """Runs of several training seeds -> one report."""
    with _told(debug):
        from .evaluation.pool import pool_runs
        from .evaluation.report import publish

        publish(out, pool_runs(runs))


@app.command()
def bench(recipe: RecipeFile, set: Set = None, out: Out = None, dry_run: DryRun = False, force: Force = False, debug: Debug = False):
    """How fast each part of the recipe runs on this machine."""
    _run(["bench"], recipe, set, out, dry_run, force, debug)


@app.command()
def doctor(debug: Debug = False):
    """What this machine has and lacks; exit code 1 if that matters."""
    with _told(debug):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from .doctor import examine

        checks = examine()
        table = Table("", "", "found", "what to do", box=None, header_style="bold", pad_edge=False)
        marks = {True: Text("ok", "green"), None: Text("-", "yellow"), False: Text("missing", "red")}
        for check in checks:
            table.add_row(marks[check.ok], Text(check.name), Text(check.found), Text(check.advice))
        Console().print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"worldenv {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")]


@app.callback()
def options(version: Version = False):
    pass


def _run(stages: list[str] | None, recipe: str, set: list[str] | None, out: Path | None, dry_run: bool, force: bool, debug: bool) -> None:
    with _told(debug):
        from .recipe import load_recipe

        loaded = load_recipe(recipe, set or [])  # a mistake in it is told before torch is imported
        from .pipeline import run_stages

        run_stages(loaded, out or loaded.folder, stages, dry_run=dry_run, force=force)


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
    from .atomic import disk_full_message, is_disk_full
    from .errors import UserError

    if isinstance(error, KeyboardInterrupt):
        return "interrupted: run the same command again and it continues from the last checkpoint", 130
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if is_disk_full(error):
        return f"error: {disk_full_message(Path(getattr(error, 'filename', None) or '.'))}", 2
    text = " ".join(str(error).split())
    hint = "" if debug else "; run again with --debug for the traceback"
    return f"internal error: {type(error).__name__}{': ' if text else ''}{text}{hint}", 1


def main() -> None:
    app(prog_name="worldenv")
