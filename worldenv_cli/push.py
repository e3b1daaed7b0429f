"""What goes up to the Hub: artifacts and whole runs, with their cards; only what changed travels, and what was cut off goes on."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import __version__, hub_card
from .adapters import add_adapters
from .atomic import read_json
from .data.actions import ActionScale
from .destination import kind_of
from .errors import UserError
from .hub import REPOSITORY, told
from .merged import Merged, write_merged
from .models import load_model
from .outgoing import Outgoing, collect, hide_local_paths
from .progress import say
from .provenance import CARD

LEROBOT_TAG = "v3.0"  # lerobot looks for the tag that is the version of the format


def push(
    folder: Path,
    repository: str,
    *,
    public: bool = False,
    merged: bool = False,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """Upload an artifact or a whole run and return its address; files that are there already are not sent again.

    With `merged` a policy's adapters go up as part of its weights. `base_model` and `datasets`, repositories owner/name, and `license` go into the
    card; without them the card says what the artifact knows. Nothing in `folder` changes. Raises UserError for a folder that is neither artifact
    nor run, a wrong name, a policy without an adapter to merge, links out of the folder, and whatever the Hub refuses.
    """
    for name in (repository, *([base_model] if base_model else []), *datasets):
        if not re.fullmatch(REPOSITORY, name):
            raise UserError(f"{name!r}: expected a repository owner/name")
    outgoing, about, kind = collect(folder), None, kind_of(folder) or "run"
    if merged and kind != "policy":
        advice = "name one of its policies, such as its folder post-trained" if kind == "run" else "push it without --merged"
        raise UserError(f"{folder} is of kind {kind!r}, and only a policy has adapters to merge; {advice}")
    with tempfile.TemporaryDirectory() as place:
        if merged:
            about = _merge(folder, Path(place), outgoing)
            outgoing = collect_merged(Path(place), outgoing)
        else:
            add_adapters(outgoing, base_model)
        hub_card.complete(outgoing, folder, repository, base_model=base_model, datasets=datasets, license=license, merged=about)
        hub_card.write_names(outgoing, repository)
        hide_local_paths(outgoing, folder, base_model)
        return _upload(outgoing, repository, kind, public)


def _merge(folder: Path, place: Path, outgoing: Outgoing) -> Merged:
    """The policy of `folder` with its adapters in its weights, in `place`."""
    policy = load_model(folder, "policy")
    text = outgoing.text(CARD).split("---\n", 2)[-1] if CARD in outgoing.files else ""
    try:
        return write_merged(place, policy, read_json(folder / "provenance.json"), text, recorded_scale(folder, policy.config.action_size))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def collect_merged(place: Path, unmerged: Outgoing) -> Outgoing:
    """All that was written there, under the card of what was merged, metadata and all."""
    files: dict[str, Path | bytes] = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    return Outgoing(files | {CARD: unmerged.files[CARD]})


def recorded_scale(folder: Path, size: int) -> ActionScale:
    """How the run that a policy lies in scaled what was recorded; said where no run tells."""
    for parent in folder.absolute().parents:
        description = parent / "demonstrations" / "meta" / "worldenv.json"
        if description.is_file():
            return ActionScale.described(read_json(description).get("action", {}), size, str(description))
    say(f"{folder}: not in the folder of its run, so that recorded units are unknown; its actions stay as the policy plays them")
    return ActionScale.identity(size)


def _upload(outgoing: Outgoing, repository: str, kind: str, public: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    repo_type, api = "dataset" if kind == "dataset" else "model", HfApi()
    with told(repository, "upload"):
        address = api.create_repo(repository, repo_type=repo_type, private=not public, exist_ok=True)
        files = [CommitOperationAdd(name, content) for name, content in sorted(outgoing.files.items())]
        api.create_commit(repository, files, repo_type=repo_type, commit_message=f"worldenv {__version__}: {kind}")
        if kind == "dataset":
            _tag(api, repository)
    return str(address)


def _tag(api, repository: str) -> None:
    """Move the format's tag to what was just uploaded."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.delete_tag(repository, tag=LEROBOT_TAG, repo_type="dataset")
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
    api.create_tag(repository, tag=LEROBOT_TAG, repo_type="dataset", exist_ok=True)
