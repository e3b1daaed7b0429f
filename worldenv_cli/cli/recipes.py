"""The commands for the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Shipped
from .output import errors_in_one_line

recipes = typer.Typer(help="The recipes that come with worldenv: list, show, copy, and every setting explained.", rich_markup_mode=None)


@recipes.callback(invoke_without_command=True)
def without_command(context: typer.Context):
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command("list")
def list_recipes():
    """Names, and what each is for; also without `list`."""
    from ..shipped import names, summary

    width = max(map(len, names()), default=0)
    for name in names():
        print(f"{name:{width}}  {summary(name)}")
    print("\nworldenv recipes show NAME | copy NAME | explain SETTING; worldenv run NAME")


@recipes.command("show")
def show_recipe(name: Shipped):
    """Print a recipe."""
    with errors_in_one_line(False):
        from ..shipped import find

        print(find(name).read_text(encoding="utf-8"), end="")


@recipes.command("copy")
def copy_recipe(name: Shipped, place: Annotated[Path | None, typer.Argument(metavar="[FILE|FOLDER]", help="Here, where left out.")] = None):
    """Copy a recipe, to change it; nothing is overwritten."""
    with errors_in_one_line(False):
        from ..shipped import copy

        print(copy(name, place))


@recipes.command("explain")
def explain_settings(setting: Annotated[str | None, typer.Argument(metavar="[SECTION[.SETTING]]", help="All, where left out.")] = None):
    """What settings mean: type, bounds, default."""
    with errors_in_one_line(False):
        from ..recipe_explained import explained

        for one in explained(setting):
            default = f"; default {one.default}" if one.default not in ("", "required") else f"; {one.default}" if one.default else ""
            print(f"{one.name}{f' ({one.variant})' if one.variant else ''}: {one.type}{default}\n    {one.description}")
