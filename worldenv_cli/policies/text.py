"""Instructions as vectors, through a real tokenizer and a real encoder: an unseen wording is an input, not an error.

By default both need no download: ByT5's byte tokenizer and a small T5 encoder trained with the model that owns it. `pretrained` names a
Hub encoder instead, which is kept frozen.
"""

import torch
from torch import nn

from .config import TextConfig


class TextEncoder(nn.Module):
    """list of B instructions -> (B, width) float32, mean over tokens of the encoder's last layer."""

    def __init__(self, config: TextConfig):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer, ByT5Tokenizer, T5Config, T5EncoderModel

        self.config = config
        if config.pretrained:
            self.tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
            self.encoder = AutoModel.from_pretrained(config.pretrained).requires_grad_(False)
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
