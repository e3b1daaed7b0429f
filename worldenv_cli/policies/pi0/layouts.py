"""What is around the tensors of a pi0 checkpoint: lerobot's config.json, whose sizes the tensors tell, and transformers' files."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ...atomic import read_json
from ...confine import inside
from ...errors import UserError
from ..kinds import OLD_PI0
from ..lerobot import LeRobotCheckpoint
from ..lerobot_steps import TokenizerSettings
from ..normaliser import Normaliser
from ..parts import REFUSALS, told_by
from ..shards import Stored, check_layers, layer_count

HEADS = {"gemma_2b": 8, "gemma_300m": 8}  # attention heads of lerobot's variants: the one size that no tensor tells
VISION_HEADS = 16
TOKENIZER = "google/paligemma-3b-pt-224"
CAMERAS = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]  # of the pretrained model
STATISTICS_FILES = ("processor_config.json", "preprocessor_config.json")

MOST = {"chunk_size": 1000, "max_state_dim": 4096, "max_action_dim": 4096, "num_inference_steps": 1000}

Shapes = dict[str, tuple[int, ...]]  # by the names in Pi0


def lerobot_architecture(checkpoint: LeRobotCheckpoint, shapes: Shapes) -> dict:
    """What transformers' PI0Config takes. config.json names two variants, which are taken for their numbers of heads only."""
    path, config = checkpoint.folder / "config.json", checkpoint.config
    variants = config.get("paligemma_variant"), config.get("action_expert_variant")
    if not all(variant in list(HEADS) for variant in variants):
        if variants == (None, None):
            raise UserError(f"{path}: {OLD_PI0}")
        raise UserError(
            f"{path}: paligemma_variant and action_expert_variant are {variants[0]!r} and {variants[1]!r}: expected names out of "
            f"{', '.join(HEADS)}, which pi0 was published with; name another checkpoint"
        )
    height, width = checkpoint.image_size
    if height != width:
        raise UserError(f"{path}: image_resolution is {height} x {width}: expected a square, as the vision tower does; name another checkpoint")
    vision, text, expert = (_under(prefix, shapes) for prefix in ("vlm.vision_tower.", "vlm.language_model.", "expert.dit."))
    layers = max(_layers(text, path), _layers(expert, path))  # the expert reads the language model's keys and values layer by layer
    language = _gemma(text, HEADS[variants[0]], layers) | {"vocab_size": text.get("embed_tokens.weight", (1,))[0]}
    return {
        "vlm_config": {
            "model_type": "paligemma",
            "hidden_size": language["hidden_size"],
            "projection_dim": language["hidden_size"],
            "image_token_index": language["vocab_size"],  # not used: pictures are put before the words
            "text_config": language,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": _voted(vision, {"layer_norm1.weight": 0, "layer_norm2.weight": 0, "out_proj.weight": 0, "fc2.weight": 0}),
                "intermediate_size": _voted(vision, {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}),
                "num_hidden_layers": _layers(vision, path),
                "num_attention_heads": VISION_HEADS,
                "patch_size": vision.get("embeddings.patch_embedding.weight", (14,))[-1],
                "image_size": height,
                "vision_use_head": False,
            },
        },
        "dit_config": _gemma(expert, HEADS[variants[1]], layers) | {name: language[name] for name in ("head_dim", "num_key_value_heads")},
        "chunk_size": checkpoint.chunk,
        "max_state_dim": checkpoint.max_state,
        "max_action_dim": checkpoint.max_action,
        "num_inference_steps": checkpoint.steps,
        **{name: config[name] for name in ("min_period", "max_period") if name in config},
    }


def _gemma(shapes: Shapes, heads: int, layers: int) -> dict:
    head = _voted(shapes, {"q_proj.weight": 0, "o_proj.weight": 1}) // heads or 1
    return {
        "model_type": "gemma",
        "hidden_size": _voted(shapes, {"input_layernorm.weight": 0, "q_proj.weight": 1, "o_proj.weight": 0, "gate_proj.weight": 1}),
        "intermediate_size": _voted(shapes, {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _voted(shapes, {"k_proj.weight": 0, "v_proj.weight": 0}) // head or 1,
        "head_dim": head,
    }


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _layers(shapes: Shapes, where: Path) -> int:
    return layer_count(shapes, r"(?:encoder\.)?layers\.(\d+)\.", where)


def _voted(shapes: Shapes, evidence: dict[str, int]) -> int:
    """The size that most tensors agree on, {end of a name: dimension}: one wrong or missing tensor is then the only one complained about."""
    votes = Counter(shape[place] for name, shape in shapes.items() for end, place in evidence.items() if name.endswith(end) and place < len(shape))
    return votes.most_common(1)[0][0] if votes else 16  # where all are missing any size will do: they are listed as missing


@dataclass(frozen=True, eq=False)
class TransformersCheckpoint(LeRobotCheckpoint):
    """lerobot's facts from transformers' files. They do not name cameras: `image_keys` are the pretrained model's, of which any number will do.

    Without statistics the normalisers change nothing (`known` is false), and the sizes of state and action are those they are padded to.
    """

    def tokenise(self, instructions: list[str], padding: Literal["longest", "max_length"] | None = None) -> tuple[Tensor, Tensor]:
        """As lerobot's, but transformers' processor writes <bos> into the text and saves a tokenizer that adds none."""
        bos = self._tokenizer.bos_token_id
        if bos is not None and self._tokenizer("")["input_ids"][:1] != [bos]:
            instructions = [self._tokenizer.bos_token + text for text in instructions]
        return super().tokenise(instructions, padding)


def read_transformers(folder: Path, config: dict, held: Stored) -> TransformersCheckpoint:
    """All but the weights, `config` being config.json and `held` what the files hold.

    Raises UserError where it is not pi0's, or what is around it does not fit.
    """
    from transformers import PI0Config

    path = folder / "config.json"
    if config["model_type"] != "pi0":
        raise UserError(f"{path} is of model_type {config['model_type']!r}: expected 'pi0'; name another checkpoint, or the policy it is of")
    check_layers(config, held, path)
    try:
        known = PI0Config.from_dict(config)
    except (*REFUSALS, StrictDataclassError) as error:
        raise UserError(f"{path} is not a configuration of pi0 that transformers can read ({told_by(error)})") from error
    for field, most in MOST.items():
        if not 1 <= getattr(known, field) <= most:
            raise UserError(f"{path}: {field} is {getattr(known, field)}: expected 1 to {most}; this is no configuration of pi0")
    text, expert = known.vlm_config.text_config, known.dit_config
    if (text.model_type, expert.model_type) != ("gemma", "gemma"):
        raise UserError(f"{path}: language model and expert are {text.model_type} and {expert.model_type}: expected gemma; name another checkpoint")
    for field in ("num_hidden_layers", "num_key_value_heads", "head_dim"):
        if getattr(text, field) != getattr(expert, field):
            raise UserError(
                f"{path}: {field} is {getattr(text, field)} in vlm_config and {getattr(expert, field)} in dit_config: expected the same, "
                "because the expert reads the language model's keys and values; this is no configuration of pi0"
            )
    statistics, source = _statistics(folder)
    state = _normaliser(source, statistics, "state", known.max_state_dim)
    action = _normaliser(source, statistics, "actions", known.max_action_dim)
    side = known.vlm_config.vision_config.image_size
    has_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()
    return TransformersCheckpoint(
        folder=folder,
        config=config,
        image_keys=CAMERAS,
        image_shapes={},
        image_size=(side, side),
        empty_cameras=0,
        state_size=len(state.offset),
        action_size=len(action.offset),
        max_state=known.max_state_dim,
        max_action=known.max_action_dim,
        chunk=known.chunk_size,
        steps=known.num_inference_steps,
        state_normaliser=state,
        action_normaliser=action,
        tokenizer_settings=TokenizerSettings(name="." if has_tokenizer else TOKENIZER, max_length=48, padding="max_length"),
    )


def _statistics(folder: Path) -> tuple[dict, Path]:
    """The first file that has any."""
    for name in STATISTICS_FILES:
        path = inside(folder, name, folder)
        if path.is_file() and (found := read_json(path)).keys() & {"state_mean", "actions_mean"}:
            return found, path
    return {}, folder / STATISTICS_FILES[0]


def _normaliser(path: Path, statistics: dict, feature: str, most: int) -> Normaliser:
    found = {name: statistics.get(f"{feature}_{name}") for name in ("mean", "std")}
    if found == {"mean": None, "std": None}:
        return Normaliser("MEAN_STD", most)
    for name, value in found.items():
        is_vector = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
        if not is_vector or not 0 < len(value) <= most or len(value) != len(found["mean"]) or not torch.tensor(value).isfinite().all():
            raise UserError(
                f"{path}: {feature}_{name} is {json.dumps(value):.80}: expected a list of numbers, as long as {feature}_mean, {most} at most; "
                "to fine-tune on your own demonstrations: policy.statistics=dataset"
            )
    return Normaliser("MEAN_STD", len(found["mean"]), {name: torch.tensor(value, dtype=torch.float32) for name, value in found.items()})
