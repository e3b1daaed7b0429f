"""Settings of the world simulator and of its training."""

from typing import Annotated, Literal

from pydantic import Field

from ..config import Channels, Config, TrainingConfig


class UNetConfig(Config):
    """The network that draws the frames."""

    channels: tuple[Channels, ...] = Field((32, 64, 96), min_length=1, description="Channels at each resolution, from fine to coarse")
    layers: int = Field(1, ge=1, description="Residual blocks at each resolution")
    block: Literal[1, 2, 4, 8] = Field(4, description="Pixels on a side that are folded into one position of the network")
    memory: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = Field(
        (0, 1, 6), min_length=1, description="Which frames it sees, in control steps before the chunk; the first frame of the episode comes on top"
    )
    objective: Literal["regression", "flow"] = Field("regression", description="Training objective: one-step regression or flow matching")
    denoising_steps: int = Field(3, ge=1, le=1000, description="Euler steps of the flow-matching sampler")


class SimulatorConfig(Config):
    """Everything that is needed to build a simulator again; what the dataset fixes is filled in when it is trained."""

    camera: str = Field("front", description="Camera that is simulated; follows the environment")
    resolution: int = Field(64, ge=1, description="Pixels on a side; follows the environment")
    chunk: int = Field(4, ge=1, description="Actions in a chunk; follows the environment")
    intrinsics: tuple[tuple[float, float, float], ...] = Field((), description="Camera matrix (3, 3), in pixels; comes from the dataset")
    extrinsics: tuple[tuple[float, float, float, float], ...] = Field((), description="World-to-camera matrix (4, 4); comes from the dataset")
    action_unit: tuple[tuple[float, ...], ...] = Field(
        (), description="What a unit of each action adds to the controller's target, (state, action); comes from the dataset"
    )
    opening: tuple[float, ...] = Field(
        (0.0, 0.0, 0.0, 1.0), description="Weights of the state that give the gripper's opening, (state,); comes from the dataset"
    )
    table: float = Field(0.0, description="Height of the surface below the hand, in meters; comes from the dataset")
    bank: int = Field(6000, ge=1, description="Number of real frames that are kept to copy from")
    hidden: int = Field(128, ge=1, description="Width of the recurrent model of the proprioception")
    unet: UNetConfig = Field(UNetConfig(), description="The network that draws the frames")

    @property
    def size_step(self) -> int:
        """Pictures must be a multiple of this many pixels a side: packed, and halved between two levels of the U-Net."""
        return self.unet.block * 2 ** (len(self.unet.channels) - 1)


class SimulateConfig(Config):
    """How the simulator is trained."""

    proprioception: TrainingConfig = Field(
        TrainingConfig(steps=300, batch=64, learning_rate=3e-3, weight_decay=0.0), description="Training of the model of the proprioception"
    )
    video: TrainingConfig = Field(
        TrainingConfig(steps=900, batch=32, learning_rate=1e-3, weight_decay=0.01, average=0.995),
        description="Training of the network that draws the frames",
    )
    context_noise: float = Field(
        0.06, ge=0, description="Largest noise on the frames that it sees, on the scale [-1, 1], to imitate errors of its own"
    )
    own_frames: float = Field(0.5, ge=0, lt=1, description="Share of samples that continue from frames which the simulator has drawn itself")
    motion_weight: float = Field(8.0, ge=0, description="Extra weight in the loss of pixels that change, per unit of change")
