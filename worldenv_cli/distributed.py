"""One run in several processes, one GPU each, as torchrun or `accelerate launch` start them. In a single process nothing here does anything.

Training is data-parallel: every process draws samples, or imagines groups, of its own, and only the gradients of what learns are averaged. What
is not training (real episodes, gates, reports) the first process does alone while the others wait. All see the same folder of the run.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
PATIENCE = timedelta(days=7)  # the others wait while the first one plays in the real environment


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    return rank() == 0


def begin() -> None:
    """Join the other processes. Gradients go over NCCL where there are GPUs, everything else over gloo."""
    if count() == 1:
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)


def seeds(*numbers: int) -> list[int]:
    """Of a generator that is another one in every process; the first one's is that of a run in a single process."""
    return [*numbers, rank()] if rank() else [*numbers]


def average_gradients(parameters: "Iterable[torch.nn.Parameter]") -> None:
    """The mean over processes, in place. A parameter that was not used in one of them counts as zero there."""
    if count() == 1:
        return
    import torch
    from torch import distributed

    learning = [p for p in parameters if p.requires_grad]
    whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in learning])
    distributed.all_reduce(whole)
    for parameter, mean in zip(learning, (whole / count()).split([p.numel() for p in learning])):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def agreed(value: Value) -> Value:
    """The first process's value, everywhere: for decisions."""
    if count() == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, src=0, device="cpu")
    return held[0]


def largest(value: int) -> int:
    """Over all processes."""
    if count() == 1:
        return value
    from torch import distributed

    found: list[int] = [0] * count()
    distributed.all_gather_object(found, value)
    return max(found)


def wait() -> None:
    """Until all processes are here."""
    largest(0)
