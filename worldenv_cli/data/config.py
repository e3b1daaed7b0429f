"""Settings of the data that a run collects: demonstrations and exploration."""

from typing import Literal

from pydantic import Field, NonNegativeFloat

from ..config import Config


class IngestConfig(Config):
    """Where the demonstrations come from."""

    source: str | None = Field(
        None, description="A dataset that worldenv wrote, a folder or owner/name[@revision], instead of Meta-World's scripted experts"
    )
    outcome: Literal["success", "failure"] | None = Field(
        None, description="What became of the source's episodes whose outcome is unknown; success says that they are demonstrations"
    )
    demos_per_task: int = Field(5, ge=1, description="Demonstrations of each task")
    attempts: int = Field(8, ge=1, description="Initial states that a scripted expert may try for each demonstration before the run gives up")


class ExploreConfig(Config):
    """Rollouts of the fine-tuned policy, with noise, in the real environment."""

    episodes: int = Field(60, ge=2, description="Real episodes of each task to train on")
    held_out: int = Field(20, ge=1, description="Further real episodes of each task, on which simulator, reflector and gate are measured")
    noise: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 0.08, 0.15, 0.08),
        min_length=1,
        description="Laplace scales of the exploration noise, in turn; much more ruins success and with it the data",
    )
