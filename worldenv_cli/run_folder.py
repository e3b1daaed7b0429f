"""The files of a run that are not artifacts: its recipe and mark, what is unfinished, times, and `.replaced`, where what is replaced is kept."""

import itertools
import shutil
import time
from functools import cached_property
from pathlib import Path

import yaml

from .artifacts import mark
from .atomic import read_json, write_json, write_text
from .destination import kind_of
from .errors import UserError
from .memory import peak_memory_gb
from .progress import say
from .provenance import PROVENANCE, recorded_files
from .recipe import Recipe, resolved_yaml

REPORTS = ("eval.json", "report.html", "README.md", "bench.json")  # what tells of the artifacts beside it
# Of `env`: how it is computed, which no result depends on; the kind shows in what else there is.
HOW_COMPUTED = ("workers", "rows", "worker_timeout", "renderer", "python", "assets", "kind")


class RunFolder:
    """Keeps the bookkeeping of a run. What is damaged of it is left out with a line and written anew: it never stops a run."""

    REPLACED = ".replaced"
    UNFINISHED = ".unfinished"

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe

    @cached_property
    def _aside(self) -> Path:
        """Where this command keeps what it replaces."""
        now, parent = time.strftime("%Y%m%d-%H%M%S"), self.folder / self.REPLACED
        names = itertools.chain([now], (f"{now}-{number}" for number in itertools.count(2)))
        return next(parent / name for name in names if not (parent / name).exists())

    def check_name(self) -> None:
        """Raises UserError for the folder of a recipe with another name, after which its report is called."""
        found = read_json(self.folder / "config.json").get("name") if kind_of(self.folder) == "run" else None
        if found not in (None, self.recipe.name):
            raise UserError(
                f"{self.folder} is the run of the recipe {found!r}, here it is {self.recipe.name!r}; choose another folder with --out, or --force"
            )

    def is_artifact(self, name: str) -> bool:
        return recorded_files(self.folder / name) is not None

    def replaced(self, name: str) -> Path:
        """Where the artifact that is there now goes when the new one is whole."""
        return self._aside / name

    def set_aside(self, names: list[str]) -> None:
        """Move artifacts that no longer belong to the others into `.replaced`, with their figures, and before them the reports that tell of them."""
        for report in REPORTS:
            self._move(report)
        for name in names:
            self._move(name)
            self._move(f"metrics/{name}")
        if names:
            self._note({name: None for name in names})
            say(f"set aside in {self._aside}: {', '.join(names)}, and the reports of them; delete that folder when you do not need it")

    def _move(self, name: str) -> None:
        path = self.folder / name
        if not path.exists():
            return
        (self._aside / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(self._aside / name)
        for parent in path.relative_to(self.folder).parents[:-1]:
            if not any((self.folder / parent).iterdir()):
                (self.folder / parent).rmdir()

    # An artifact is made

    def workshop(self, name: str) -> Path:
        """Where an unfinished artifact keeps its checkpoints and episodes."""
        return self.folder / self.UNFINISHED / name

    def begin(self, name: str, provenance: dict, *, fresh: bool = False) -> None:
        """Open an artifact's workshop. What an unfinished one of other settings or inputs left is set aside, with `fresh` (--force) any."""
        self._prepare()
        folder = self.workshop(name)
        begun = _fingerprint(folder) if folder.is_dir() else None
        if folder.is_dir() and (fresh or begun != provenance["fingerprint"]):
            same = "is begun anew with --force" if begun == provenance["fingerprint"] else "is of other settings or inputs"
            why = same if begun else "has a damaged or no provenance.json"
            say(f"{name}: what was begun {why}, and is kept in {self._aside / self.UNFINISHED / name}")
            self._move(f"{self.UNFINISHED}/{name}")
        if not folder.is_dir():
            self._move(f"metrics/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PROVENANCE, provenance)

    def finish(self, name: str, seconds: float) -> None:
        """An artifact is whole: the recipe is that of its folder, its workshop goes. The time is that of the command that finished it."""
        if (self._aside / name).is_dir():
            say(f"{name}: the one before is kept in {self._aside / name}")
        self._record_recipe()
        self._note({name: {"seconds": round(seconds, 1), "peak_memory_gb": round(peak_memory_gb(), 2)}})
        shutil.rmtree(self.workshop(name), ignore_errors=True)
        for parent in self.workshop(name).relative_to(self.folder).parents[:-1]:
            if (self.folder / parent).is_dir() and not any((self.folder / parent).iterdir()):
                (self.folder / parent).rmdir()

    def write(self, name: str, value: dict) -> None:
        self._prepare()
        write_json(self.folder / name, value)

    def _prepare(self) -> None:
        """A new folder gets its recipe and its mark; one with results keeps the recipe that made them until there are others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if kind_of(self.folder) != "run":
            mark(self.folder, "run", {"name": self.recipe.name})
        if not (self.folder / "recipe.yaml").exists():
            write_text(self.folder / "recipe.yaml", resolved_yaml(self.recipe))

    def _record_recipe(self) -> None:
        path, text = self.folder / "recipe.yaml", resolved_yaml(self.recipe)
        if _results(path.read_text(encoding="utf-8", errors="replace")) != _results(text):
            self._move("recipe.yaml")
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            write_text(path, text)
        if read_json(self.folder / "config.json").get("name") != self.recipe.name:
            mark(self.folder, "run", {"name": self.recipe.name})

    def _note(self, times: dict[str, dict | None]) -> None:
        """Keep what artifacts took, where the report finds it."""
        path = self.folder / "timing.json"
        noted = self.times() | times
        write_json(path, {name: values for name, values in noted.items() if values is not None})

    def times(self) -> dict[str, dict]:
        """{artifact: {"seconds", "peak_memory_gb"}}; without those that cannot be read."""
        path = self.folder / "timing.json"
        try:
            noted = read_json(path) if path.exists() else {}
        except (UserError, OSError) as error:
            say(f"left out, and written anew: {error}")
            noted = {}
        return {name: values for name, values in noted.items() if _is_time(values)}

    def keep_own_readme(self) -> None:
        self._prepare()
        path = self.folder / "README.md"
        if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").startswith("---\nlibrary_name: worldenv\n"):
            self._move("README.md")
            say(f"README.md becomes the run's card; yours is kept in {self._aside}")


def _is_time(values: object) -> bool:
    return isinstance(values, dict) and all(isinstance(values.get(key), (int, float)) for key in ("seconds", "peak_memory_gb"))


def _fingerprint(folder: Path) -> str | None:
    try:
        return read_json(folder / PROVENANCE).get("fingerprint")
    except (UserError, OSError):
        return None


def _results(text: str) -> object:
    """What of a recipe changes results."""
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(recipe, dict):
        return None
    env = recipe.get("env")
    recipe["env"] = {key: value for key, value in env.items() if key not in HOW_COMPUTED} if isinstance(env, dict) else env
    return {key: value for key, value in recipe.items() if key not in ("device", "out")}
