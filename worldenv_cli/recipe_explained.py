"""Every setting of a recipe in words: its type and bounds, its default in that place, and what it does. Read off the schema, so never out of date."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .errors import UserError
from .recipe import Recipe, known_settings, unknown_setting

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


class Setting(NamedTuple):
    name: str  # post_train.updates.clip
    variant: str  # libero: of the section's kinds, the one that has this setting; empty where there is one kind
    type: str  # number, more than 0
    default: str  # 0.2; "required" where there is none
    description: str


def explained(path: str | None) -> list[Setting]:
    """A setting, or all in a section with those of the sections inside it; all of the recipe where no path is given.

    Raises UserError for an unknown path.
    """
    keys = tuple(path.split(".")) if path else ()
    for depth, key in enumerate(keys):
        known = known_settings(Recipe, keys[:depth])
        if known is None or key not in known:
            raise UserError(unknown_setting(keys[: depth + 1], known or []))
    settings = list(_settings(Recipe, None, (), ""))
    return [setting for setting in settings if not keys or setting.name == path or setting.name.startswith(f"{path}.")]


def _settings(section: type[BaseModel], default: Any, keys: tuple[str, ...], variant: str) -> Iterator[Setting]:
    """All settings below a section, whose own default, where it has one, gives theirs."""
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        value = getattr(default, name) if isinstance(default, section) else field.get_default(call_default_factory=True)
        place = (*keys, name)
        yield Setting(".".join(place), variant, _type(field), _default(value, inner), field.description or "")
        for tag, kind in inner.items():
            yield from _settings(kind, value if isinstance(value, kind) else None, place, tag or variant)


def _sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """{tag: section} of what something of that annotation may be; the tag is empty where there is no choice."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"": annotation}
    if get_origin(annotation) is Annotated:
        tag = next((mark.tag for mark in get_args(annotation)[1:] if isinstance(mark, Tag)), "")
        return {tag or inner: section for inner, section in _sections(get_args(annotation)[0]).items()}
    if get_origin(annotation) in (Union, types.UnionType):
        return {tag: section for argument in get_args(annotation) for tag, section in _sections(argument).items()}
    return {}


def _default(value: Any, sections: dict) -> str:
    if value is PydanticUndefined:
        return "required"
    if sections:
        return ""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value) if value != {} else "none"


def _type(field: FieldInfo) -> str:
    bounds = [BOUNDS[name].format(getattr(mark, name)) for mark in field.metadata for name in BOUNDS if hasattr(mark, name)]
    return ", ".join([_word(field.annotation), *bounds])


def _word(annotation: Any) -> str:
    """A type as people say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if _sections(annotation):
        return "section" if len(_sections(annotation)) == 1 else "section of one of two kinds"
    if origin is Annotated:
        return _word(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("none" if argument is type(None) else _word(argument) for argument in arguments)
    if origin is tuple:
        count = "" if len(arguments) == 2 and arguments[1] is Ellipsis else f"{len(arguments)} "
        inner = _word(arguments[0])
        return f"list of {count}{inner}s" if not inner.startswith("list") else "list of lists of numbers"
    if origin is dict:
        return f"names with a {_word(arguments[1])} each"
    return WORDS.get(annotation, str(annotation))
