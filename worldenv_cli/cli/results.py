"""The commands for finished runs: several into one report, and to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug
from .output import errors_in_one_line


def pool(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Evaluated runs that differ in their training seed: folders, or on the Hub.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pooled eval.json and report.html.")] = Path("runs/pooled"),
    debug: Debug = False,
):
    """Runs of several training seeds -> one report."""
    with errors_in_one_line(debug):
        from ..evaluation.pool import publish_pool
        from ..hub import resolve

        publish_pool(out, [resolve(run) for run in runs])


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
    with errors_in_one_line(debug):
        from ..push import push

        print(push(folder, repository, public=public, merged=merged, base_model=base_model, datasets=datasets or (), license=license))
