"""A SmolVLA checkpoint as lerobot 0.4 writes one, with random weights and of any size, so that tests need neither a download nor the fixture."""

from pathlib import Path

import numpy as np
import torch

from worldenv_cli.atomic import write_json, write_tensors
from worldenv_cli.data.statistics import column_statistics
from worldenv_cli.policies.lerobot import read_lerobot
from worldenv_cli.policies.smolvla.checkpoint import UNUSED, published, smolvla_config
from worldenv_cli.policies.smolvla.model import SmolVLA

VLM = "tiny_vlm"  # folder inside the checkpoint: SmolVLM's config and tokenizer
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = ["pick up the bowl and put it on the plate", "open the top drawer", "press the coffee button", "close the drawer and push the cup"]


def write_smolvla(
    folder: Path,
    *,
    seed: int = 0,
    cameras: tuple[str, ...] = ("image",),
    state_size: int = 4,
    action_size: int = 4,
    chunk: int = 4,
    steps: int = 4,
    max_state: int = 8,
    max_action: int = 8,
    resolution: int = 64,  # of the recorded pictures, pixels
    image_size: int = 32,
    patch: int = 8,
    joined: int = 2,
    layers: int = 2,
    width: int = 32,
    heads: tuple[int, int] = (4, 2),  # of queries, of keys and values
    expert_width: float = 0.75,
    self_attention_every: int = 2,
    empty_cameras: int = 0,
    padding: str = "longest",
    max_length: int = 24,
    mode: str = "MEAN_STD",
    load_vlm_weights: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """The checkpoint's folder, which is `folder`: everything it needs lies inside."""
    folder = Path(folder)
    _write_vlm(folder / VLM, image_size, patch, joined, layers, width, heads)
    modes = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    state, action = {"type": "STATE", "shape": [state_size]}, {"type": "ACTION", "shape": [action_size]}
    pictures = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, resolution, resolution]} for name in cameras}
    inputs, outputs = pictures | {"observation.state": state}, {"action": action}
    config = {"type": "smolvla", "input_features": inputs, "output_features": outputs, "chunk_size": chunk, "n_action_steps": chunk}
    config |= {"max_state_dim": max_state, "max_action_dim": max_action, "num_steps": steps, "resize_imgs_with_padding": [image_size] * 2}
    config |= {"empty_cameras": empty_cameras, "normalization_mapping": modes, "tokenizer_max_length": max_length, "pad_language_to": padding}
    config |= {"vlm_model_name": VLM, "load_vlm_weights": load_vlm_weights, "num_vlm_layers": layers, "num_expert_layers": -1, "prefix_length": -1}
    config |= {"attention_mode": "cross_attn", "self_attn_every_n_layers": self_attention_every, "expert_width_multiplier": expert_width}
    write_json(folder / "config.json", config | {"min_period": 0.004, "max_period": 4.0, "add_image_special_tokens": False})
    tokenizer = {"max_length": max_length, "task_key": "task", "padding_side": "right", "padding": padding, "truncation": True, "tokenizer_name": VLM}
    write_processors(folder, inputs, outputs, modes, tokenizer, statistics(state_size, action_size, seed), newline="smolvla_new_line_processor")

    torch.manual_seed(seed)
    model = SmolVLA(smolvla_config(read_lerobot(folder, "smolvla")))
    tensors = {published(name): (tensor + 0.1 * torch.randn_like(tensor)).to(dtype) for name, tensor in model.state_dict().items()}
    tensors |= dict(zip(UNUSED, (torch.randn(model.vlm.embed_tokens.weight.shape), torch.ones(width)), strict=True))
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def write_processors(folder: Path, inputs: dict, outputs: dict, modes: dict, tokenizer: dict, numbers: dict, newline: str) -> None:
    """The two pipelines and their statistics."""
    before, after = "policy_preprocessor_step_5_normalizer_processor.safetensors", "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    normaliser = {"eps": 1e-8, "features": inputs | outputs, "norm_map": modes}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": newline, "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokenizer},
        device,
        {"registry_name": "normalizer_processor", "config": normaliser, "state_file": before},
    ]
    write_json(folder / "policy_preprocessor.json", {"name": "policy_preprocessor", "steps": steps})
    steps = [{"registry_name": "unnormalizer_processor", "config": normaliser | {"features": outputs}, "state_file": after}, device]
    write_json(folder / "policy_postprocessor.json", {"name": "policy_postprocessor", "steps": steps})
    for name in (before, after):
        write_tensors(folder / name, numbers)


def statistics(state_size: int, action_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Of random states and actions, under the names of a normaliser's file."""
    rng = np.random.default_rng(seed)
    values = {"observation.state": rng.normal(0.2, 0.7, (100, state_size)), "action": rng.normal(-0.1, 0.4, (100, action_size))}
    found = {feature: column_statistics(rows) for feature, rows in values.items()}
    return {f"{feature}.{name}": torch.tensor(value, dtype=torch.float32) for feature, one in found.items() for name, value in one.items()}


def write_tokenizer(folder: Path, special: tuple[str, ...] = SPECIAL, size: int = 320) -> int:
    """A byte-level BPE tokenizer trained on a few sentences; the last special token pads. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[-1], unk_token=special[0])
    fast.save_pretrained(folder)
    return len(fast)


def _write_vlm(folder: Path, image_size: int, patch: int, joined: int, layers: int, width: int, heads: tuple[int, int]) -> None:
    from transformers import SmolVLMConfig

    size = write_tokenizer(folder)
    text = {"model_type": "llama", "vocab_size": size, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers + 1}
    text |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 8, "rope_theta": 100_000, "rms_norm_eps": 1e-5}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": image_size}
    SmolVLMConfig(text_config=text, vision_config=vision | {"patch_size": patch}, scale_factor=joined, image_token_id=0).save_pretrained(folder)
