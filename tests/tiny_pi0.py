"""A pi0 checkpoint for tests: random weights, random statistics and a real tokenizer of bytes, in lerobot's layout or in transformers'."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
LEROBOT = {  # beginnings of names in transformers' model and in lerobot's files
    "model.vlm.language_model.embed_tokens.": "model.paligemma_with_expert.paligemma.lm_head.",
    "model.vlm.vision_tower.": "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.",
    "model.vlm.": "model.paligemma_with_expert.paligemma.model.",
    "model.dit.embed_tokens.": "model.paligemma_with_expert.gemma_expert.lm_head.",
    "model.dit.": "model.paligemma_with_expert.gemma_expert.model.",
    "embed_action_time.": "model.",
    "action_out_proj.": "model.action_out_proj.",
}


def write_pi0(
    folder: Path,
    *,
    seed: int = 0,
    cameras: tuple[str, ...] = ("image",),
    empty_cameras: int = 0,
    image: tuple[int, int] = (64, 64),
    state_size: int = 4,
    action_size: int = 4,
    chunk: int = 5,
    steps: int = 4,
    max_state: int = 32,
    max_action: int = 32,
    resolution: int = 28,
    patch: int = 14,
    vision: tuple[int, int, int] = (32, 40, 1),
    width: int = 48,
    mlp: int = 56,
    expert_width: int = 32,
    expert_mlp: int = 40,
    head_dim: int = 8,
    layers: int = 2,
    tokens: int = 24,
    layout: str = "lerobot",
) -> Path:
    """`image` (H, W) is what config.json says of the cameras; `vision` is width, MLP width and layers. The same seed gives both layouts the
    same weights and statistics.
    """
    from transformers import PI0Config, PI0ForConditionalGeneration

    vocabulary = len(SPECIAL) + 256
    gemma = {"model_type": "gemma", "vocab_size": vocabulary, "num_hidden_layers": layers, "head_dim": head_dim}
    gemma |= {"num_attention_heads": 8, "num_key_value_heads": 1}
    architecture = {
        "vlm_config": {
            "model_type": "paligemma",
            "hidden_size": width,
            "projection_dim": width,
            "image_token_index": vocabulary,
            "text_config": gemma | {"hidden_size": width, "intermediate_size": mlp},
            "vision_config": {
                "model_type": "siglip_vision_model",
                **dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), vision, strict=True)),
                "num_attention_heads": 16,
                "patch_size": patch,
                "image_size": resolution,
                "vision_use_head": False,
            },
        },
        "dit_config": gemma | {"hidden_size": expert_width, "intermediate_size": expert_mlp},
        "chunk_size": chunk,
        "max_state_dim": max_state,
        "max_action_dim": max_action,
        "num_inference_steps": steps,
    }
    config = PI0Config.from_dict(architecture)
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        shapes = {name: tensor.shape for name, tensor in PI0ForConditionalGeneration(config).state_dict().items()}
    tensors = {name: _random(name, shape, random) for name, shape in sorted(shapes.items())}
    statistics = {
        f"{feature}.{name}": torch.rand(size, generator=random) + (0.3 if name == "std" else -0.5)
        for feature, size in (("observation.state", state_size), ("action", action_size))
        for name in ("mean", "std")
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "transformers":
        return _as_transformers(folder, config.to_dict(), tensors, statistics)
    features = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, *image]} for name in cameras}
    features |= {f"observation.images.empty_camera_{i}": {"type": "VISUAL", "shape": [3, resolution, resolution]} for i in range(empty_cameras)}
    written = {
        "type": "pi0",
        "input_features": features | {"observation.state": {"type": "STATE", "shape": [state_size]}},
        "output_features": {"action": {"type": "ACTION", "shape": [action_size]}},
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "chunk_size": chunk,
        "n_action_steps": chunk,
        "max_state_dim": max_state,
        "max_action_dim": max_action,
        "num_inference_steps": steps,
        "min_period": 0.004,
        "max_period": 4.0,
        "image_resolution": [resolution, resolution],
        "empty_cameras": empty_cameras,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "tokenizer_max_length": tokens,
    }
    return _as_lerobot(folder, written, tensors, statistics)


def changed(folder: Path, target: Path, tensors=lambda tensors: tensors, **config) -> Path:
    """A copy in lerobot's layout, with other tensors or other words in config.json."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target / path.name)
    _write(target / "config.json", json.loads((folder / "config.json").read_text()) | config)
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


def transformers_own(folder: Path):
    """What transformers itself makes of a folder in its layout."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    model = PI0ForConditionalGeneration(PI0Config.from_dict(json.loads((folder / "config.json").read_text())))
    model.load_state_dict({name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()})
    return model.eval()


def _random(name: str, shape: torch.Size, random: torch.Generator) -> torch.Tensor:
    """Large enough for every input to matter: signals keep their size through a matrix."""
    scale = 1.0 / max(shape[1:].numel(), 1) ** 0.5 if len(shape) > 1 else 0.1
    return torch.randn(shape, generator=random) * scale + (1.0 if name.endswith(("layer_norm1.weight", "layer_norm2.weight")) else 0.0)


def _as_lerobot(folder: Path, config: dict, tensors: dict, statistics: dict) -> Path:
    _write(folder / "config.json", config)
    renamed = {new + name.removeprefix(old): tensor for name, tensor in tensors.items() for old, new in [_first(name)]}
    save_file(renamed, folder / "model.safetensors")
    _tokenizer(bos=True).save_pretrained(folder / "tiny_tokenizer")
    modes = {"eps": 1e-8, "features": {}, "norm_map": config["normalization_mapping"]}
    tokens = {"max_length": config["tokenizer_max_length"], "padding_side": "right", "padding": "max_length", "tokenizer_name": "tiny_tokenizer"}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "pi0_new_line_processor", "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokens},
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
        {"registry_name": "normalizer_processor", "config": modes, "state_file": "policy_preprocessor_step_5_normalizer_processor.safetensors"},
    ]
    after = [
        {"registry_name": "unnormalizer_processor", "config": modes, "state_file": "policy_postprocessor_step_0_unnormalizer_processor.safetensors"}
    ]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        _write(folder / f"{name}.json", {"name": name, "steps": steps})
    for steps in (before, after):
        save_file(statistics, folder / next(step["state_file"] for step in steps if "state_file" in step))
    return folder


def _as_transformers(folder: Path, config: dict, tensors: dict, statistics: dict) -> Path:
    """With sharded weights and the tokenizer as its processor saves it, which adds no <bos>."""
    _write(folder / "config.json", config | {"model_type": "pi0"})
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    _write(folder / "model.safetensors.index.json", {"weight_map": {name: file for file, inside in shards.items() for name in inside}})
    _tokenizer(bos=False).save_pretrained(folder)
    names = {"observation.state": "state", "action": "actions"}
    listed = {f"{names[key.rpartition('.')[0]]}_{key.rpartition('.')[2]}": tensor.tolist() for key, tensor in statistics.items()}
    _write(folder / "processor_config.json", {"processor_class": "PI0Processor"} | listed)
    return folder


def _first(name: str) -> tuple[str, str]:
    return next((old, new) for old, new in LEROBOT.items() if name.startswith(old))


def _tokenizer(bos: bool):
    """Every byte is a token; no text is unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", words.index("<bos>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
