"""The base of every configuration section, and the settings of a training loop. Sections live in light `config.py` modules that import
neither torch nor an environment, so that a recipe is read and checked in a fraction of a second."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Channels = Annotated[int, Field(ge=8, multiple_of=8)]  # of a convolution: they are normalised in eight groups


class Config(BaseModel):
    """A recipe section. Unknown keys are errors, so that a misspelled setting never falls back to its default in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class TrainingConfig(Config):
    """One training loop: AdamW with a linear warm-up and a cosine decay; an average of the weights is kept."""

    steps: int = Field(800, ge=1, description="Number of optimizer steps")
    batch: int = Field(64, ge=1, description="Samples in one forward pass of one process")
    accumulate: int = Field(1, ge=1, description="Forward passes whose gradients make one optimizer step")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises from zero")
    average: float = Field(0.99, ge=0, lt=1, description="Decay of the exponential average of the weights, which is what is kept")
    bf16: bool = Field(False, description="Run forward passes in bfloat16, with float32 weights: for GPUs")
    checkpoint_every: int = Field(200, ge=1, description="Steps between two checkpoints")
