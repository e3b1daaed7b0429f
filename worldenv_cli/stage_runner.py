"""The stages of a run: which function each is, what it makes with a recipe, and how they are run one after another."""

from collections.abc import Callable
from pathlib import Path

from . import distributed
from .ancestry import Declaration
from .bench import bench
from .bench_update import bench_update
from .errors import UserError
from .evaluation.stages import evaluate_imagined, evaluate_real
from .locks import locked
from .memory import keep_freed_memory
from .pipeline import Run
from .post_train.stages import check_cameras, post_train
from .progress import logged, say, voice
from .recipe import Recipe
from .remaining import Remaining
from .stages import calibrate, check_policy, compare, estimate, explore, ingest, sft, simulate

STAGES: dict[str, Callable[[Run], None]] = {  # in order
    "ingest": ingest,
    "sft": sft,
    "explore": explore,
    "simulate": simulate,
    "calibrate": calibrate,
    "post-train": post_train,
    "eval": evaluate_imagined,
    "eval-real": evaluate_real,
    "bench": bench,
    "bench-update": bench_update,
    "compare": compare,
}
TOGETHER = ("ingest", "sft", "explore", "simulate", "calibrate", "post-train")  # stages in which all processes take part
NO_PART_OF_A_RUN = ("bench", "bench-update", "compare")
MEASURED = {"bench": ("sft", "simulator", "reflector")}  # artifacts that a stage uses and makes none from
COMMANDS = {"eval-real": "eval --real", "compare": "simulate --compare", "bench-update": "bench --update"}  # of stages that are named otherwise
LOG = "run.log"  # in the folder of the run: everything that was said, with the time


class StageDeclarations:
    """What a recipe makes, from the stages themselves: they are called, as in a dry run, until the artifact that is asked for comes up."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self._by_stage: dict[str, dict[str, Declaration]] = {}
        self._errors: list[UserError] = []

    def of(self, name: str) -> Declaration | None:
        """None where no stage makes it. Raises the UserError of a stage that could not say what it makes, where no other one makes it."""
        for stage in STAGES:
            if name in self.of_stage(stage):
                return self.of_stage(stage)[name]
        if self._errors:
            raise self._errors[0]
        return None

    def of_stage(self, stage: str) -> dict[str, Declaration]:
        """{artifact: declaration}; none for a stage that this recipe cannot run, which says so itself when it is run."""
        if stage not in self._by_stage:
            listener = _Listener(self.recipe, self.folder, COMMANDS.get(stage, stage))
            try:
                if stage not in ("bench", "bench-update"):
                    STAGES[stage](listener)
            except UserError as error:
                listener.declared.clear()
                self._errors.append(error)
            self._by_stage[stage] = listener.declared
        return self._by_stage[stage]

    def measured(self, stage: str) -> tuple[str, ...]:
        """Artifacts that a stage uses and makes none from."""
        return MEASURED.get(stage, ())


class _Listener(Run):
    """Stages tell it what they would make."""

    def __init__(self, recipe: Recipe, folder: Path, command: str):
        self.recipe, self.folder, self.dry_run, self.force, self.command = recipe, folder, True, False, command
        self.declared: dict[str, Declaration] = {}

    def artifact(self, name: str, settings: dict, inputs: dict[str, str], make: Callable[[Path, dict], None], *, together: bool = False) -> None:
        self.declared[name] = Declaration(settings, tuple(inputs), self.command)


def open_run(recipe: Recipe, folder: Path, *, dry_run: bool = False, force: bool = False) -> Run:
    return Run(recipe, folder, StageDeclarations(recipe, folder), dry_run=dry_run, force=force)


def run_stages(recipe: Recipe, out: Path, stages: list[str] | None = None, *, dry_run: bool = False, force: bool = False) -> None:
    """Run some stages by name, or all of them in order."""
    keep_freed_memory()
    stages = stages or [stage for stage in STAGES if stage not in NO_PART_OF_A_RUN]
    if "post-train" in stages:
        check_cameras(recipe)
    check_policy(recipe, stages)
    run = open_run(recipe, out, dry_run=dry_run, force=force)
    if recipe.device == "cuda":
        run.device  # noqa: B018 - one that is not there is told before anything is made
    if dry_run:
        estimate(run)
        try:
            run.check(stages)
        except UserError as error:
            say(f"as things are, this would be refused: {error}")
        _run(run, stages)
        return
    if not distributed.first():
        _run(run, stages)
        return
    run.check(stages)  # before the lock, because a refused command changes nothing
    with locked(run.folder, "run"), logged(run.folder / LOG):
        run.check(stages)  # and after it: another process may have been at work
        if not set(stages) & set(NO_PART_OF_A_RUN):
            run.remaining = _remaining(run, stages)
        _run(run, stages)


def _remaining(run: Run, stages: list[str]) -> Remaining:
    """What the stages are going to make, by a dry run of them."""
    planning = open_run(run.recipe, run.folder, dry_run=True, force=run.force)
    with voice("quiet"), logged(None):
        for name in stages:
            STAGES[name](planning)
    return Remaining(planning.plan, {name: values["seconds"] for name, values in run.times.items()})


def _run(run: Run, stages: list[str]) -> None:
    try:
        for name in stages:
            if distributed.count() == 1 or name in TOGETHER:
                STAGES[name](run)
            elif distributed.first():
                with run.alone():
                    STAGES[name](run)
            distributed.wait()
    finally:
        run.close()
