"""pi0: a flow-matching VLA on PaliGemma, with transformers' own layers, from checkpoints of lerobot and of transformers."""

from .checkpoint import load_pi0, unfilled
from .layouts import TransformersCheckpoint
from .model import EXPERT_LINEARS, LANGUAGE_LINEARS, Pi0, Pi0Config, padded

__all__ = ["EXPERT_LINEARS", "LANGUAGE_LINEARS", "Pi0", "Pi0Config", "TransformersCheckpoint", "load_pi0", "padded", "unfilled"]
