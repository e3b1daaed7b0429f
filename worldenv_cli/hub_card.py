"""The card that goes to the Hub: what the artifact's own says, with the name that it has there, and the metadata that the Hub sorts by."""

import re
from collections.abc import Sequence
from pathlib import Path

from .artifacts import PAPER, content_hash
from .atomic import read_json
from .destination import kind_of
from .errors import UserError
from .evaluation.statistics import wilson
from .hub import REFERENCE
from .merged import MEMBERS, Merged
from .outgoing import Outgoing, checkpoint_of, is_run
from .provenance import CARD, verify

PLACEHOLDER = "owner/name"  # in the snippets of cards that are not on the Hub yet
BARE = "---\nlibrary_name: worldenv\ntags:\n- worldenv\n---\n\n# {name}\n\nMade by worldenv, not evaluated yet.\n"
CLASSES = {"pi0": "lerobot.policies.pi0.modeling_pi0.PI0Policy", "smolvla": "lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


def write_names(outgoing: Outgoing, repository: str) -> None:
    """The real address in every snippet: of the repository, and of the folder in it in which a card lies."""
    for name in outgoing.files:
        if name.rpartition("/")[2] == CARD:
            address = "/".join([repository, *name.split("/")[:-1]])
            outgoing.put(name, outgoing.text(name).replace(PLACEHOLDER, address))


def complete(
    outgoing: Outgoing,
    folder: Path,
    repository: str,
    *,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
    merged: Merged | None = None,
) -> None:
    """Put into the repository's card what the command line says, else what the card says already, else what the artifact in `folder` knows."""
    from huggingface_hub import DatasetCard, ModelCard

    if CARD not in outgoing.files:
        outgoing.put(CARD, BARE.format(name=folder.absolute().name))
    of_dataset = kind_of(folder) == "dataset"
    if of_dataset and base_model:
        raise UserError(f"{folder}: a dataset has no base model; leave --base-model out")
    card = (DatasetCard if of_dataset else ModelCard)(outgoing.text(CARD), ignore_metadata_errors=True)
    data, run = card.data, _run_of(folder)
    checkpoint = checkpoint_of(folder / "post-trained" if is_run(folder) else folder)
    data.license = license or data.license or _license_of(checkpoint) or "unknown"
    if of_dataset:
        data.size_categories = [_size(folder)]
        if datasets:
            data.source_datasets = list(datasets)
    else:
        data.base_model = base_model or data.base_model or _repository(checkpoint)
        data.datasets = list(datasets) or data.datasets or _demonstrations(run)
        data.tags = list(dict.fromkeys([*(data.tags or ()), PAPER]))
        if results := _results(folder, run):
            data.model_name, data.eval_results = repository.partition("/")[2], results
    if merged is not None:
        if merged.library and not merged.choice:  # several policies lie in folders, which other libraries do not look into
            data.library_name = merged.library
        card.text = card.text.rstrip() + "\n\n" + "\n".join(_about(merged, repository)) + "\n"
    outgoing.put(CARD, str(card))


def _repository(checkpoint: str | None) -> str | None:
    """owner/name of a checkpoint that is on the Hub."""
    match = REFERENCE.fullmatch(checkpoint) if checkpoint and not Path(checkpoint).exists() else None
    return match["repository"] if match else None


def _license_of(checkpoint: str | None) -> str | None:
    """What the card of a checkpoint says that lies on this machine, in a folder or in the Hub's cache."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if checkpoint is None:
        return None
    match, card = REFERENCE.fullmatch(checkpoint), Path(checkpoint) / CARD
    if not card.is_file() and match:
        cached = try_to_load_from_cache(match["repository"], CARD, revision=match["revision"])
        card = Path(cached) if isinstance(cached, str) else card
    return ModelCard(card.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data.license if card.is_file() else None


def _run_of(folder: Path) -> Path | None:
    return next((parent for parent in (folder, *folder.absolute().parents) if is_run(parent)), None)


def _demonstrations(run: Path | None) -> list[str] | None:
    """The dataset on the Hub from which a run began."""
    provenance = run / "demonstrations" / "provenance.json" if run else None
    source = read_json(provenance).get("downloaded") if provenance and provenance.is_file() else None
    return [source[0]] if source else None


def _size(folder: Path) -> str:
    path = folder / "meta" / "info.json"
    steps = read_json(path).get("total_frames", 0) if path.is_file() else 0
    return next((name for most, name in SIZES if steps < most), "n>10M")


def _results(folder: Path, run: Path | None) -> list:
    """Success from the starts of the evaluation, of each task and of all, where the run that the policy lies in was evaluated with these weights."""
    from huggingface_hub import EvalResult

    policy = folder / "post-trained" if is_run(folder) else folder
    if run is None or kind_of(policy) != "policy":
        return []
    name = policy.absolute().relative_to(run.absolute()).as_posix()
    played = run / "eval" / name.replace("/", "-")
    if not (played / "outcomes.json").is_file() or read_json(played / "provenance.json").get("inputs", {}).get(name) != content_hash(policy):
        return []
    verify(played)
    outcomes, environment = read_json(played / "outcomes.json"), _environment(run)
    counts = {"all tasks": outcomes["outcomes"]}
    for task, success in zip(outcomes["tasks"], outcomes["outcomes"], strict=True):
        counts.setdefault(task, []).append(success)
    results = []
    for task, success in counts.items():
        interval = wilson(sum(success), len(success))
        results.append(
            EvalResult(
                task_type="robotics",
                task_name=task,
                dataset_type=re.sub(r"\W+", "-", environment).strip("-").lower(),
                dataset_name=environment,
                dataset_config=task,
                metric_type="success_rate",
                metric_name=f"success, {sum(success)} of n = {len(success)} episodes",
                metric_value=round(sum(success) / len(success), 4),
                metric_args={"n": len(success), "low_95": round(interval.low, 4), "high_95": round(interval.high, 4)},
            )
        )
    return results


def _environment(run: Path) -> str:
    report = read_json(run / "eval.json") if (run / "eval.json").is_file() else {}
    return str(report.get("protocol", {}).get("environment") or "real environment")


def _about(merged: Merged, repository: str) -> list[str]:
    """What a reader of merged weights must know who has nothing else."""
    lines, where, path = ["Its adapters are part of the weights."], "The repository holds", repository
    if merged.choice:
        rows = (f"| {instruction} | `{MEMBERS}/{member}` |" for instruction, member in merged.choice.items())
        table = ["| instruction | policy |", "|---|---|", *rows]
        lines = ["Adapters are part of the weights. Several policies, each in a folder of its own:", "", *table]
        where, path = f"Each folder in `{MEMBERS}` holds", f"policy/{MEMBERS}/{next(iter(merged.choice.values()))}"
    if merged.library == "lerobot":
        units = f"it reads and writes recorded units. Cameras in the policy's order: {', '.join(merged.cameras)}."
        download = [f"hf download {repository} --local-dir policy"] if merged.choice else []
        lines += [
            "",
            f"{where} a checkpoint of lerobot; {units}",
            f"In Python it is `{CLASSES[merged.family]}.from_pretrained`; on the command line:",
        ]
        lines += ["", "```shell", *download, f"lerobot-eval --policy.path={path}", "```"]
    elif merged.family == "openvla":
        convert = "`torch.save(safetensors.torch.load_file(name), name.replace('.safetensors', '.pt'))`"
        lines += ["", f"{where} a checkpoint in OpenVLA-OFT's layout. Its heads are safetensors; OpenVLA-OFT's own code wants pickles: {convert}."]
    return lines
