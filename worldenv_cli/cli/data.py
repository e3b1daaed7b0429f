"""The commands for recorded data: `ingest` makes a dataset of it, `inspect` says what is in it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .options import Action, ControlHz, Debug, DryRun, FilterKey, Force, Format, Gripper, Instruction, Json, Outcome, Quiet, Set, State, Success
from .output import errors_in_one_line, print_json, progress_elsewhere
from .stages import run_recipe


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
        run_recipe(["ingest"], sources[0], set, out, dry_run, force, debug)
        return
    with errors_in_one_line(debug):
        from ..data.ingest import ingest_sources
        from ..data.selection import Selection, camera_names, picture_size

        if out is None:
            raise UserError("--out is missing: expected the folder of the dataset that is made from recorded data")
        chosen = {"demos_per_task": demos_per_task, "tasks": tasks, "cameras": camera_names(cameras), "resize": picture_size(resize)}
        options = {"state": state, "action": action, "instruction": instruction, "filter_key": filter_key, "control_hz": control_hz}
        options |= {"outcome": outcome, "success": success, "gripper": gripper, "drop_no_ops": drop_no_ops, "skip_bad": skip_bad}
        opened, unopened = _opened(sources, format, options)
        selection = Selection(**chosen, seed=seed, video=video, skip_bad=skip_bad)
        ingest_sources(opened, out, selection, unopened=unopened, dry_run=dry_run, force=force)


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
    with errors_in_one_line(debug), progress_elsewhere(json, quiet):
        from ..data.inspection import inspect_source, print_inspection
        from ..destination import check_destination

        if sheet is not None:
            check_destination(sheet, "file", [Path(source) for source in sources])
        options = {"state": state, "action": action, "instruction": instruction, "filter_key": filter_key, "control_hz": control_hz}
        inspections = [inspect_source(source) for source in _opened(sources, format, options | {"outcome": outcome, "success": success})[0]]
        if json:
            print_json([_facts(name, one, sheet) for name, one in zip(sources, inspections, strict=True)])
        else:
            for one in inspections:
                print_inspection(one, sheet)


def _facts(source: str, inspection, sheet: Path | None) -> dict:
    """An inspection for programs."""
    facts = {
        "source": source,
        **dict(inspection.facts),
        "notes": [": ".join(note) for note in inspection.notes],
        "tasks": [asdict(task) for task in inspection.tasks],
        "dimensions": [asdict(dimension) for dimension in inspection.dimensions],
    }
    if sheet is not None:
        from ..evaluation.video import contact_sheet

        facts["sheet"] = str(contact_sheet(sheet, inspection.frames))
    return facts


def _is_recipe(name: str) -> bool:
    from ..shipped import SHIPPED

    return name.endswith((".yaml", ".yml")) or (not Path(name).exists() and (SHIPPED / f"{name}.yaml").is_file())


def _opened(sources: list[str], format: str | None, options: dict) -> tuple[list, list[str]]:
    """(the sources of a command line, listed but not read; those that --skip-bad has left out, with the reasons)."""
    from pydantic import ValidationError

    from ..data.description import without_folders
    from ..data.sources import SourceConfig, open_source
    from ..hub import resolve

    try:
        config = SourceConfig(**options | {"state": tuple(options["state"].split(",")) if options["state"] else None})
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
