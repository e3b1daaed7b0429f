"""Random OpenVLA-OFT checkpoints of any size, in the published layout: for tests of what reads them and of what is built on them."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

TIMM_IDS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
PATCH, VOCABULARY, WORDS, SPACE = 14, 32064, 32000, 29871
STEM = "{}--{}_checkpoint.pt"
SMALL = {"side": 56, "dino": (32, 2), "siglip": (16, 4), "hidden": 24, "heads": 2}  # sizes that no published policy has


def write_openvla(
    folder: Path,
    *,
    seed: int = 0,
    images: int = 1,
    proprio_size: int | None = None,
    action_size: int = 4,
    chunk: int = 4,
    head: bool = True,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 48,
    dino: tuple[int, int] = (16, 3),
    siglip: tuple[int, int] = (32, 3),
    side: int = 224,
    shards: int = 2,
    steps: int = 100,
    dtype: torch.dtype = torch.bfloat16,
    statistics: dict | None = None,
) -> Path:
    """`folder`, with the policy in it. `dino` and `siglip` are (width, blocks), widths multiples of 16; `side` pixels make (side / 14)² patches.

    No published file says `images` and `chunk`: they go to facts.json. `statistics` are the content of dataset_statistics.json, by default
    {"tiny": ...} with a gripper between 0 and 1 as last action.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = _Draw(seed)
    features = dino[0] + siglip[0]
    tensors = _towers(draw, dino, siglip, side) | _language(draw, hidden, layers, mlp)
    tensors |= _mlp(draw, "projector", [features, 4 * features, hidden, hidden])
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write_shards(folder, tensors, shards)
    if head:
        torch.save(
            {f"module.model.{name}": tensor.to(dtype) for name, tensor in _head(draw, hidden, action_size).items()},
            folder / STEM.format("action_head", steps),
        )
    if proprio_size is not None:
        projector = _mlp(draw, "module", [proprio_size, hidden, hidden])
        torch.save(projector, folder / STEM.format("proprio_projector", steps))
    text = {"hidden_size": hidden, "intermediate_size": mlp, "model_type": "llama", "num_attention_heads": heads, "num_hidden_layers": layers}
    config = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "n_action_bins": 256,
        "norm_stats": {"bridge_orig": tiny_statistics(draw.numbers, 7, 7)},
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "image_sizes": [side, side],
        "text_config": {**text, "pad_token_id": 32000, "vocab_size": VOCABULARY},
        "timm_model_ids": TIMM_IDS,
        "use_fused_vision_backbone": True,
    }
    write(folder / "config.json", config)
    write(folder / "dataset_statistics.json", statistics or {"tiny": tiny_statistics(draw.numbers, action_size, proprio_size)})
    write(folder / "facts.json", {"num_images_in_input": images, "num_actions_chunk": chunk})
    write(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "pad_token": "<PAD>"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def loaded(folder: Path, **options):
    """The policy of `write_openvla`, in float32 unless told otherwise."""
    from worldenv_cli.policies.openvla.checkpoint import load_openvla

    facts = json.loads((folder / "facts.json").read_text())
    options = {"dtype": torch.float32, "images": facts["num_images_in_input"], "chunk": facts["num_actions_chunk"]} | options
    return load_openvla(folder, **options)


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = {name: f"model-{1 + number % shards:05d}-of-{shards:05d}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})


def tiny_statistics(numbers: np.random.Generator, action_size: int, proprio_size: int | None) -> dict:
    parts = {"action": _moments(numbers, action_size)}
    for name in ("min", "max", "q01", "q99"):
        parts["action"][name][-1] = float(name in ("max", "q99"))
    parts["action"]["mask"] = [True] * (action_size - 1) + [False]
    if proprio_size is not None:
        parts["proprio"] = _moments(numbers, proprio_size)
    return {**parts, "num_transitions": 100, "num_trajectories": 5}


def _moments(numbers: np.random.Generator, size: int) -> dict[str, list[float]]:
    middle, reach = numbers.uniform(-0.3, 0.3, size), numbers.uniform(0.2, 0.9, size)
    found = {"mean": middle, "std": reach / 2, "min": middle - reach, "max": middle + reach, "q01": middle - 0.9 * reach, "q99": middle + 0.9 * reach}
    return {name: values.tolist() for name, values in found.items()}


class _Draw:
    def __init__(self, seed: int):
        self.generator, self.numbers = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, inward: int, outward: int, bias: bool = True) -> dict[str, torch.Tensor]:
        weight = {f"{name}.weight": self(outward, inward, scale=1.5 * inward**-0.5)}
        return weight | ({f"{name}.bias": self(outward, scale=0.1)} if bias else {})

    def norm(self, name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self(width, scale=0.1, around=1), f"{name}.bias": self(width, scale=0.1)}


def _mlp(draw: _Draw, name: str, widths: list[int]) -> dict[str, torch.Tensor]:
    layers = [draw.linear(f"{name}.fc{i}", *pair) for i, pair in enumerate(zip(widths, widths[1:]), 1)]
    return {key: tensor for layer in layers for key, tensor in layer.items()}


def _towers(draw: _Draw, dino: tuple[int, int], siglip: tuple[int, int], side: int) -> dict[str, torch.Tensor]:
    patches, tensors = (side // PATCH) ** 2, {}
    for name, (width, depth), mlp in (("featurizer", dino, 4 * dino[0]), ("fused_featurizer", siglip, int(siglip[0] * 3.7362))):
        prefix = f"vision_backbone.{name}"
        tensors[f"{prefix}.patch_embed.proj.weight"] = draw(width, 3, PATCH, PATCH, scale=0.05)
        tensors[f"{prefix}.patch_embed.proj.bias"] = draw(width, scale=0.1)
        tensors[f"{prefix}.pos_embed"] = draw(1, patches, width, scale=0.5)
        for number in range(depth):
            block = f"{prefix}.blocks.{number}"
            tensors |= draw.norm(f"{block}.norm1", width) | draw.norm(f"{block}.norm2", width)
            tensors |= draw.linear(f"{block}.attn.qkv", width, 3 * width) | draw.linear(f"{block}.attn.proj", width, width)
            tensors |= _mlp(draw, f"{block}.mlp", [width, mlp, width])
            if name == "featurizer":
                tensors |= {f"{block}.ls{i}.scale_factor": draw(width, scale=0.2, around=0.7) for i in (1, 2)}
        tensors |= draw.norm(f"{prefix}.norm", width)
    tensors |= {"vision_backbone.featurizer.cls_token": draw(1, 1, dino[0]), "vision_backbone.featurizer.reg_token": draw(1, 4, dino[0])}
    pool = "vision_backbone.fused_featurizer.attn_pool"
    tensors |= draw.linear(f"{pool}.q", width, width) | draw.linear(f"{pool}.kv", width, 2 * width) | draw.linear(f"{pool}.proj", width, width)
    return tensors | draw.norm(f"{pool}.norm", width) | _mlp(draw, f"{pool}.mlp", [width, mlp, width]) | {f"{pool}.latent": draw(1, 1, width)}


def _language(draw: _Draw, hidden: int, layers: int, mlp: int) -> dict[str, torch.Tensor]:
    tensors = {"language_model.model.embed_tokens.weight": draw(VOCABULARY, hidden, scale=0.5)}
    for number in range(layers):
        layer = f"language_model.model.layers.{number}"
        for name in "qkvo":
            tensors |= draw.linear(f"{layer}.self_attn.{name}_proj", hidden, hidden, bias=False)
        for name, widths in {"gate": (hidden, mlp), "up": (hidden, mlp), "down": (mlp, hidden)}.items():
            tensors |= draw.linear(f"{layer}.mlp.{name}_proj", *widths, bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = draw(hidden, scale=0.1, around=1)
    tensors["language_model.model.norm.weight"] = draw(hidden, scale=0.1, around=1)
    return tensors | draw.linear("language_model.lm_head", hidden, VOCABULARY, bias=False)


def _head(draw: _Draw, hidden: int, action_size: int) -> dict[str, torch.Tensor]:
    tensors = draw.norm("layer_norm1", hidden * action_size) | draw.linear("fc1", hidden * action_size, hidden)
    for number in range(2):
        block = f"mlp_resnet_blocks.{number}.ffn"
        tensors |= draw.norm(f"{block}.0", hidden) | draw.linear(f"{block}.1", hidden, hidden)
    return tensors | draw.norm("layer_norm2", hidden) | draw.linear("fc2", hidden, action_size)


def _tokenizer():
    """Single characters at Llama's ids for specials, bytes and the lone space; what is no character here becomes bytes."""
    from tokenizers import Tokenizer, models, normalizers, processors

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127))]
    words += [f"<word {number}>" for number in range(len(words), WORDS)]
    words[SPACE] = "▁"
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<PAD>"])
    return tokenizer
