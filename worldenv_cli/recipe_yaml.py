"""The YAML that recipes are written in: a plain subset, read with limits, and every refusal with the line that it is about.

Safe YAML of names, texts, numbers, true/false, lists and sections. Dates are texts, 1e-4 is a number (as in YAML 1.2), a name is always text and
never given twice, and numbers are finite. A file that would unfold into more than MAX_VALUES values is refused before it does.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

MAX_BYTES = 2**20
MAX_VALUES = 20_000  # in a recipe, those of an alias counted wherever it is used
MAX_DEPTH = 40
MAX_INTEGER = 2**31 - 1
TAG = "tag:yaml.org,2002:"
TAGS = {f"{TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a name given twice, reads 1e-4 as a number and a date as text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.value in lines:
                problem = f"{key.value!r} is given twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value != "<<":
                lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        read = self.construct_yaml_int if node.tag == f"{TAG}int" else self.construct_yaml_float
        try:
            value = read(node)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, f"found {node.value[:40]!r}, expected a number", node.start_mark) from error
        if not math.isfinite(value) or isinstance(value, int) and abs(value) > MAX_INTEGER:
            problem = f"found {node.value[:40]}, expected a finite number, and a whole one of at most {MAX_INTEGER:,}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def text(self, node: yaml.ScalarNode) -> str:
        value = self.construct_yaml_str(node)
        if any(character not in "\n\t" and (ord(character) < 32 or 0xD800 <= ord(character) < 0xE000) for character in value):
            raise yaml.constructor.ConstructorError(None, None, f"a control character in {value[:40]!r}", node.start_mark)
        return value


_Loader.add_implicit_resolver(f"{TAG}float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
_Loader.add_constructor(f"{TAG}int", _Loader.number)
_Loader.add_constructor(f"{TAG}float", _Loader.number)
_Loader.add_constructor(f"{TAG}str", _Loader.text)


def read_text(path: Path) -> str:
    """The text of a recipe. Raises UserError where it is too long for one or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES:,} bytes, expected a recipe of a few thousand; check the path")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: byte 0x{raw[error.start]:02x} is not UTF-8, expected a text file; save it as UTF-8") from error


def parse(text: str, where: str) -> Any:
    """What `text` says, as dicts with text keys, lists, texts, finite numbers, booleans and None. `where` begins the message of a UserError."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where)
        return _unshared(loader.construct_document(node))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        raise UserError(f"{where}{line}: not valid YAML ({problem}); correct that line") from error
    except RecursionError as error:
        raise UserError(f"{where}: sections inside sections more than {MAX_DEPTH} deep; a recipe needs about five") from error
    except KeyError as error:  # !!bool perhaps
        raise UserError(f"{where}: not valid YAML (found {error}, expected true or false); leave tags such as !!bool out") from error
    finally:
        if loader is not None:
            loader.dispose()


def _unshared(value: Any) -> Any:
    """A copy in which nothing is in two places: an override of one use of an alias must not change the others."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def line_of(text: str, keys: Sequence[str]) -> str:
    """ " line 7": where the setting stands in a text that can be parsed, or else the section that should have it; empty where there is none."""
    node, line = yaml.compose(text, _Loader), None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            entry = next(((name, value) for name, value in node.value if name.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key[:9]) < len(node.value):
            entry = (node.value[int(key)],) * 2
        else:
            entry = None
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return f" line {line}" if line else ""


def _check(root: yaml.Node, where: str) -> None:
    """Refuse what is not a recipe's YAML, walking the document as it would unfold, without recursion."""
    waiting, values = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        values += 1
        place = f"{where} line {node.start_mark.line + 1}"
        if depth > MAX_DEPTH:
            raise UserError(f"{place}: sections inside sections more than {MAX_DEPTH} deep; a recipe needs about five")
        if values > MAX_VALUES:
            raise UserError(f"{place}: the aliases (*name) up to here unfold into more than {MAX_VALUES:,} values; write out what is meant")
        if node.tag not in TAGS:
            raise UserError(f"{place}: not valid YAML (could not determine what {node.tag!r} is); expected plain text, numbers, lists and sections")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                _check_name(key, where)
                waiting.append((value, depth + 1))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(value, depth + 1) for value in node.value]


def _check_name(key: yaml.Node, where: str) -> None:
    place = f"{where} line {key.start_mark.line + 1}"
    if not isinstance(key, yaml.ScalarNode):
        raise UserError(f"{place}: found a list or section as a name, expected text")
    if key.tag not in (f"{TAG}str", f"{TAG}merge"):
        kind = {"int": "a number", "float": "a number", "bool": "true or false", "null": "nothing"}.get(key.tag.removeprefix(TAG), key.tag)
        raise UserError(f"{place}: YAML reads the name {key.value or '(empty)'} as {kind}, expected text; put it in quotes: '{key.value}'")
