"""Published OpenVLA-OFT checkpoints: their files, sizes and names, checked before a weight is read, and read without a second copy.

* config.json, tokenizer.json, dataset_statistics.json
* model.safetensors, or shards with model.safetensors.index.json
* action_head--*_checkpoint.pt and proprio_projector--*_checkpoint.pt, absent where actions are tokens, or the body is not felt
* lora_adapter/, which is merged into the published weights already
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ...artifacts import misfits
from ...atomic import read_json
from ...confine import inside
from ...errors import UserError
from ..parts import REFUSALS, told_by
from ..shards import check_layers, layer_count, stored
from .files import Shapes, adapter_changes, head_tensors, heads_on_the_hub, read_shards
from .inputs import ImageConfig, Prompts, Statistics
from .model import HeadConfig, L1ActionHead, OpenVLA, OpenVLAConfig, ProprioProjector, TowerConfig

HEAD_FILES, HEAD_BLOCKS = ("action_head", "proprio_projector"), 2
HEADS = {"vit_large_patch14_reg4_dinov2.lvd142m": 16, "vit_so400m_patch14_siglip_224": 16}  # of attention: weights do not tell
MIXED = "weights, heads and config.json are not of one checkpoint"
TOWERS = {"dino": "vision_backbone.featurizer.", "siglip": "vision_backbone.fused_featurizer."}


@dataclass
class OpenVLACheckpoint:
    """A policy's parts as published."""

    model: OpenVLA
    prompts: Prompts
    images: ImageConfig
    statistics: Statistics
    unnorm_key: str


def load_openvla(
    folder: Path,
    *,
    dtype: torch.dtype,
    images: int,
    chunk: int,
    head: Literal["l1", "tokens"] | None = None,
    unnorm_key: str | None = None,
    bounds: Literal["quantiles", "extremes"] = "quantiles",
    adapter: bool = False,
    weights: bool = True,
    statistics: Statistics | None = None,
) -> OpenVLACheckpoint:
    """The policy in `folder`, its weights as `dtype` on the CPU, in evaluation mode.

    No file says how many pictures it was trained with (`images`) nor the steps of a chunk (`chunk`: 8 for LIBERO, 25 for ALOHA, 5 for Bridge).
    `head`: "l1" insists on the action head, "tokens" ignores it, None goes by whether its file is there. `bounds` are explained in Statistics.choose.
    `adapter` merges lora_adapter/, for weights into which it was not merged before. Without `weights` parameters are shapes only.
    `statistics` stand in for the folder's, which are not read then.

    Raises UserError for other models, missing, damaged or contradicting files, statistics of another robot, tensors that do not fit.
    """
    folder = Path(folder)
    declared = read_declared(folder)
    key = unnorm_key or ""
    if statistics is None:
        key, statistics = read_statistics(folder, declared, unnorm_key, bounds)
    held = stored(folder)
    shapes = {name: shape for name, (_, shape) in held.items()}
    parts = _heads(folder, shapes, statistics) if weights is False else {name: head_tensors(folder, name) for name in HEAD_FILES}
    if head == "l1" and parts["action_head"] is None:
        raise UserError(
            f"{folder}: no action_head--*_checkpoint.pt, expected the L1 head there: set policy.actions=tokens for a policy that answers in tokens, "
            "or policy.new_head=true to train a head on a base model"
        )
    if head == "tokens":
        parts["action_head"] = None
    change = adapter_changes(folder, shapes) if adapter and weights else {}
    extra = {f"{name}.{tensor}": value for name, part in parts.items() for tensor, value in (part or {}).items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in extra.items()}
    config = _sizes(folder, declared, shapes, images, chunk, statistics)
    origins = _origins(folder, config, shapes)
    _check_robot(folder, config, key, statistics)
    model = OpenVLA.empty(config)
    for tensors in read_shards(held, set(origins.values()), dtype, change) if weights else ():
        _assign(model, {name: _converted(name, tensors[origin]) for name, origin in origins.items() if origin in tensors})
    if weights:
        _assign(model, {name: tensor.to(dtype, copy=True) for name, tensor in extra.items()})
    else:
        model.to(dtype)
    side = config.dino.grid * config.dino.patch
    return OpenVLACheckpoint(model.eval(), Prompts.from_folder(folder, config.language.padding), ImageConfig(side=side), statistics, key)


def read_declared(folder: Path) -> dict:
    """config.json, once it is known to be OpenVLA's and of towers that are known."""
    path = inside(folder, "config.json", folder)
    if not path.is_file():
        raise UserError(f"{path}: missing, expected an OpenVLA checkpoint's; check the path")
    declared = read_json(path)
    kind = declared.get("model_type")
    if kind != "openvla":
        code = " It names code of its own (auto_map): remote code is not run;" if "auto_map" in declared else ""
        raise UserError(f"{path}: model_type is {kind!r}, expected 'openvla'.{code} use a checkpoint of OpenVLA-OFT")
    ids = declared.get("timm_model_ids")
    if ids != list(HEADS):
        raise UserError(f"{path}: timm_model_ids are {ids}, expected {list(HEADS)}; towers of other kinds are not supported")
    if found := sorted(path.name for path in folder.glob("vision_backbone--*")):
        raise UserError(f"{folder}: {found[0]} is a FiLM vision backbone, expected none: policies with language in their towers are not supported")
    return declared


def read_statistics(folder: Path, declared: dict, key: str | None, bounds: Literal["quantiles", "extremes"]) -> tuple[str, Statistics]:
    """dataset_statistics.json is written by the fine-tuning; config.json's norm_stats are the base model's, and only used without it."""
    path = inside(folder, "dataset_statistics.json", folder)
    if path.is_file():
        return Statistics.choose(read_json(path), key, path, bounds)
    return Statistics.choose(declared.get("norm_stats") or {}, key, folder / "config.json (norm_stats)", bounds)


def _heads(folder: Path, shapes: Shapes, statistics: Statistics) -> dict[str, dict[str, Tensor] | None]:
    """The heads as shapes. Of a Hub repository they are not downloaded for this: they have the sizes that OpenVLA-OFT gives every head."""
    there = heads_on_the_hub(folder)
    if there is None:
        return {name: head_tensors(folder, name) for name in HEAD_FILES}
    width = _common(shapes, r"language_model\.model\.layers\.\d+\..*norm\.weight", 0, 4096)
    with torch.device("meta"):
        head = L1ActionHead(width, statistics.action.size, HeadConfig(width=width, blocks=HEAD_BLOCKS)).state_dict()
        felt = ProprioProjector(statistics.proprio.size if statistics.proprio else 1, width).state_dict()
    return {name: part if name in there else None for name, part in (("action_head", head), ("proprio_projector", felt))}


def _assign(model: OpenVLA, tensors: dict[str, Tensor]) -> None:
    model.load_state_dict(tensors, strict=False, assign=True)


# Names: what the towers' tensors are called in transformers, and in timm, whose names the checkpoints have

RENAMED = [
    (r"^(vision_model\.)?embeddings\.patch_embeddings?(\.projection)?\.", "patch_embed.proj."),
    (r"^(vision_model\.)?embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^(vision_model\.)?encoder\.layers?\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.scale_factor"),
    (r"\.(attention|self_attn)\.(attention\.)?(q_proj|k_proj|v_proj|query|key|value)\.", ".attn.qkv."),
    (r"\.(attention|self_attn)\.(o_proj|out_proj|output\.dense)\.", ".attn.proj."),
]
THIRD = re.compile(r"vision\..*\.(?:(?P<q>q_proj|query)|(?P<k>k_proj|key)|(?P<v>v_proj|value))\.")
POSITIONS = re.compile(r"vision\..*position_embeddings?(\.weight)?$")


def published(name: str) -> str:
    """The published name of the model's tensor `name`."""
    part, _, rest = name.removeprefix("vision.").partition(".")
    if part not in TOWERS:
        return name
    for pattern, replacement in RENAMED:
        rest = re.sub(pattern, replacement, rest)
    return TOWERS[part] + rest


def _converted(name: str, tensor: Tensor) -> Tensor:
    """A published tensor as the model's `name`: one of three that are stored as one; positions with a class token's, which has none of its own."""
    if match := THIRD.match(name):
        return tensor.chunk(3)["qkv".index(match.lastgroup)].clone()
    if POSITIONS.match(name):
        return tensor[0] if name.startswith("vision.siglip.") else torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1)
    return tensor


def _published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if THIRD.match(name):
        return (3 * shape[0], *shape[1:])
    if POSITIONS.match(name):
        return (1, *shape) if name.startswith("vision.siglip.") else (1, shape[1] - 1, shape[2])
    return shape


def _origins(folder: Path, config: OpenVLAConfig, shapes: Shapes) -> dict[str, str]:
    """{the model's tensor: its name in the files}, once all are known to fit; until then nothing has memory, not even what no file holds."""
    try:
        with torch.device("meta"):
            model = OpenVLA(config)
    except (*REFUSALS, AssertionError) as error:
        raise UserError(f"{folder}: no OpenVLA of these sizes can be built ({told_by(error)}): {MIXED}") from error
    origins = {name: published(name) for name in model.state_dict()}
    wanted = {origins[name]: _published_shape(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    wanted |= _unused("dino", model.config.dino, wanted) | _unused("siglip", model.config.siglip, wanted)
    problems = misfits(wanted, shapes)
    if problems:
        raise UserError(f"{folder}: its tensors do not fit OpenVLA ({problems}): {MIXED}")
    return origins


def _unused(name: str, tower: TowerConfig, wanted: Shapes) -> Shapes:
    """What every published checkpoint holds of a tower and OpenVLA does not use: the last block, the norm, SigLIP's pooling."""
    prefix, width = TOWERS[name], tower.width
    first = f"{prefix}blocks.0."
    unused = {f"{prefix}blocks.{tower.depth}.{block.removeprefix(first)}": shape for block, shape in wanted.items() if block.startswith(first)}
    unused |= {f"{prefix}norm.weight": (width,), f"{prefix}norm.bias": (width,)}
    if name == "siglip":
        pool = f"{prefix}attn_pool."
        layers = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width), "mlp.fc1": (tower.mlp, width), "mlp.fc2": (width, tower.mlp)}
        unused |= {f"{pool}{layer}.weight": shape for layer, shape in layers.items()} | {
            f"{pool}{layer}.bias": shape[:1] for layer, shape in layers.items()
        }
        unused |= {f"{pool}latent": (1, 1, width), f"{pool}norm.weight": (width,), f"{pool}norm.bias": (width,)}
    return unused


# Sizes


def _sizes(folder: Path, declared: dict, shapes: Shapes, images: int, chunk: int, statistics: Statistics) -> OpenVLAConfig:
    """What the tensors say, and where they cannot, config.json. A size is what most tensors of a kind have, so that a broken one is found by name."""
    check_layers(declared, shapes, folder / "config.json")
    head = any(name.startswith("action_head.") for name in shapes)
    blocks = len({name.split(".")[3] for name in shapes if name.startswith("action_head.model.mlp_resnet_blocks.")})
    own = statistics.proprio.size if statistics.proprio else 1
    felt = any(name.startswith("proprio_projector.") for name in shapes)
    try:
        language = _language(folder, declared, shapes)
        config = OpenVLAConfig(
            dino=_tower(folder, "dino", shapes, declared["timm_model_ids"][0]),
            siglip=_tower(folder, "siglip", shapes, declared["timm_model_ids"][1]),
            language=language,
            images=images,
            chunk=chunk,
            action_size=_common(shapes, r"action_head\.model\.fc2\.bias", 0, statistics.action.size),
            proprio_size=_common(shapes, r"proprio_projector\.fc1\.weight", 1, own) if felt else None,
            head=HeadConfig(width=_common(shapes, r"action_head\.model\..*\.ffn\.1\.bias", 0, language["width"]), blocks=blocks) if head else None,
            bins=declared.get("n_action_bins", 256),
            bins_end=language["vocabulary"] - declared.get("pad_to_multiple_of", 64),
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{folder}: sizes of no OpenVLA: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}: {MIXED}") from error
    except (AttributeError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: sizes of no OpenVLA ({told_by(error)})") from error
    for name, part in {"dino": config.dino, "siglip": config.siglip, "language_model": config.language}.items():
        if part.heads < 1 or part.width % part.heads:
            raise UserError(f"{folder}: {name} is {part.width} wide, expected a multiple of its {part.heads} heads: {MIXED}")
    return config


def _tower(folder: Path, name: str, shapes: Shapes, timm_id: str) -> dict:
    prefix = re.escape(TOWERS[name])
    width = _common(shapes, prefix + r"blocks\.\d+\.norm\d\.weight", 0, HEADS[timm_id])
    return {
        "width": width,
        "depth": layer_count(shapes, prefix + r"blocks\.(\d+)\.", folder) - 1,
        "heads": HEADS[timm_id],
        "mlp": _common(shapes, prefix + r"blocks\.\d+\.mlp\.fc1\.bias", 0, 4 * width),
        "patch": _common(shapes, r"vision_backbone\..*patch_embed\.proj\.weight", -1, 14),
        "grid": math.isqrt(_common(shapes, r"vision_backbone\..*pos_embed", 1, 256)),
        "registers": _common(shapes, prefix + "reg_token", 1, 4) if name == "dino" else 0,
    }


def _language(folder: Path, declared: dict, shapes: Shapes) -> dict:
    """Published configs only say what differs from Llama 2 7B, whose 32 heads are the one size that no tensor shows."""
    text = declared.get("text_config") or {}
    layers = r"language_model\.model\.layers\.(\d+)\."
    heads = text.get("num_attention_heads", 32)
    return {
        "vocabulary": text.get("vocab_size", _common(shapes, r"language_model\..*(lm_head|embed_tokens)\.weight", 0, 32064)),
        "width": text.get("hidden_size", _common(shapes, layers + r".*norm\.weight", 0, heads)),
        "depth": text.get("num_hidden_layers", layer_count(shapes, layers, folder)),
        "heads": heads,
        "key_value_heads": text.get("num_key_value_heads", heads),
        "mlp": text.get("intermediate_size", _common(shapes, layers + r"mlp\.(gate|up)_proj\.weight", 0, 1)),
        "norm_eps": text.get("rms_norm_eps", 1e-6),
        "rope_base": text.get("rope_theta", 10000.0),
        "padding": declared.get("pad_token_id", 32000),
    }


def _common(shapes: Shapes, pattern: str, axis: int, default: int) -> int:
    """What most tensors of that name have along `axis`; `default` where there is none: they are then told as missing."""
    sizes = Counter(shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and -len(shape) <= axis < len(shape))
    return sizes.most_common(1)[0][0] if sizes else default


def _check_robot(folder: Path, config: OpenVLAConfig, key: str, statistics: Statistics) -> None:
    """Statistics of another robot fit in no way that a shape would show."""
    if config.action_size != statistics.action.size:
        raise UserError(
            f"{folder}: the action head answers {config.action_size} numbers, the statistics of {key!r} hold {statistics.action.size}: "
            "expected those of the same robot; choose another unnorm_key"
        )
    if config.proprio_size is None:
        return
    found = "none" if statistics.proprio is None else str(statistics.proprio.size)
    if found != str(config.proprio_size):
        raise UserError(
            f"{folder}: proprio_projector takes {config.proprio_size} numbers, the proprio statistics of {key!r} hold {found}: "
            "expected those of the same robot; choose another unnorm_key"
        )
