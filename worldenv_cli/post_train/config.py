"""Settings of post-training: its rounds, the gate, and the updates of the policy."""

from typing import Literal

from pydantic import Field, NonNegativeFloat

from ..config import Config, TrainingConfig
from ..policies.config import LoraSettings, SFTConfig
from ..reflector.config import CalibrateConfig
from ..simulator.config import SimulateConfig


class GateConfig(Config):
    """When a task may be trained on in imagination."""

    gap: float = Field(
        0.2,
        ge=0,
        description="Largest gap between the reflector's and the true success rate, on real and on imagined frames of unseen episodes",
    )
    auc: float = Field(0.8, ge=0, le=1, description="Smallest ROC AUC of the reflector on imagined frames")
    success_min: float = Field(0.1, ge=0, le=1, description="Smallest true success rate: rarer successes give no signal")
    success_max: float = Field(0.97, ge=0, le=1, description="Largest true success rate: above it there is nothing left to gain")


class UpdatesConfig(Config):
    """Reinforcement learning in imagination: the updates of one round."""

    updates: int = Field(25, ge=1, description="Number of updates in a round, at most")
    starts: int = Field(16, ge=1, description="Groups of imagined episodes in an update, over all processes")
    group: int = Field(8, ge=2, description="Imagined episodes from one initial state; their rewards are compared with each other")
    middle: float = Field(0.5, ge=0, lt=1, description="Share of groups that start in the middle of a recorded episode, not at a first frame")
    clip: float = Field(0.2, gt=0, description="Clip range of PPO's probability ratio")
    backbone_rate: float = Field(1e-4, gt=0, description="Learning rate of the adapter (LoRA)")
    head_rate: float = Field(5e-5, gt=0, description="Learning rate of the action heads")
    epochs: int = Field(1, ge=1, description="Passes over the decisions of an update")
    minibatch: int = Field(256, ge=1, description="Decisions in one gradient step, over all processes")
    microbatch: int | None = Field(
        None, ge=1, description="Decisions in one forward pass, whose gradients are added up; by default a whole minibatch"
    )
    rescore: bool = Field(False, description="Score the samples again in the batches of training, before the first step: for bf16")
    anchor: float = Field(0.3, ge=0, description="Weight of the supervised loss on real successes")
    hold: float = Field(1.0, ge=0, description="Weight of KL(start || tuned) on real frames of closed tasks, which keeps them as they are")
    gain_cap: float = Field(0.12, gt=0, description="How much a task's imagined success may rise in a round before its groups stop")
    kl_budget: float = Field(4.0, gt=0, description="Mean KL(start || tuned) of a chunk on imagined frames, in nats, at which a round ends")
    kl_rows: int = Field(256, ge=1, description="Decisions of an update on which that KL is measured")
    checkpoint_every: int = Field(5, ge=1, description="Updates between two checkpoints")
    check_every: int = Field(5, ge=1, description="Updates between two measurements of the imagined success")
    advantage_scale: float = Field(1.0, ge=0, description="Factor of the advantages; 0 makes the control arm, which ignores the reward")


class PostTrainConfig(Config):
    """Post-training in rounds."""

    rounds: int = Field(2, ge=1, description="Number of rounds")
    probe: int = Field(20, ge=0, description="Real episodes of each task that are played between two rounds; counted")
    probe_noise: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 0.08), min_length=1, description="Laplace scales of the exploration noise in these episodes, in turn"
    )
    resets: int = Field(
        60,
        ge=0,
        description="Further first frames of each task to imagine from: one reset of the real environment each, no step; "
        "0: none, nor in the imagined evaluation",
    )
    validation: int = Field(
        25, ge=0, description="Real episodes of each task and candidate that decide which policy is used; 0: no test, open tasks use the tuned one"
    )
    unknown_instruction: Literal["tuned", "sft", "refuse"] = Field(
        "tuned", description="Which policy plays an instruction that is near none of env.tasks; tuned: the last one that any task uses"
    )
    lora: LoraSettings = Field(LoraSettings(), description="The adapter that the updates train")
    gate: GateConfig = Field(GateConfig(), description="When a task may be trained on in imagination")
    updates: UpdatesConfig = Field(UpdatesConfig(), description="The updates of one round")
    filter: SFTConfig = Field(
        SFTConfig(steps=200, learning_rate=5e-4, scale_steps=60), description="Supervised fine-tuning on real successes, at the start of a round"
    )
    refresh_simulator: SimulateConfig = Field(
        SimulateConfig(
            proprioception=TrainingConfig(steps=100, batch=64, learning_rate=1e-3, weight_decay=0.0),
            video=TrainingConfig(steps=110, batch=24, learning_rate=7e-4, weight_decay=0.01, average=0.99),
        ),
        description="Further training of the simulator on the real episodes of the round before",
    )
    refresh_reflector: CalibrateConfig = Field(
        CalibrateConfig(training=TrainingConfig(steps=110, batch=32, learning_rate=5e-4, weight_decay=0.05)),
        description="Further training of the reflector on the same episodes",
    )
    control: bool = Field(True, description="Also run the last round with all advantages at zero: the control arm")
