"""Does a loaded VLA look and listen? Checkpoints that silently ignore the picture act in a constant way: the field's best-known failure."""

import numpy as np
import torch

from ..errors import UserError
from ..progress import say_once
from .densities import TokenDensity
from .observation import Observation
from .policy import Policy

WORDS = ("pick up the black bowl and place it on the plate", "open the top drawer of the cabinet")


@torch.no_grad()
def self_check(policy: Policy, name: str) -> dict[str, float]:
    """{what must matter: how far the answer moves with it}, said in one line. Raises UserError where something does not matter.

    Four rows, alike but for a picture in one, an instruction in another; the fourth repeats the first: what rounding alone does.
    """
    config, rng = policy.config, np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, config.resolution, config.resolution, 3), dtype=np.uint8)
    images = {camera: pictures[[0, 1, 0, 0]] for camera in config.cameras}
    state = np.zeros((4, config.state_size), np.float32)
    encoded = policy.encode(Observation(images, state, [WORDS[0], WORDS[0], WORDS[1], WORDS[0]]))
    density = policy.density(encoded, policy.trace(encoded, [torch.Generator().manual_seed(0) for _ in range(4)]))
    answer = density.logits if isinstance(density, TokenDensity) else density.mean
    if not answer.isfinite().all():
        raise UserError(
            f"{name}: its answer is not finite though its weights are: they overflow in {config.dtype}; use another checkpoint or policy.dtype"
        )
    _, picture, words, nothing = (answer - answer[:1]).abs().flatten(1).max(1).values.tolist()
    moved = {"the picture": picture, "the instruction": words, **policy.dependences()}
    floor = max(10 * nothing, 1e-6 * answer.abs().max().item())
    for what, distance in moved.items():
        if not distance > floor:
            raise UserError(
                f"{name}: its answer does not depend on {what} (it moves by {distance:.1e}, rounding by {nothing:.1e}); "
                "these weights are not those of a trained policy, or are read in a way they were not trained for; use another checkpoint"
            )
    say_once(f"{name}: the answer depends on " + ", ".join(f"{what} ({distance:.1e})" for what, distance in moved.items()))
    return moved


def check_actions(chunks: np.ndarray, observation: Observation) -> None:
    """Raise UserError where a policy's answer (B, T, A) is not finite. Clipped, infinity looks like an action, and NaN is one to MuJoCo."""
    wrong = np.flatnonzero(~np.isfinite(chunks).all((1, 2)))
    if len(wrong):
        value = chunks[wrong[0]][~np.isfinite(chunks[wrong[0]])][0]
        raise UserError(
            f"the policy answers {observation.instruction[wrong[0]]!r} with an action of {value}, expected finite numbers: its weights or its "
            "statistics are damaged; train it or download it again"
        )
