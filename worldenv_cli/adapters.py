"""A policy's adapters in peft's layout too, for readers who have peft and the policy that they change.

adapters/0, adapters/1 ...      in the order in which they are put on, each merged before the next; of several members adapters/<member>/0 ...
"""

import json
import tempfile
from pathlib import Path

from .atomic import opened, write_tensors
from .destination import kind_of
from .models import adapter_settings
from .outgoing import Outgoing
from .policies.lora import LoraSettings

FOLDER = "adapters"
LORA, SAVED = ".lora_", ".modules_to_save.default."


def add_adapters(outgoing: Outgoing, base_model: str | None) -> None:
    """Put them beside every policy that has any."""
    import torch

    for place in outgoing.artifacts():
        prefix = f"{place}/" if place else ""
        weights = outgoing.files.get(f"{prefix}model.safetensors")
        if not isinstance(weights, Path) or kind_of(weights.parent) != "policy":
            continue
        config = json.loads(outgoing.text(f"{prefix}config.json"))
        for name, beginning, settings in adapter_settings(config):
            with opened(weights) as file:
                names = [key for key in file.keys() if key.startswith(beginning)]
                tensors: dict[str, torch.Tensor] = {
                    _peft_name(key.removeprefix(beginning)): file.get_tensor(key) for key in names if LORA in key or SAVED in key
                }
            if tensors:
                for file_name, content in _peft_files(tensors, settings, base_model).items():
                    outgoing.files[f"{prefix}{FOLDER}/{name}/{file_name}"] = content


def _peft_name(name: str) -> str:
    """model.base_model.model.<module>.lora_A.default.weight -> base_model.model.<module>.lora_A.weight, and so with modules that learn in full."""
    return name.removeprefix("model.").replace(SAVED, ".").replace(".default.", ".")


def _peft_files(tensors: dict, settings: LoraSettings, base_model: str | None) -> dict[str, bytes]:
    from peft import LoraConfig

    beginning = "base_model.model."
    changed = sorted({key.removeprefix(beginning).partition(LORA)[0] for key in tensors if LORA in key})
    heads = sorted({key.removeprefix(beginning).partition(".")[0] for key in tensors if LORA not in key})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=changed,
        modules_to_save=heads or None,
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        write_tensors(Path(place) / "adapter_model.safetensors", tensors)
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}
