"""Whether the artifacts in a run's folder are what its recipe makes: settings and inputs of each, of those that it was made from, and so on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .artifacts import content_hash
from .atomic import read_json
from .errors import UserError
from .provenance import PROVENANCE, recorded_files


@dataclass(frozen=True)
class Declaration:
    """What an artifact is made from with a recipe: settings by their path in it, input artifacts, and the command that makes it."""

    settings: dict
    inputs: tuple[str, ...]
    command: str


class Declarations(Protocol):
    """What a recipe makes, stage by stage."""

    def of(self, name: str) -> Declaration | None:
        """None where no stage makes it. Raises UserError where that cannot be said."""

    def of_stage(self, stage: str) -> dict[str, Declaration]:
        """{artifact: declaration} of what a stage makes."""

    def measured(self, stage: str) -> tuple[str, ...]:
        """Artifacts that a stage uses and makes none from."""


@dataclass(frozen=True)
class Conflict:
    """Why an artifact is not what the recipe makes. `recipe`: because of another recipe, and not of an input that has changed since."""

    name: str
    message: str
    recipe: bool = False


class Ancestry:
    """`declared(name)` is what the recipe says of an artifact, None where it makes no such one; it raises UserError where it cannot say."""

    def __init__(self, folder: Path, declared: Callable[[str], Declaration | None]):
        self.folder, self.declared = folder, declared
        self._hashes: dict[str, str] = {}
        self._conflicts: dict[str, Conflict | None] = {}

    def hash(self, name: str) -> str:
        """The content hash of an artifact whose files are those that were written; read once. Raises UserError where they are not."""
        if name not in self._hashes:
            declaration = self._declaration(name)
            self._hashes[name] = content_hash(self.folder / name, declaration.command if declaration else "")
        return self._hashes[name]

    def changed(self, name: str) -> None:
        """Look at an artifact again, and at what is made from it."""
        self._hashes.pop(name, None)
        self._conflicts.clear()

    def present(self) -> list[str]:
        """Names of the artifacts in the folder that a run has made there."""
        paths = (path.parent.relative_to(self.folder) for path in self.folder.rglob(PROVENANCE))
        names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
        return [name for name in names if name != "." and self._record(name).get("artifact") == name]

    def conflict(self, name: str) -> Conflict | None:
        """None for an artifact that is there and is what the recipe makes, as is all that it was made from; else the first that is not.

        Raises UserError for a damaged one among those that it was made from.
        """
        if name not in self._conflicts:
            self._conflicts[name] = self._own_conflict(name) or self._inherited_conflict(name)
        return self._conflicts[name]

    def _own_conflict(self, name: str) -> Conflict | None:
        """Settings, and the names of the inputs."""
        if not (self.folder / name).is_dir():
            return Conflict(name, "does not exist")
        if recorded_files(self.folder / name) is None:
            return Conflict(name, "has no readable provenance.json: it is damaged, or no `worldenv` command wrote it")
        record, declaration = self._record(name), self._declaration(name)
        if declaration is None:
            return None if self._is_given(name) else Conflict(name, "is there, and this recipe makes no such artifact", recipe=True)
        other = difference(record.get("settings", {}), declaration.settings)
        if other:
            return Conflict(name, f"was made with another recipe: {other}", recipe=True)
        before, now = sorted(record.get("inputs", {})), sorted(declaration.inputs)
        if before != now:
            return Conflict(name, f"was made with another recipe: from {_listed(before, now)}, here from {_listed(now, before)}", recipe=True)
        return None

    def _inherited_conflict(self, name: str) -> Conflict | None:
        declaration = self._declaration(name)
        if declaration is None:
            return None
        inputs = self._record(name)["inputs"]
        for needed in declaration.inputs:
            conflict = self.conflict(needed)
            if conflict:
                return conflict
            if inputs[needed] != self.hash(needed):
                return Conflict(name, f"was made from another {needed} than the one that is there")
        return None

    def _is_given(self, name: str) -> bool:
        """A dataset that was made elsewhere, for a recipe that says of none how it is made."""
        return self._record(name).get("artifact") != name

    def _declaration(self, name: str) -> Declaration | None:
        try:
            return self.declared(name)
        except UserError:
            if self._is_given(name):
                return None
            raise

    def _record(self, name: str) -> dict:
        try:
            return read_json(self.folder / name / PROVENANCE)
        except (UserError, OSError):
            return {}


def difference(found: dict, wanted: dict) -> str | None:
    """The first setting that differs between two nested dicts, in words; None where they are alike. Compared as JSON has them."""
    before, now = (dict(_flat(json.loads(json.dumps(settings)))) for settings in (found, wanted))
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r}, here it is {now.get(name)!r}"
    return None


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    """[("env.resolution", 64), ...]"""
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _listed(names: list[str], others: list[str]) -> str:
    """Those that the others lack, which are what matters."""
    return ", ".join(sorted(set(names) - set(others))) or "fewer artifacts"
