"""The recipes that come with the package: where they lie, what each of them is, and a copy of one to change."""

import difflib
from pathlib import Path

from .errors import UserError


def _folder() -> Path:
    """In an installed package the recipes are a part of it; in a clone they lie beside it."""
    package = Path(__file__).resolve().parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


SHIPPED = _folder()


def names() -> list[str]:
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def summary(name: str) -> str:
    """What a recipe is, in one sentence: its first line, a comment."""
    with (SHIPPED / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip().rstrip(":.")


def find(name: str) -> Path:
    """The file of a shipped recipe. Raises UserError for an unknown name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        raise UserError(f"{name}: no such recipe, expected one of {', '.join(names())}" + (f"; did you mean {near[0]}?" if near else ""))
    return SHIPPED / f"{name}.yaml"


def copy(name: str, place: Path | None) -> Path:
    """Copy a shipped recipe to a file, or into a folder under its own name, and return the path. Nothing is ever overwritten."""
    source, place = find(name), place or Path()
    target = place / f"{name}.yaml" if place.is_dir() else place
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{target} is there already and is not overwritten; name another file: worldenv recipes copy {name} FILE") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); name another file: worldenv recipes copy {name} FILE") from error
    return target
