"""The Hub between the steps: artifacts and whole runs go up, references `owner/name[/folder][@revision]` come down.

Everything goes through `huggingface_hub`, so that HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its cache mean what its users know. No token is ever
part of a message.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import __version__
from .atomic import disk_full_told, is_disk_full, read_json
from .errors import UserError

REFERENCE = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?P<folder>(/[\w-][\w.-]*)*)(@(?P<revision>[\w./-]+))?")
LEROBOT_TAG = "v3.0"  # lerobot looks for the tag that is the version of the format
KEPT_HERE = [".*", "**/.*", "metrics/**", "**/*.partial*"]


def push(
    folder: Path, repository: str, *, public: bool = False, merged: bool = False, base_model: str | None = None, datasets: Sequence[str] = ()
) -> str:
    """Upload an artifact or a whole run and return its address; files that are there already are not sent again.

    With `merged` a policy's adapter goes up as part of its weights. `base_model` and `datasets`, repositories owner/name, are written into the
    card that lies in the folder too: artifacts do not count their cards. Raises UserError for a folder that is neither artifact nor run, a wrong
    name, a policy without an adapter to merge, and whatever the Hub refuses.
    """
    for name in (repository, *([base_model] if base_model else []), *datasets):
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
            raise UserError(f"{name!r}: expected a repository owner/name")
    kind = _kind(folder)
    if base_model or datasets:
        _complete_card(folder, base_model, datasets)
    if merged:
        with tempfile.TemporaryDirectory() as place:
            _merge(folder, Path(place))
            return _upload(Path(place), repository, kind, public)
    return _upload(folder, repository, kind, public)


def _upload(folder: Path, repository: str, kind: str, public: bool) -> str:
    repo_type = "dataset" if kind == "dataset" else "model"
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(repository):
        address = api.create_repo(repository, repo_type=repo_type, private=not public, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type=repo_type,
            commit_message=f"worldenv {__version__}: {kind}",
            ignore_patterns=KEPT_HERE,
        )
        if kind == "dataset":
            _tag(api, repository)
    return str(address)


def resolve(reference: str | Path, repo_type: str = "model") -> Path:
    """A folder on this machine: the path itself, or a download of the Hub's `owner/name[/folder][@revision]`. A Path is never looked for there."""
    if Path(reference).exists():
        return Path(reference)
    match = REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if not match:
        raise UserError(f"{reference} does not exist: expected a folder or a Hub reference owner/name[@revision]; check the path")
    from huggingface_hub import constants, snapshot_download

    inside = match["folder"].strip("/")
    patterns = [f"{inside}/**"] if inside else None
    with disk_full_told(Path(constants.HF_HUB_CACHE)), _told(str(reference)):
        snapshot = Path(snapshot_download(match["repository"], revision=match["revision"], repo_type=repo_type, allow_patterns=patterns))
    if not (snapshot / inside).is_dir():
        raise UserError(f"{reference}: the repository has no folder {inside!r}; look at its files")
    return snapshot / inside


def commit_of(folder: Path) -> str | None:
    """The commit that a downloaded folder is of, for provenance: the cache keeps a snapshot under its name. None for other folders."""
    return next((part for part in folder.parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)


def repository_of(folder: Path) -> str:
    """The owner/name of a downloaded folder: in the cache, models--owner--name/snapshots/commit."""
    cached = next(part for part in folder.parts if re.match(r"(models|datasets)--", part))
    return cached.split("--", 1)[1].replace("--", "/")


def _complete_card(folder: Path, base_model: str | None, datasets: Sequence[str]) -> None:
    from huggingface_hub import RepoCard

    if not (folder / "README.md").is_file():
        raise UserError(f"{folder}: no card (README.md) to complete; evaluate the run first, or make the artifact again")
    card = RepoCard.load(folder / "README.md", ignore_metadata_errors=True)
    if base_model:
        card.data["base_model"] = base_model
    if datasets:
        card.data["datasets"] = list(datasets)
    card.save(folder / "README.md")


def _merge(folder: Path, place: Path) -> None:
    """The policy of `folder` with its adapter in its weights, as an artifact in `place`."""
    from .models import load_model, save_model
    from .policies.lora import AdaptedPolicy

    policy = load_model(folder, "policy")
    if not isinstance(policy, AdaptedPolicy):
        raise UserError(f"{folder}: a {type(policy).__name__} has no adapter to merge; push it as it is")
    card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[-1] + "\nIts adapter is part of the weights.\n"
    save_model(place, "policy", policy.merged(), read_json(folder / "provenance.json"), card)


def _kind(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return str(read_json(folder / "config.json").get("kind"))
    if (folder / "recipe.yaml").is_file():
        return "run"
    raise UserError(f"{folder}: neither an artifact (config.json) nor a run (recipe.yaml); check the path")


def _tag(api, repository: str) -> None:
    """Move the format's tag to what was just uploaded."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.delete_tag(repository, tag=LEROBOT_TAG, repo_type="dataset")
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
    api.create_tag(repository, tag=LEROBOT_TAG, repo_type="dataset", exist_ok=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
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
