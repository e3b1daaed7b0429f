"""The one training loop: warm-up and cosine, weight average, checkpoints from which a cut-off run goes on as if nothing had happened."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from . import distributed
from .artifacts import Checkpoint, load_optimizer, optimizer_tensors
from .config import TrainingConfig
from .progress import Metrics, check_finite, track

LossFunction = Callable[[int, np.random.Generator], tuple[torch.Tensor, dict[str, float]]]


def train(
    module: nn.Module,
    loss: LossFunction,
    config: TrainingConfig,
    *,
    seed: int,
    description: str,
    checkpoint: Checkpoint | None = None,
    metrics: Metrics | None = None,
    carried: dict[str, torch.Tensor] | None = None,
) -> None:
    """Minimise `loss(step, rng)` over the module's trainable parameters; leaves the averaged weights in the module.

    `carried` are tensors that the loss changes in place from step to step; checkpoints hold them. Every step draws from a generator of its own,
    seeded by (seed, step): a resumed run sees the batches that it would have seen.
    Raises UserError when a loss is not finite; the last checkpoint stays.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True)
    carried = carried or {}
    first = _resume(parameters, average, optimizer, carried, checkpoint)
    with track(description, total=config.steps, unit="steps", done=first) as bar:
        for step in range(first, config.steps):
            rng = np.random.default_rng(distributed.seeds(seed, step))
            torch.manual_seed(int(rng.integers(2**62)))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step / config.steps, config.warmup)
            optimizer.zero_grad(set_to_none=True)
            whole = 0.0
            for _ in range(config.accumulate):
                with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=config.bf16):
                    value, figures = loss(step, rng)
                check_finite(description, step, loss=value.item())
                (value / config.accumulate).backward()
                whole += value.item() / config.accumulate
            distributed.average_gradients(parameters)
            check_finite(description, step, gradient=torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
            optimizer.step()
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(config.average, (step + 1) / (step + 10)))
            bar.advance(loss=whole, **figures)
            if metrics and (step % 20 == 0 or step == config.steps - 1):
                metrics.log(step, loss=whole, learning_rate=optimizer.param_groups[0]["lr"], **figures)
            if checkpoint and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
                _save(parameters, average, optimizer, carried, checkpoint, step + 1)
    with torch.no_grad():
        for parameter, kept in zip(parameters, average):
            parameter.copy_(kept)


@contextmanager
def one_thread() -> Iterator[None]:
    """For models so small that threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 2 % of the peak."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * (progress - warmup) / (1 - warmup)))


def _save(parameters, average, optimizer, carried, checkpoint: Checkpoint, step: int) -> None:
    tensors, state = optimizer_tensors(optimizer)
    tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"weights.{i}": p.detach() for i, p in enumerate(parameters)} | {f"average.{i}": a for i, a in enumerate(average)}
    tensors |= {f"carried.{name}": tensor for name, tensor in carried.items()}
    checkpoint.save(step, tensors, {"optimizer": state})


def _resume(parameters, average, optimizer, carried, checkpoint: Checkpoint | None) -> int:
    found = checkpoint.latest() if checkpoint else None
    if found is None:
        return 0
    step, tensors, state = found
    with torch.no_grad():
        for i, (parameter, kept) in enumerate(zip(parameters, average)):
            parameter.copy_(tensors[f"weights.{i}"])
            kept.copy_(tensors[f"average.{i}"])
        for name, tensor in carried.items():
            tensor.copy_(tensors[f"carried.{name}"])
    prefix = "optimizer."
    load_optimizer(optimizer, {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}, state["optimizer"])
    return step
