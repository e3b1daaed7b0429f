"""Settings of the reflector, of its training and of its calibration."""

from typing import Annotated

from pydantic import Field

from ..config import Channels, Config, TrainingConfig
from ..policies.config import TextConfig

BLOCK = 4  # pixels a side that the reflector folds into channels: see packing.py


class ReflectorConfig(Config):
    """The reflector: its sizes and what it looks at."""

    camera: str = Field("front", description="Camera that it looks through; follows the environment")
    resolution: int = Field(64, ge=1, description="Pixels on a side of its pictures; follows the environment")
    channels: tuple[Channels, Channels, Channels] = Field((64, 64, 96), description="Channels of the three levels of the image encoder")
    width: int = Field(128, ge=1, description="Width of its hidden layers")
    lookback: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        (1, 3), description="Earlier frames that it sees beside each frame, in control steps before it; the first frame comes on top"
    )
    text: TextConfig = Field(TextConfig(), description="The encoder of instructions")

    @property
    def size_step(self) -> int:
        """Pictures must be a multiple of this many pixels a side: packed, and halved twice."""
        return 4 * BLOCK


class CalibrationConfig(Config):
    """How the threshold at which an episode is stopped is chosen."""

    false_termination: float = Field(
        0.05, gt=0, lt=1, description="Share of failed episodes that may be stopped as successes; 0.05 takes 19 failed calibration episodes"
    )
    threshold_min: float = Field(
        0.3, ge=0, le=1, description="Smallest probability at which an episode is stopped, however clean the calibration episodes are"
    )


class CalibrateConfig(Config):
    """How the reflector is trained and calibrated."""

    training: TrainingConfig = Field(
        TrainingConfig(steps=600, batch=32, learning_rate=1e-3, weight_decay=0.05), description="Training of the reflector"
    )
    frames: int = Field(8, ge=2, description="Frames of an episode in one training sample")
    calibration: CalibrationConfig = Field(CalibrationConfig(), description="How the threshold is chosen")
    calibration_share: float = Field(0.2, gt=0, lt=1, description="Share of the exploration that is kept for calibration and the threshold")
    shift: int = Field(2, ge=0, description="Largest random shift of the pictures, in pixels")
    swapped: float = Field(0.1, ge=0, le=1, description="Share of samples that get another task's instruction and count as failures")
