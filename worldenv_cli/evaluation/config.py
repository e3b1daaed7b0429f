"""Settings of the evaluation."""

from pydantic import Field

from ..config import Config


class EvalConfig(Config):
    """The evaluation: every policy from the same unseen initial states."""

    starts: int = Field(75, ge=1, description="Unseen initial states of each task, the same for every policy")
    imagined_starts: int = Field(48, ge=1, description="How many of them, the first ones, are also imagined from their first frames")
    stops: int = Field(25, ge=1, description="How many of them are played to the horizon, to compare the reflector's stop with playing on")
    offset: int = Field(0, ge=0, description="Number of the first initial state")
    offline: bool = Field(True, description="Also evaluate the policy of the first round, which has seen no real episode after exploration")
