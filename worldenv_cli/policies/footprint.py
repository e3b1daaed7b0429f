"""What a policy's memory would be, before anything is loaded: weights, what learning adds, activations of a pass, observations that are kept.

Activations are counted as a transformer layer keeps them for the way back: about 12 numbers a token for each unit of its width and 4 for each of
its MLP (attention itself keeps none: fused kernels compute it again); with gradient checkpointing one per unit of width, and one layer whole.
`tests/test_footprint.py` holds the count against what torch keeps.
"""

from dataclasses import dataclass

from .policy import Policy


@dataclass
class Footprint:
    parameters: int
    learning: int
    weights: int  # bytes
    learning_state: int  # bytes: gradients, two moments and the average
    row: int  # bytes of activations for one observation in training
    kept: int  # bytes of one encoded observation

    @classmethod
    def of(cls, policy: Policy) -> "Footprint":
        """`policy` as it is trained, with its adapter; parameters may be shapes only."""
        parameters = list(policy.parameters())
        learning = sum(p.numel() for p in parameters if p.requires_grad)
        checkpointed = getattr(policy.base().config, "gradient_checkpointing", False)
        return cls(
            parameters=sum(p.numel() for p in parameters),
            learning=learning,
            weights=sum(p.numel() * p.element_size() for p in parameters),
            learning_state=16 * learning,
            row=sum(stack.kept(checkpointed) for stack in policy.base().stacks()),
            kept=policy.base().encoded_size() if policy.reusable else 0,
        )
