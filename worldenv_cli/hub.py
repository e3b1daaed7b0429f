"""What comes down from the Hub: references `owner/name[/folder][@revision]`, and its refusals in words. What goes up is in push.py.

Everything goes through `huggingface_hub`, so that HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its cache mean what its users know. No token is ever
part of a message.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

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
def told(what: str) -> Iterator[None]:
    """The Hub's refusals in one line, with what to do and without any token."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(f"{what}: not on this machine, and HF_HUB_OFFLINE is set; unset it, or download first") from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        if is_disk_full(error) or isinstance(error, UserError):
            raise
        answer = _answer(error)
        if answer is not None:
            raise UserError(f"{what}: {_refusal(answer)}") from error
        raise UserError(f"{what}: not to be had from the Hub ({_without_tokens(error)}); check the name and the network") from error


def _answer(error: BaseException | None):
    """The Hub's answer behind an error, where there was one: downloads and uploads wrap it in errors of their own."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None and not (isinstance(error, HfHubHTTPError) and error.response is not None):
        error = error.__cause__ or error.__context__
    return error


def _refusal(error) -> str:
    status = error.response.status_code
    advice = {
        401: "the Hub does not know who asks: log in with `hf auth login` or set HF_TOKEN",
        403: "this token may not do that: use one that can write there",
        404: "no such repository, revision or file: check the name, and the token if it is private",
        429: "too many requests: wait a little and run the same command again",
    }
    return advice.get(status, f"the Hub answers {status} ({_without_tokens(error)}); run the same command again, what was sent is not sent twice")


def _without_tokens(error: Exception) -> str:
    return re.sub(r"hf_\w+", "hf_***", (str(error).strip() or type(error).__name__).splitlines()[0])
