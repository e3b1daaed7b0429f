"""What comes down from the Hub: references `owner/name[/folder][@revision]`, and its refusals in words. What goes up is in push.py.

Everything goes through `huggingface_hub`, so that HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its cache mean what its users know. No token is ever
part of a message.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from .atomic import disk_full_told, is_disk_full
from .errors import UserError

REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"
REFERENCE = re.compile(rf"(?P<repository>{REPOSITORY})(?P<folder>(/[\w-][\w.-]*)*)(@(?P<revision>[\w./-]+))?")


def resolve(reference: str | Path, repo_type: str = "model", patterns: Sequence[str] | None = None) -> Path:
    """A folder on this machine: the path itself, or a download of the Hub's `owner/name[/folder][@revision]`. A Path is never looked for there.

    With `patterns` only files that match one are downloaded.
    """
    if Path(reference).exists():
        return Path(reference)
    match = REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if not match:
        raise UserError(f"{reference} does not exist: expected a folder or a Hub reference owner/name[@revision]; check the path")
    from huggingface_hub import constants, snapshot_download

    inside = match["folder"].strip("/")
    wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns or ["**"]] if patterns or inside else None
    with disk_full_told(Path(constants.HF_HUB_CACHE)), told(str(reference)):
        snapshot = Path(snapshot_download(match["repository"], revision=match["revision"], repo_type=repo_type, allow_patterns=wanted))
    if not (snapshot / inside).is_dir():
        raise UserError(f"{reference}: the repository has no folder {inside!r}; look at its files")
    return snapshot / inside


def downloaded(folder: Path) -> tuple[str, str] | None:
    """(owner/name, commit) of a folder in the Hub's cache, which keeps snapshots under models--owner--name/snapshots/commit; None for others."""
    found = re.search(r"/(?:models|datasets)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)", folder.as_posix())
    return (found[1].replace("--", "/"), found[2]) if found else None


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(inside for inside in path.rglob("*") if inside.is_file())


def state_of(path: Path, leave_out: str = "") -> str:
    """Changes when a file there does, so that what was made from it is made again: a snapshot's commit, or else sizes and times of change, as
    `make` goes by. Files whose names match `leave_out` do not count.
    """
    cached = downloaded(path)
    if cached:
        return cached[1]
    counted = [inside for inside in files_of(path) if not fnmatch(inside.name, leave_out)]
    seen = [(inside.relative_to(path).as_posix(), inside.stat().st_size, inside.stat().st_mtime_ns) for inside in counted]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


@contextmanager
def told(what: str, doing: Literal["download", "upload"] = "download") -> Iterator[None]:
    """Whatever goes wrong between here and the Hub in one line, with what to do about this cause and without any token."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # HTTPError: of whichever httpx it speaks through

    try:
        with _quiet():
            yield
    except (HTTPError, OSError, ValueError, RuntimeError, LookupError) as error:
        if is_disk_full(error) or isinstance(error, UserError):
            raise
        causes = list(_causes(error))
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            raise UserError(f"{what}: not on this machine, and HF_HUB_OFFLINE is set; unset it, or download first") from error
        answer = next((cause.response for cause in causes if getattr(cause, "response", None) is not None), None)
        raise UserError(f"{what}: {_refusal(answer, what, doing) if answer is not None else _broken(causes, doing)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub without a line for each of its own tries, and without bars where nobody watches."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, hide = logging.get_verbosity(), not sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            enable_progress_bars()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it: downloads and uploads wrap them in errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refusal(answer, what: str, doing: str) -> str:
    """What the Hub's answer means and what to do. `answer`: httpx.Response."""
    status, code = answer.status_code, answer.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return f"it is gated: accept its terms on {_page(answer, what)} with the account of your token (`hf auth login`), then run this again"
    missing = {"RevisionNotFound": "no such revision: look at its branches and tags", "EntryNotFound": "no such file: look at its files"}
    if code in missing:
        return f"the repository has {missing[code]}"
    if status == 401:
        private = "a private repository, or none of this name" if doing == "download" else "the Hub does not know who asks"
        return f"{private}: check the name, and log in with `hf auth login` or set HF_TOKEN to a token of an account that may see it"
    if status == 403:
        may = "write there: use one that can" if doing == "upload" else "read it: use one of an account that may see it"
        return f"this token may not {may}"
    advice = {
        404: "no such repository, revision or file: check the name, and log in with `hf auth login` if it is private",
        409: "conflict: another push to it is under way, or it was changed meanwhile; run the same command again when that is done",
        412: "conflict: it was changed meanwhile; run the same command again",
        413: "the Hub finds a file too large; split it or leave it out",
        429: "too many requests: wait a little and run the same command again",
    }
    return advice.get(status, f"the Hub answers {status} ({_reason(answer)}); run the same command again later, what was sent is not sent twice")


def _broken(causes: list[BaseException], doing: str) -> str:
    """What to do where there is no answer: the network, this machine's files, or an answer that nobody understands."""
    from huggingface_hub.errors import HTTPError

    local = next((cause for cause in causes if isinstance(cause, OSError) and cause.filename), None)
    if local is not None:
        advice = "choose another cache with HF_HOME" if doing == "download" else "check that you may read it"
        return f"{local.filename}: {local.strerror}; {advice}"
    network = next((cause for cause in reversed(causes) if isinstance(cause, (HTTPError, ConnectionError, TimeoutError))), None)
    if network is not None:
        again = "run the same command again, what was sent is not sent twice" if doing == "upload" else "run the same command again, it continues"
        return f"no connection to the Hub, or it was cut off ({_without_tokens(network)}); check the network and HF_ENDPOINT, then {again}"
    done = "downloaded from" if doing == "download" else "pushed to"
    return f"could not be {done} the Hub ({_without_tokens(causes[0])})"


def _page(answer, what: str) -> str:
    """The address of the repository that an answer is about."""
    from huggingface_hub import constants

    match = re.match(rf"{REPOSITORY}", what)
    kind = "datasets/" if re.search(r"/(api/)?datasets/", str(answer.url)) else ""
    return f"{constants.ENDPOINT}/{kind}{match[0]}" if match else "its page on the Hub"


def _reason(answer) -> str:
    return _without_tokens(answer.headers.get("X-Error-Message") or answer.reason_phrase or "no reason given")


def _without_tokens(error: Exception | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"hf_\w+", "hf_***", text)[:300]
