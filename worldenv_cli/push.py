"""What goes up to the Hub: artifacts and whole runs, with their cards; only what changed travels, and what was cut off goes on."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .atomic import read_json
from .errors import UserError
from .hub import REPOSITORY, told
from .models import load_model, save_merged
from .policies.lora import AdaptedPolicy

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
        if not re.fullmatch(REPOSITORY, name):
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
    with told(repository):
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
    policy = load_model(folder, "policy")
    if not isinstance(policy, AdaptedPolicy):
        raise UserError(f"{folder}: a {type(policy).__name__} has no adapter to merge; push it as it is")
    card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[-1] + "\nIts adapter is part of the weights.\n"
    save_merged(place, policy, read_json(folder / "provenance.json"), card)


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
