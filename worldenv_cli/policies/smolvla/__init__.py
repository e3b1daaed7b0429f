"""SmolVLA: a small flow-matching VLA on SmolVLM, from lerobot's checkpoints."""

from .checkpoint import load_smolvla
from .model import SmolVLA, SmolVLAConfig

__all__ = ["SmolVLA", "SmolVLAConfig", "load_smolvla"]
