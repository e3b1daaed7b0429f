"""Artifacts: the folders that a stage reads and the one it writes, what they were made from, and checkpoints on the way to one."""

import hashlib
import json
import platform
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, distributed
from .atomic import read_json, read_tensors, recover, staged, sweep, write_json, write_tensors
from .confine import inside
from .destination import check_destination as check_destination
from .errors import UserError
from .provenance import PROVENANCE, total_hash, verify, write_provenance

if TYPE_CHECKING:
    import numpy as np
    import torch

TENSORS = "model.safetensors"
PAPER = "arxiv:2509.24948"  # World-Env, as the Hub tags it
PACKAGES = ("torch", "transformers", "diffusers", "peft", "datasets", "numpy", "mujoco", "metaworld", "gymnasium")
FORMAT = ".".join(__version__.split(".")[:2])  # artifacts of another major or minor version are refused


def write_artifact(folder: Path, kind: str, config: dict, tensors: "dict[str, torch.Tensor] | None", provenance: dict, card: str) -> None:
    """Write an artifact's own files into a folder that may hold others (a dataset's); inside `staged`, for it to appear whole.

    Call it last: provenance.json records the sha256 of every file that is there by then.
    """
    mark(folder, kind, config)
    write_card(folder, kind, card)
    if tensors is not None:
        check_tensors(tensors, f"the {kind}", "training went wrong: lower its learning rate or check the data, and run again")
        write_tensors(folder / TENSORS, tensors)
    write_provenance(folder, provenance)


def mark(folder: Path, kind: str, config: dict | None = None) -> None:
    """Write config.json, by which a folder is known to be of this project, and of which kind."""
    write_json(folder / "config.json", {**(config or {}), "kind": kind, "worldenv_version": __version__})


def write_card(folder: Path, kind: str, card: str) -> None:
    """README.md with the front matter that the Hub reads; a dataset's says where its tables lie and that lerobot opens it."""
    from huggingface_hub import DatasetCardData, ModelCardData

    if kind == "dataset":
        configs = [{"config_name": "default", "data_files": "data/*/*.parquet"}]
        data = DatasetCardData(task_categories=["robotics"], tags=["LeRobot", "worldenv"], configs=configs)
    else:
        data = ModelCardData(library_name="worldenv", pipeline_tag="robotics", tags=["worldenv", "robotics", kind, PAPER])
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{card.strip()}\n", encoding="utf-8")


def save_artifact(folder: Path, kind: str, config: dict, tensors: "dict[str, torch.Tensor] | None", provenance: dict, card: str) -> None:
    """Write or replace a whole artifact. `card` is Markdown without front matter; `provenance` comes from `make_provenance`."""
    with staged(folder) as partial:
        write_artifact(partial, kind, config, tensors, provenance, card)


def load_config(folder: Path, kind: str, made_by: str = "make it first") -> dict:
    """The config an artifact was saved with, once its kind and version are known to be right.

    `made_by` ends the message where there is no artifact: "run `worldenv sft RECIPE` first".
    """
    path = inside(Path(folder), "config.json", folder)
    if not path.is_file():
        what = "holds no config.json" if Path(folder).is_dir() else "does not exist"
        raise UserError(f"{folder} {what}: expected the folder of a {kind}; {made_by}")
    config = read_json(path)
    found, version = config.pop("kind", None), str(config.pop("worldenv_version", None))
    if found != kind:
        raise UserError(f"{folder} is of kind {found!r}: expected {kind!r}; check the path, or {made_by}")
    if version.split(".")[:2] != FORMAT.split("."):
        raise UserError(
            f"{path} was written by worldenv {version}: this is {__version__}, which reads {FORMAT}.*; install that version or make it again"
        )
    if (Path(folder) / PROVENANCE).is_file():
        verify(Path(folder))
    return config


def load_tensors(folder: Path) -> "dict[str, torch.Tensor]":
    """All tensors of an artifact, on the CPU."""
    path = inside(Path(folder), TENSORS, folder)
    if not path.is_file():
        raise UserError(f"{folder} holds no {TENSORS}: expected the weights there; make the artifact or download it again")
    tensors = read_tensors(path)
    check_tensors(tensors, path, "make it or download it again")
    return tensors


def check_tensors(tensors: "dict[str, torch.Tensor]", where: str | Path, advice: str) -> None:
    """Raise UserError where a number is NaN or infinite. A policy of such weights can still act, and be called a success."""
    import torch

    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_floating_point() and tensor.element_size() < 2:
            raise UserError(f"{where}: {name} is of type {str(tensor.dtype).removeprefix('torch.')}, expected float16, bfloat16 or float32; {advice}")
        if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor.detach())):
            wrong = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"{where}: {wrong} of {tensor.numel()} numbers in {name} are not finite; {advice}")


def load_into(module: "torch.nn.Module", tensors: "dict[str, torch.Tensor]", where: str | Path, of: "dict[str, torch.Tensor] | None" = None) -> None:
    """`load_state_dict`, with every missing, unexpected and misshapen tensor in one message. `of`: only these of the module's are wanted."""
    own = module.state_dict() if of is None else of
    problems = misfits(*({name: tuple(tensor.shape) for name, tensor in named.items()} for named in (own, tensors)))
    if problems:
        raise UserError(f"{where}: its tensors do not fit {type(module).__name__} ({problems}); make it again with this configuration")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            types = (str(one.dtype).removeprefix("torch.") for one in (tensor, own[name]))
            raise UserError(f"{where}: {name} is of type {' instead of '.join(types)}; make it again with this configuration")
    module.load_state_dict(tensors, strict=of is None)


def misfits(wanted: dict[str, tuple], found: dict[str, tuple]) -> str:
    """Every missing, unexpected and misshapen tensor of two {name: shape}, in one line; empty where they fit."""
    told = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "wrong shape": [
            f"{name} {found[name]} instead of {wanted[name]}" for name in sorted(wanted.keys() & found.keys()) if found[name] != wanted[name]
        ],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)


# Provenance


def content_hash(folder: Path, command: str = "") -> str:
    """One sha256 for what an artifact holds, once its files are known to be those that were written. Its card may change without consequence.

    Raises UserError where a file was changed, and where there is no artifact; `command` is the one that makes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: expected an artifact's folder there")
    return total_hash(verify(folder, command))


def fingerprint(settings: dict, inputs: dict[str, str]) -> str:
    """What decides whether a stage must run again: its settings (as JSON), its inputs' hashes and the format of artifacts."""
    text = json.dumps({"format": FORMAT, "settings": settings, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(folder: Path, wanted: str, command: str = "") -> bool:
    """Whether `folder` holds what a stage of that fingerprint would write. Raises UserError where it does, but a file was changed since."""
    recover(folder)
    path = Path(folder) / PROVENANCE
    try:
        current = path.is_file() and read_json(path).get("fingerprint") == wanted
    except UserError:
        return False
    if current:
        verify(Path(folder), command)
    return current


def make_provenance(settings: dict, inputs: dict[str, str], seed: int) -> dict:
    """What an artifact was made from, for provenance.json."""
    made = {"fingerprint": fingerprint(settings, inputs), "seed": seed, "inputs": inputs, "settings": settings}
    return {**made, "packages": package_versions()}


def package_versions() -> dict[str, str]:
    """Versions that a result may depend on, without importing anything."""
    versions = {"worldenv": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


# Checkpoints


class Checkpoint:
    """The last two states of a training run: the newest one to go on from, and the one before should that be damaged."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def save(self, step: int, tensors: "dict[str, torch.Tensor]", state: dict) -> None:
        """Write the state after `step` steps; of several processes the first one does. Later ones belong to a run that was abandoned, and go."""
        if not distributed.first():
            return
        if self.folder.is_dir():
            sweep(self.folder, "step_*")
        with staged(self._of(step)) as partial:
            write_tensors(partial / TENSORS, tensors)
            write_json(partial / "state.json", state)
            write_provenance(partial, {})
        steps = self._steps()
        kept = [other for other in steps if other <= step][-2:]
        for old in set(steps) - set(kept):
            shutil.rmtree(self._of(old))

    def latest(self) -> "tuple[int, dict[str, torch.Tensor], dict] | None":
        """(step, tensors, state) of the newest state that can be read, None where there is none."""
        for step in reversed(self._steps()):
            try:
                verify(self._of(step))
                return step, load_tensors(self._of(step)), read_json(self._of(step) / "state.json")
            except (UserError, FileNotFoundError) as error:
                warnings.warn(f"checkpoint skipped, falling back to the one before: {error}", stacklevel=2)
        return None

    def clear(self) -> None:
        """Delete all states; the folder too, unless it holds something else."""
        for step in self._steps():
            shutil.rmtree(self._of(step))
        if self.folder.is_dir():
            sweep(self.folder, "step_*")
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _of(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.folder.glob("step_*") if path.name[5:].isdigit())


def under(prefix: str, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors whose names begin with `prefix`, without it: how one checkpoint holds several modules."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: "torch.optim.Optimizer") -> "tuple[dict[str, torch.Tensor], dict]":
    """An optimizer's state as tensors named `<parameter>.<what>` and as JSON."""
    import torch

    whole = optimizer.state_dict()
    tensors, state = {}, {}
    for parameter, values in whole["state"].items():
        state[str(parameter)] = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
        tensors |= {f"{parameter}.{name}": value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return tensors, {"state": state, "groups": whole["param_groups"]}


def load_optimizer(optimizer: "torch.optim.Optimizer", tensors: "dict[str, torch.Tensor]", state: dict) -> None:
    """The inverse of `optimizer_tensors`. Moments lie in memory as their parameters do (channels last, say): fused steps go by memory."""
    import torch

    values = {int(parameter): dict(others) for parameter, others in state["state"].items()}
    for name, tensor in tensors.items():
        parameter, _, what = name.partition(".")
        values[int(parameter)][what] = tensor
    groups = [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()} for group in state["groups"]
    ]
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    for parameter, found in optimizer.state.items():
        for name, value in found.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                found[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rng_state(generator: "np.random.Generator") -> "tuple[dict[str, torch.Tensor], dict]":
    """Where torch's global generators (CPU and CUDA) and a numpy one stand, as tensors and as JSON."""
    import torch

    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors = {"cpu": torch.get_rng_state()} | {f"cuda.{index}": state for index, state in enumerate(devices)}
    return tensors, {"numpy": generator.bit_generator.state}


def set_rng_state(generator: "np.random.Generator", tensors: "dict[str, torch.Tensor]", state: dict) -> None:
    """The inverse of `rng_state`; devices that are not here any more are left out."""
    import torch

    torch.set_rng_state(tensors["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
    generator.bit_generator.state = state["numpy"]
