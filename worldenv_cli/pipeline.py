"""The run: artifacts made one from another, each skipped when nothing that it depends on has changed and continued when it was cut off."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

from . import distributed
from .artifacts import Checkpoint, content_hash, fingerprint, is_current, make_provenance
from .atomic import read_json, staged, write_json
from .data.dataset import Episode, read_dataset
from .errors import UserError
from .memory import keep_freed_memory, peak_memory_gb
from .progress import Metrics, logged, say, voice
from .recipe import Recipe, resolved_yaml
from .remaining import Remaining

LOG = "run.log"  # in the folder of the run: everything that was said, with the time
TOGETHER = ("ingest", "sft", "explore", "simulate", "calibrate", "post-train")  # stages in which all processes take part


class Run:
    """A recipe and the folder in which its artifacts lie. Stages call `artifact`; what they load is kept for the stages that follow."""

    def __init__(self, recipe: Recipe, folder: Path, *, dry_run: bool = False, force: bool = False):
        self.recipe, self.folder, self.dry_run, self.force = recipe, Path(folder), dry_run, force
        self._episodes: dict[str, list[Episode]] = {}
        self._hashes: dict[str, str] = {}
        self._env = None
        self.plan: list[str] = []  # in a dry run: the same, in order
        self.remaining = Remaining([], {})
        self._planned: set[str] = set()  # in a dry run: what would be made, so that what depends on it would be made too
        self._alone = distributed.count() == 1  # what only one process does
        distributed.begin()
        if not dry_run and distributed.first():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(resolved_yaml(recipe))

    @cached_property
    def device(self):
        """Where models live: torch.device. Raises UserError where a GPU is asked for and there is none."""
        import torch

        if self.recipe.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device is 'cuda', but torch finds no GPU here; see `worldenv doctor`, or set device=auto")
        return torch.device(f"cuda:{torch.cuda.current_device()}" if self.recipe.device != "cpu" and torch.cuda.is_available() else "cpu")

    def model(self, name: str, kind: str, made_by: str = "make it first"):
        """The model of one of the run's artifacts, on the run's device, in evaluation mode."""
        from .models import load_model

        return load_model(self.path(name), kind, made_by, self.device)

    def episodes(self, name: str) -> list[Episode]:
        """The episodes of one of the run's datasets, read once."""
        if name not in self._episodes:
            self._episodes[name] = read_dataset(self.path(name))
        return self._episodes[name]

    def _hash(self, name: str) -> str:
        """The content hash of one of the run's artifacts, read once."""
        if name not in self._hashes:
            self._hashes[name] = content_hash(self.path(name))
        return self._hashes[name]

    def path(self, name: str) -> Path:
        return self.folder / name

    def env(self, *, until_horizon: bool = False, every_frame: bool = True):
        """The real environment, its worker processes shared by all stages."""
        from .envs.vector import RealVectorEnv

        if self._env is None:
            self._env = RealVectorEnv(self.recipe.env)
        self._env.until_horizon, self._env.every_frame = until_horizon, every_frame
        return self._env

    @property
    def env_versions(self) -> dict[str, str]:
        """{package: version} of the real environment, whose interpreter may be another one; empty while it has not been needed."""
        return self._env.versions if self._env is not None else {}

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def settings(self, *sections: str) -> dict:
        """The recipe's sections that an artifact depends on, and the seed. What only says how it is computed is left out."""
        resolved = self.recipe.model_dump(mode="json")
        how = ("workers", "rows", "renderer", "python", "assets", "kind")  # the kind shows in what else there is
        resolved["env"] = {key: value for key, value in resolved["env"].items() if key not in how}
        return {section: resolved[section] for section in sections} | {"seed": self.recipe.seed}

    def artifact(self, name: str, settings: dict, inputs: dict[str, str], make: Callable[[Path, dict], None], *, together: bool = False) -> None:
        """Make `name` by `make(folder, provenance)` unless it is current. Of several processes all make what they train `together`, and what the
        first one writes is kept; else it works alone.

        `inputs` maps the name of each artifact that it is made from to the command that makes that one. Raises UserError for a missing
        input, and for one that was made with other settings than this recipe's.
        """
        if self.dry_run:
            self._plan(name, settings, inputs)
            return
        hashes = {}
        for needed, command in inputs.items():
            if not self.path(needed).is_dir():
                raise UserError(f"{self.path(needed)} does not exist: {name} is made from it; run `worldenv {command}` with this recipe first")
            self._check_recipe(needed, command)
            hashes[needed] = self._hash(needed)
        current = is_current(self.path(name), fingerprint(settings, hashes)) and not self.force
        if current if self._alone else distributed.agreed(current):
            say(f"{name}: up to date")
            return
        provenance = make_provenance(settings, hashes, self.recipe.seed)
        if distributed.first():
            self._open_workshop(name, provenance["fingerprint"])
        say(f"{name}: making it")
        if self.remaining.line(name):
            say(self.remaining.line(name))
        began = time.monotonic()
        self._wait()
        if distributed.first():
            with staged(self.path(name)) as folder:
                make(folder, provenance)
            self._close_workshop(name, time.monotonic() - began)
        elif together:
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder), provenance)
        self._wait()
        self._episodes.pop(name, None)
        self._hashes.pop(name, None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the first process: the others are not here."""
        before, self._alone = self._alone, True
        yield
        self._alone = before

    def _wait(self) -> None:
        if not self._alone:
            distributed.wait()

    def _close_workshop(self, name: str, seconds: float) -> None:
        self._note(name, seconds)
        shutil.rmtree(self._workshop(name), ignore_errors=True)
        for parent in self._workshop(name).relative_to(self.folder).parents[:-1]:
            if (self.folder / parent).is_dir() and not any((self.folder / parent).iterdir()):
                (self.folder / parent).rmdir()

    def _check_recipe(self, needed: str, command: str) -> None:
        """An input made with another recipe would be mixed with what this one makes."""
        made_with = read_json(self.path(needed) / "provenance.json")["settings"]
        sections = [section for section in made_with if section in Recipe.model_fields]
        here = self.settings(*sections)
        found, wanted = ({name: value for section in sections for name, value in _flat(section, s[section])} for s in (made_with, here))
        for name in found.keys() | wanted.keys():
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.path(needed)} was made with another recipe: {name} was {found.get(name)!r}, here it is {wanted.get(name)!r}; "
                    f"run `worldenv {command}` with this recipe first, or choose another folder with --out"
                )

    def _note(self, name: str, seconds: float) -> None:
        """Keep what an artifact took, where the report finds it; after a cut-off, what the run took that finished it."""
        self.remaining.done(name, seconds)
        path = self.path("timing.json")
        noted = read_json(path) if path.is_file() else {}
        noted[name] = {"seconds": round(seconds, 1), "peak_memory_gb": round(peak_memory_gb(), 2)}
        write_json(path, noted)

    def _plan(self, name: str, settings: dict, inputs: dict[str, str]) -> None:
        stale = self.force or not self._planned.isdisjoint(inputs) or not all(self.path(needed).is_dir() for needed in inputs)
        stale = stale or not is_current(self.path(name), fingerprint(settings, {needed: self._hash(needed) for needed in inputs}))
        if stale:
            self._planned.add(name)
            self.plan.append(name)
        say(f"{name}: {'would be made' if stale else 'up to date'}")

    def _workshop(self, name: str) -> Path:
        return self.folder / ".unfinished" / name

    def _open_workshop(self, name: str, wanted: str) -> None:
        """Where an unfinished artifact keeps its checkpoints; those of other settings or inputs are thrown away."""
        folder = self._workshop(name)
        mark = folder / "fingerprint"
        if folder.is_dir() and (not mark.is_file() or mark.read_text() != wanted):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(wanted)

    def kept(self, name: str) -> Path:
        """Where the finished episodes of an artifact that is being made are kept."""
        return self._workshop(name) / "episodes"

    def checkpoint(self, name: str, part: str = "model") -> Checkpoint:
        """Checkpoints of one training loop of the artifact that is being made."""
        checkpoint = Checkpoint(self._workshop(name) / part)
        found = checkpoint.latest()
        if found:
            say(f"{name}: continuing {part} at step {found[0]}")
        return checkpoint

    def metrics(self, name: str, part: str = "model") -> Metrics | None:
        """Where the figures of a training loop go; the first process alone writes them."""
        if not distributed.first():
            return None
        found = Checkpoint(self._workshop(name) / part).latest()
        return Metrics(self.folder / "metrics" / name / part, resume_step=found[0] - 1 if found else None)


def run_stages(recipe: Recipe, out: Path, stages: list[str] | None = None, *, dry_run: bool = False, force: bool = False) -> None:
    """Run some stages by name, or all of them in order."""
    from . import stages as available
    from .bench import bench
    from .bench_update import bench_update
    from .evaluation.stages import evaluate_imagined, evaluate_real
    from .post_train.stages import post_train

    functions = {
        "ingest": available.ingest,
        "sft": available.sft,
        "explore": available.explore,
        "simulate": available.simulate,
        "calibrate": available.calibrate,
        "post-train": post_train,
        "eval": evaluate_imagined,
        "eval-real": evaluate_real,
        "bench": bench,
        "bench-update": bench_update,
        "compare": available.compare,
    }
    keep_freed_memory()
    run = Run(recipe, out, dry_run=dry_run, force=force)
    if recipe.device == "cuda":
        run.device  # noqa: B018 - one that is not there is told before anything is made
    if dry_run:
        available.estimate(run)
    extra = ("bench", "bench-update", "compare")  # not a part of a run
    names = stages or [stage for stage in functions if stage not in extra]
    with logged(run.folder / LOG) if not dry_run and distributed.first() else nullcontext():
        try:
            if not dry_run and not set(names) & set(extra):
                run.remaining = _remaining(run, [functions[name] for name in names])
            for name in names:
                if distributed.count() == 1 or name in TOGETHER:
                    functions[name](run)
                elif distributed.first():
                    with run.alone():
                        functions[name](run)
                distributed.wait()
        finally:
            run.close()


def _remaining(run: Run, stages: list[Callable[[Run], None]]) -> Remaining:
    """What the stages are going to make, by a dry run of them; what cannot be made is told here, before anything is."""
    planning = Run(run.recipe, run.folder, dry_run=True, force=run.force)
    with voice("quiet"), logged(None):
        for stage in stages:
            stage(planning)
    timing = run.path("timing.json")
    before = read_json(timing) if timing.is_file() else {}
    return Remaining(planning.plan, {name: values["seconds"] for name, values in before.items()})


def _flat(section: str, values) -> list[tuple[str, object]]:
    """[("env.resolution", 64), ...]; the seed is no section and stays as it is."""
    return [(f"{section}.{key}", value) for key, value in values.items()] if isinstance(values, dict) else [(section, values)]
