"""The command line: arguments in, messages and exit codes out. Nothing heavy is imported before a command needs it."""

from typing import Annotated

import typer

from .. import __version__
from . import data, recipes, results, stages
from .options import Debug, Json, Quiet
from .output import errors_in_one_line, print_json, progress_elsewhere

app = typer.Typer(
    help="Post-train a robot policy inside a learned world model, from a few demonstrations and a counted number of real rollouts.",
    epilog="Start with `worldenv run quickstart`, on any machine. Every command continues where it was cut off.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    pretty_exceptions_enable=False,
)


def doctor(json: Json = False, quiet: Quiet = False, debug: Debug = False):
    """What this machine has and lacks; exit code 1 if that matters."""
    with errors_in_one_line(debug), progress_elsewhere(json, quiet):
        from ..doctor import examine, print_checks

        checks = examine()
        if json:
            print_json([check._asdict() for check in checks])
        else:
            print_checks([check for check in checks if check.ok is False] if quiet else checks)
        if any(check.ok is False for check in checks):
            raise typer.Exit(1)


def _version(asked: bool) -> None:
    if asked:
        print(f"worldenv {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")]


@app.callback()
def options(version: Version = False):
    pass


app.command()(stages.run)
app.command()(data.ingest)
app.command()(data.inspect)
app.command()(stages.sft)
app.command()(stages.explore)
app.command()(stages.simulate)
app.command()(stages.calibrate)
app.command("post-train")(stages.post_train)
app.command("eval")(stages.evaluate)
app.command()(results.pool)
app.command("push-to-hub")(results.push_to_hub)
app.command()(stages.bench)
app.command()(doctor)
app.add_typer(recipes.recipes, name="recipes")


def main() -> None:
    app(prog_name="worldenv")
