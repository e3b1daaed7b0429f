"""The run: artifacts made one from another, each skipped when nothing that it depends on has changed and continued when it was cut off."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from . import distributed
from .ancestry import Ancestry, Conflict, Declarations
from .artifacts import Checkpoint, fingerprint, is_current, make_provenance
from .atomic import staged
from .data.dataset import Episode, read_dataset
from .destination import check_destination
from .errors import UserError
from .progress import Metrics, say
from .recipe import Recipe
from .remaining import Remaining
from .run_folder import HOW_COMPUTED, RunFolder


class Run:
    """A recipe and the folder in which its artifacts lie. Stages call `artifact`; what they load is kept for the stages that follow.

    `declarations` say what the recipe makes; `stage_runner.open_run` gives those of the stages. Nothing is written before the first artifact is made.
    Raises UserError where the folder holds something else than a run.
    """

    def __init__(self, recipe: Recipe, folder: Path, declarations: Declarations, *, dry_run: bool = False, force: bool = False):
        self.recipe, self.folder, self.dry_run, self.force = recipe, Path(folder), dry_run, force
        if distributed.first():
            check_destination(self.folder, "run", [Path(recipe.ingest.source)] if recipe.ingest.source else [])
        self._declarations = declarations
        self._ancestry = Ancestry(self.folder, declarations.of)
        self._kept = RunFolder(self.folder, recipe)
        self._outdated: list[str] = []  # what another recipe made, to be set aside once the first artifact of this one is whole
        self._episodes: dict[str, list[Episode]] = {}
        self._metrics: list[Metrics] = []
        self._env = None
        self.remaining = Remaining([], {})
        self.plan: list[str] = []  # in a dry run: what would be made, in order, so that what depends on it would be made too
        self._alone = distributed.count() == 1  # what only one process does
        distributed.begin()

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

    def settings(self, *paths: str) -> dict:
        """{path: value} of what an artifact depends on in the recipe, sections ("env") or parts of them ("post_train.gate"), and the seed.

        What only says how it is computed is left out.
        """
        resolved = self.recipe.model_dump(mode="json")
        resolved["env"] = {key: value for key, value in resolved["env"].items() if key not in HOW_COMPUTED}
        found = {}
        for path in paths:
            found[path] = resolved
            for key in path.split("."):
                found[path] = found[path][key]
        return found | {"seed": self.recipe.seed}

    def artifact(self, name: str, settings: dict, inputs: dict[str, str], make: Callable[[Path, dict], None], *, together: bool = False) -> None:
        """Make `name` by `make(folder, provenance)` unless it is current. Of several processes all make what they train `together`, and what the
        first one writes is kept; else it works alone.

        `inputs` maps the name of each artifact that it is made from to the command that makes that one. Raises UserError for an input that is
        missing or damaged, and for one that was made, or whose own inputs were made, with other settings than this recipe's.
        """
        if self.dry_run:
            self._plan(name, settings, inputs)
            return
        hashes = {needed: self.require(needed, command, name) for needed, command in inputs.items()}
        current = not self.force and is_current(self.path(name), fingerprint(settings, hashes), self._command(name))
        if current if self._alone else distributed.agreed(current):
            say(f"{name}: up to date")
            return
        provenance = make_provenance(settings, hashes, self.recipe.seed) | {"artifact": name}
        if distributed.first():
            self._kept.begin(name, provenance, fresh=self.force)
        say(f"{name}: making it")
        if self.remaining.line(name):
            say(self.remaining.line(name))
        self._wait()
        try:
            self._make(name, make, provenance, together)
        finally:
            while self._metrics:
                self._metrics.pop().close()
        self._wait()
        self._ancestry.changed(name)
        self._episodes.pop(name, None)

    def _make(self, name: str, make: Callable[[Path, dict], None], provenance: dict, together: bool) -> None:
        began = time.monotonic()
        if distributed.first():
            with staged(self.path(name), keep=self._kept.replaced(name)) as folder:
                make(folder, provenance)
                if self._outdated:
                    self._set_aside([other for other in self._outdated if other != name])
                    self._outdated = []
            seconds = time.monotonic() - began
            self._kept.finish(name, seconds)
            self.remaining.done(name, seconds)
            self._ancestry.changed(name)
            if others := self._made_from_another(name):
                self._set_aside(others)
        elif together:
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder), provenance)

    def require(self, name: str, command: str, for_what: str) -> str:
        """The content hash of an artifact that is used, once it and all that it was made from are what this recipe makes."""
        conflict = self._ancestry.conflict(name)
        if conflict is None:
            return self._ancestry.hash(name)
        told = f"{self.path(conflict.name)} {conflict.message}"
        command = self._command(conflict.name) or command
        if not self.path(conflict.name).is_dir():
            raise UserError(f"{told}: {for_what} needs it; run `worldenv {command}` with this recipe first")
        force = " and --force" if conflict.recipe else ""
        raise UserError(f"{told}; run `worldenv {command}` with this recipe{force} first, or choose another folder with --out")

    def conflict(self, name: str) -> Conflict | None:
        """Why an artifact is not what this recipe makes; None where it is. Raises UserError for a damaged one."""
        found = self._ancestry.conflict(name)
        if found is None:
            self._ancestry.hash(name)
        return found

    def check(self, stages: list[str]) -> None:
        """Before anything is made or written: everything that these stages need and do not make is there, and the folder is of no other recipe.

        Raises UserError. With --force results of another recipe do not matter, and are set aside once there is the first one of this recipe.
        """
        if not self.force:
            self._kept.check_name()
        made = [name for stage in stages for name in self._declarations.of_stage(stage)]
        for stage in stages:
            for needed in self._declarations.measured(stage):
                self.require(needed, self._command(needed), stage)
        for name in made:
            declaration = self._declarations.of(name)
            for needed in declaration.inputs if declaration else ():
                if needed not in made:
                    self.require(needed, self._command(needed), name)
        for name in made:
            if not self.force and self.path(name).exists() and not self._kept.is_artifact(name):
                raise UserError(f"{self.path(name)} is in the way of {name}, and no `worldenv` command wrote it whole: move it away, or --force")
        conflicts = {name: found for name in self._ancestry.present() if (found := self._conflict(name)) and found.recipe}
        if conflicts and not self.force:
            conflict = next(iter(conflicts.values()))
            raise UserError(
                f"{self.path(conflict.name)} {conflict.message}; choose another folder with --out, or --force to make it again here, "
                f"which sets aside what no longer belongs to it, in {self.folder / RunFolder.REPLACED}"
            )
        self._outdated = list(conflicts)

    def _conflict(self, name: str) -> Conflict | None:
        try:
            return self._ancestry.conflict(name)
        except UserError:  # a damaged file, or a stage that this recipe cannot run: told where the artifact is used
            return None

    def _command(self, name: str) -> str:
        """The command that makes an artifact; empty where none does."""
        try:
            declaration = self._declarations.of(name)
        except UserError:
            return ""
        return declaration.command if declaration else ""

    def _made_from_another(self, name: str) -> list[str]:
        """What was made from an artifact that has just been replaced, and what from that."""
        found = {other: self._conflict(other) for other in self._ancestry.present() if other != name}
        return [other for other, conflict in found.items() if conflict is not None and self.path(conflict.name).is_dir()]

    def _set_aside(self, names: list[str]) -> None:
        self._kept.set_aside(names)
        for name in names:
            self._ancestry.changed(name)
            self._episodes.pop(name, None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the first process: the others are not here."""
        before, self._alone = self._alone, True
        yield
        self._alone = before

    def _wait(self) -> None:
        if not self._alone:
            distributed.wait()

    def _plan(self, name: str, settings: dict, inputs: dict[str, str]) -> None:
        stale = self.force or not inputs.keys().isdisjoint(self.plan) or not all(self.path(needed).is_dir() for needed in inputs)
        if not stale:
            hashes = {needed: self._ancestry.hash(needed) for needed in inputs}
            stale = not is_current(self.path(name), fingerprint(settings, hashes), self._command(name))
        if stale:
            self.plan.append(name)
        say(f"{name}: {'would be made' if stale else 'up to date'}")

    def kept(self, name: str) -> Path:
        """Where the finished episodes of an artifact that is being made are kept."""
        return self._kept.workshop(name) / "episodes"

    def checkpoint(self, name: str, part: str = "model") -> Checkpoint:
        """Checkpoints of one training loop of the artifact that is being made."""
        checkpoint = Checkpoint(self._kept.workshop(name) / part)
        found = checkpoint.latest()
        if found:
            say(f"{name}: continuing {part} at step {found[0]}")
        return checkpoint

    def metrics(self, name: str, part: str = "model") -> Metrics | None:
        """Where the figures of a training loop go, until the artifact is made; the first process alone writes them."""
        if not distributed.first():
            return None
        found = Checkpoint(self._kept.workshop(name) / part).latest()
        self._metrics.append(Metrics(self.folder / "metrics" / name / part, resume_step=found[0] - 1 if found else None))
        return self._metrics[-1]

    @property
    def times(self) -> dict[str, dict]:
        """{artifact: {"seconds", "peak_memory_gb"}}: what each took to make."""
        return self._kept.times()

    def keep_own_readme(self) -> None:
        """Before a report is written: mark the folder as a run's, and set aside a README.md that no report wrote."""
        self._kept.keep_own_readme()

    def write_result(self, name: str, value: dict) -> None:
        """A JSON file in the run's folder that is no artifact, such as bench.json."""
        self._kept.write(name, value)
