"""Arguments and options that several commands have, and what the shell's completion offers for them."""

import glob
from pathlib import Path
from typing import Annotated

import typer


def recipe_names(incomplete: str) -> list[str]:
    """For the shell's completion: the shipped recipes, and the YAML files that begin so."""
    from ..shipped import names

    files = sorted(str(path) for path in Path().glob(f"{glob.escape(incomplete)}*") if path.suffix in (".yaml", ".yml") or path.is_dir())
    return [name for name in names() if name.startswith(incomplete)] + files


def shipped_names(incomplete: str) -> list[str]:
    from ..shipped import names

    return [name for name in names() if name.startswith(incomplete)]


RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or a name that `worldenv recipes` lists.", show_default=False, autocompletion=recipe_names),
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Change a setting of the recipe. May be repeated.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run, instead of the recipe's.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, with its cost, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again although it is up to date.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every table of the report at the end.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
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
Shipped = Annotated[str, typer.Argument(metavar="NAME", help="One that `worldenv recipes` lists.", autocompletion=shipped_names)]
