"""Start states by purpose: numbered seeds in ranges that never meet, so that nothing is ever tuned on the evaluation's starts."""

from collections.abc import Iterable

PURPOSES = {
    "demonstrations": 0,
    "exploration": 1_000_000,
    "frames": 2_000_000,  # reset frames for imagined episodes: a picture, no environment step
    "probe": 3_000_000,
    "validation": 4_000_000,
    "development": 5_000_000,  # for choosing tasks and settings by hand
    "evaluation": 9_000_000,
}


def starts(purpose: str, tasks: Iterable[str], count: int, *, offset: int = 0, run_seed: int = 0) -> list[tuple[str, int]]:
    """[(task, seed)]: `count` starts of every task, tasks alternating. `run_seed` moves all but the evaluation's, which every run shares.

    There is room for 100 training seeds in a range; the next ones begin again, so that no seed leads into the range of another purpose.
    """
    base = PURPOSES[purpose] + offset + (0 if purpose in ("evaluation", "development") else 10_000 * (run_seed % 100))
    return [(task, base + index) for index in range(count) for task in tasks]


def evaluation_number(seed: int) -> int | None:
    """Which of the evaluation's starts a seed is, from 0; None for the seeds of every other purpose."""
    return seed - PURPOSES["evaluation"] if seed >= PURPOSES["evaluation"] else None
