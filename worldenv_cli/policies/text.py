"""Instructions as vectors, through a real tokenizer and a real encoder: an unseen wording is an input, not an error.

By default both need no download: ByT5's byte tokenizer and a small T5 encoder trained with the model that owns it. `pretrained` names a
Hub encoder instead, which is kept frozen.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..atomic import read_json
from ..errors import UserError
from .config import TextConfig
from .parts import REFUSALS, SMALL, configuration, part, tokenizer, told_by
from .shards import check_layers, stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextEncoder(nn.Module):
    """list of B instructions -> (B, width) float32, mean over tokens of the encoder's last layer."""

    def __init__(self, config: TextConfig):
        super().__init__()
        from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

        self.config = config
        if config.pretrained:
            self.tokenizer, self.encoder = _pretrained(config.pretrained)
            hidden = self.encoder.config.hidden_size
        else:
            self.tokenizer = ByT5Tokenizer()
            hidden = config.width
            self.encoder = T5EncoderModel(
                T5Config(vocab_size=384, d_model=hidden, d_kv=16, d_ff=2 * hidden, num_layers=config.layers, num_heads=4, dropout_rate=0.0)
            )
        self.project = nn.Linear(hidden, config.width)

    def forward(self, instructions: list[str]) -> torch.Tensor:
        unique = sorted(set(instructions))
        tokens = self.tokenizer(unique, padding=True, truncation=True, max_length=self.config.max_tokens, return_tensors="pt")
        tokens = tokens.to(self.project.weight.device)
        hidden = self.encoder(**tokens).last_hidden_state  # (U, L, hidden)
        mask = tokens["attention_mask"][..., None]
        pooled = self.project((hidden * mask).sum(1) / mask.sum(1))  # (U, width)
        return pooled[[unique.index(instruction) for instruction in instructions]]


def _pretrained(name: str) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Tokenizer and frozen encoder, from safetensors only. Raises UserError where they are not to be had, bring code of their own, or declare
    sizes that their weights do not have.
    """
    from transformers import AutoModel

    folder = part(name, "text encoder", "text.pretrained", None, (*SMALL, "*.safetensors"))
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names, from wherever that is
        raise UserError(f"text.pretrained {name}: it holds an adapter (adapter_config.json), which names another model; merge it into that one first")
    tensors = stored(folder)
    check_layers(read_json(folder / "config.json"), tensors, folder / "config.json")
    config, held = configuration(folder, "text encoder"), sum(math.prod(shape) for _, shape in tensors.values())
    try:
        with torch.device("meta"):
            declared = sum(p.numel() for p in AutoModel.from_config(config, trust_remote_code=False).parameters())
        if declared > 2 * held:  # tied ones are declared twice at most
            raise ValueError(f"{declared:,} parameters are declared, {held:,} are there")
        encoder = AutoModel.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True, local_files_only=True)
    except REFUSALS as error:
        raise UserError(f"text.pretrained {name}: no text encoder that transformers can read ({told_by(error)}); name another one") from error
    return tokenizer(folder), encoder.requires_grad_(False)
