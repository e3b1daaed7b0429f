"""What may leave this machine: the files that artifacts record and a run's own, none of them a link to elsewhere, none with a path of this machine.

What is recorded of files, and of artifacts that others were made from, is recorded anew where a path in them had to go, so that all still belongs
together where it arrives.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .artifacts import fingerprint
from .atomic import read_json
from .confine import inside
from .destination import kind_of
from .errors import UserError
from .hub import REFERENCE
from .progress import say
from .provenance import CARD, PROVENANCE, recorded_files, total_hash, verify

OF_A_RUN = ("config.json", "recipe.yaml", "eval.json", "bench.json", "report.html", "timing.json", CARD)
STAYING = re.compile(r"(^|/)(\..*|metrics)(/|$)|\.lock$|\.log$")  # hidden, or of interest here alone: not even mentioned
TEXT = (".json", ".jsonl", ".yaml", ".md", ".html", ".txt")
SHOWN = 5  # names in a message
PART_OF_TEXT = re.compile(r"""(?:^|(?<=[\s"'`(=\[]))~?/[^\s"'`()\[\],;:<>]+""")


@dataclass
class Outgoing:
    """{name in the repository: its content, or the file that holds it}."""

    files: dict[str, Path | bytes] = field(default_factory=dict)

    def text(self, name: str) -> str:
        content = self.files[name]
        try:
            return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name if isinstance(content, bytes) else content} is not UTF-8 text ({error.reason}); save it as UTF-8") from error

    def put(self, name: str, text: str) -> None:
        self.files[name] = text.encode("utf-8")

    def texts(self) -> list[str]:
        return [name for name in self.files if name.endswith(TEXT)]

    def artifacts(self) -> list[str]:
        """Folders of artifacts, "" for the root; their provenance.json records their files."""
        return [name.removesuffix(PROVENANCE).rstrip("/") for name in self.files if name.rpartition("/")[2] == PROVENANCE]


def collect(folder: Path) -> Outgoing:
    """The files of an artifact or of a whole run. What else lies there is named and stays.

    Raises UserError for what is neither, for files that were changed after they were written, and for links that lead out of the folder.
    """
    if kind_of(folder) is None and not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: neither an artifact (config.json) nor a run (recipe.yaml); check the path")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    names = [name for name in names if not STAYING.search(name)]
    own = {name for name in names if name in OF_A_RUN} if is_run(folder) else set()
    for name in names:
        if name.rpartition("/")[2] == PROVENANCE and recorded_files((folder / name).parent) is not None:
            prefix = name.removesuffix(PROVENANCE)
            own |= {name, prefix + CARD, *(prefix + one for one in verify(folder / prefix))}
    if not is_run(folder) and PROVENANCE not in own:
        raise UserError(f"{folder} holds no {PROVENANCE} that records its files: nothing tells what belongs to it; make it again")
    for name in names:
        inside(folder, name, folder)
    if left := [name for name in names if name not in own]:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        say(f"stays here, as no part of an artifact: {', '.join(left[:SHOWN])}{more}")
    return Outgoing({name: folder / name for name in names if name in own})


def is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()


# Paths of this machine


def hide_local_paths(outgoing: Outgoing, folder: Path, base_model: str | None) -> None:
    """Put names in the place of paths. A checkpoint's folder becomes `base_model`, where its readers find it.

    Raises UserError where a policy needs a checkpoint that lies on this machine alone, and nobody says where it is on the Hub.
    """
    named = {path: name for path, name in ((str(folder.absolute()), folder.absolute().name), (str(Path.home()), "~")) if len(path) > 1}
    for name in outgoing.texts():
        named |= {path: Path(path).name for path in _local_paths(_strings(name, outgoing.text(name)))}
    for name in outgoing.files:
        if name.rpartition("/")[2] == "config.json":
            for model in _local_checkpoints(json.loads(outgoing.text(name))):
                if base_model is None:
                    advice = "name where it is on the Hub with --base-model OWNER/NAME, or push the whole weights with --merged"
                    raise UserError(f"{folder / name}: the policy is an adapter of {model}, which is on this machine alone: {advice}")
                named[model] = base_model
    if not named:
        return
    pattern = re.compile("|".join(rf"{re.escape(path)}(?![\w.-])" for path in sorted(named, key=len, reverse=True)))
    changed = set()
    for name in outgoing.texts():
        before = outgoing.text(name)
        after = pattern.sub(lambda match: named[match[0]], before)
        if after != before:
            outgoing.put(name, after)
            changed.add(name)
    _record_again(outgoing, changed)


def _strings(name: str, text: str) -> Iterator[str]:
    """All strings of a JSON or YAML file; the lines of others."""
    import yaml

    try:
        if name.endswith(".json"):
            yield from _inner(json.loads(text))
        elif name.endswith(".yaml"):
            yield from _inner(yaml.safe_load(text))
        elif not name.endswith(".html"):  # whose tags look like paths; what it says is in the others
            yield from text.splitlines()
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{name} is damaged ({' '.join(str(error).split())}); make it again") from error


def _inner(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _inner(key)
            yield from _inner(one)
    elif isinstance(value, list):
        for one in value:
            yield from _inner(one)


def _local_paths(strings: Iterator[str]) -> Iterator[str]:
    for text in strings:
        if text.startswith("/") and "\n" not in text and _on_this_machine(text):
            yield text.rstrip("/")
        else:
            yield from (found.rstrip("/.") for found in PART_OF_TEXT.findall(text) if _on_this_machine(found))


def _on_this_machine(path: str) -> bool:
    """Whether it begins with a folder that is here: "/data/demo_0/actions" inside a file does not, mostly, and "/" alone says nothing."""
    parts = Path(path).parts
    return len(parts) > 2 and (parts[0] == "~" or Path(*parts[:2]).is_dir())


def _local_checkpoints(config) -> Iterator[str]:
    """What `policy.model` names, in an artifact's config.json, that is no repository on the Hub."""
    if not isinstance(config, dict):
        return
    policy = config.get("policy")
    model = policy.get("model") if isinstance(policy, dict) else None
    if isinstance(model, str) and model != ".." and (Path(model).exists() or not REFERENCE.fullmatch(model)):
        yield model
    for member in (config.get("members") or {}).values():
        yield from _local_checkpoints(member)


def _record_again(outgoing: Outgoing, changed: set[str]) -> None:
    """The hashes of changed files, of artifacts that hold them, and what others record of these."""
    records = {place: json.loads(outgoing.text(_in(place, PROVENANCE))) for place in outgoing.artifacts()}
    totals = {}
    for place, record in records.items():
        mine = {name: _in(place, name) for name in record.get("files", ()) if _in(place, name) in changed}
        before = total_hash(record.get("files", {}))
        record["files"] = record.get("files", {}) | {name: hashlib.sha256(outgoing.files[one]).hexdigest() for name, one in mine.items()}
        totals[before] = total_hash(record["files"])
    for place, record in records.items():
        name = _in(place, PROVENANCE)
        if "inputs" in record and "fingerprint" in record:
            record["inputs"] = {key: totals.get(value, value) for key, value in record["inputs"].items()}
            record["fingerprint"] = fingerprint(record["settings"], record["inputs"])
        if record != json.loads(outgoing.text(name)):
            outgoing.put(name, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _in(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def checkpoint_of(folder: Path) -> str | None:
    """What an artifact's policy adapts, as its config.json names it: a folder, or a reference to the Hub; None where it adapts nothing."""
    pending = [read_json(folder / "config.json")] if kind_of(folder) == "policy" else []
    while pending:
        config = pending.pop()
        if isinstance(config, dict):
            policy = config.get("policy")
            if isinstance(policy, dict) and isinstance(policy.get("model"), str):
                return policy["model"]
            pending += list((config.get("members") or {}).values())
    return None
