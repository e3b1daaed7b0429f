"""The numbers of all chosen episodes, read before anything is written: their outcomes, and the one scale that their actions get."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from ..progress import track
from .actions import ROUNDING, ActionScale
from .layout import HELD
from .sources import Listed, Source

SAMPLED = 200  # actions of an episode that are remembered, evenly spaced
RARE = 0.001  # share of the commands at either end that count as outliers where they stretch a range ...
STRETCHED = 2.0  # ... to that many times what all others need

RECORDED = "is the one that was recorded with that observation"
REPEATED = "repeats the last command, since commands here are targets"
BUT_THE_GRIPPER = ", but for the gripper's, which repeats its last command"


@dataclass(frozen=True)
class Measured:
    """What the numbers of an episode say."""

    outcome: str
    low: np.ndarray  # (A,) float64, recorded extremes
    high: np.ndarray
    sample: np.ndarray  # (n, A) float32
    beyond: int  # numbers outside the source's limits
    has_last: bool  # an action was recorded with the last observation


@dataclass
class Survey:
    episodes: dict[int, Measured] = field(default_factory=dict)  # by number, in order
    bad: dict[int, str] = field(default_factory=dict)  # why others cannot be taken


def survey(chosen: Sequence[tuple[Source, Listed]], *, skip_bad: bool) -> Survey:
    """Read the numbers, not the pictures, of every episode. Raises UserError for the first that cannot be read, unless those are left out."""
    found = Survey()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with track("measure", total=len(chosen), unit="episodes") as bar:
            for number, future in enumerate([pool.submit(_measure, *one) for one in chosen]):
                try:
                    found.episodes[number] = future.result()
                except UserError as error:
                    if not skip_bad:
                        raise UserError(f"{error} (or leave such episodes out: --skip-bad)") from error
                    found.bad[number] = str(error)
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _measure(source: Source, listed: Listed) -> Measured:
    episode = source.read(listed, ())
    if not len(episode.actions):
        raise UserError(f"{source.path}: {listed.name}: no actions, expected one at least; leave the episode out")
    has_last = episode.last_action is not None
    actions = np.concatenate([episode.actions, episode.last_action[None]]) if has_last else episode.actions
    beyond = 0
    if source.limits is not None:
        unit = ActionScale.between(*source.limits).to_unit(actions)
        beyond = int((np.abs(unit) > 1 + ROUNDING).sum())
    kept = np.linspace(0, len(actions) - 1, min(len(actions), SAMPLED)).round().astype(int)
    low, high = actions.min(0).astype(np.float64), actions.max(0).astype(np.float64)
    return Measured(episode.outcome, low, high, actions[kept].astype(np.float32), beyond, has_last)


def common_scale(sources: Sequence[Source], measured: Iterable[Measured]) -> tuple[ActionScale, dict, list[str]]:
    """(the scale, what meta/worldenv.json says of it, lines for people): by the limits where all sources have the same, else by common extremes."""
    measured, names = list(measured), sources[0].action_names
    limits = [source.limits for source in sources]
    if all(known is not None and _equal(known, limits[0]) for known in limits):
        low, high = _checked(sources[0])
        scale = _between(low, high)
        clipped = sum(one.beyond for one in measured)
        about = {"low": low.tolist(), "high": high.tolist(), "scaled_by": "the limits of the controller", "clipped": clipped}
        told = f"actions: {clipped:,} numbers beyond the limits {_shown(low, high)} are clipped, as the controller does"
        return scale, about, [told] if clipped else []
    low, high = np.min([one.low for one in measured], 0), np.max([one.high for one in measured], 0)
    if low.min() >= -1 - ROUNDING and high.max() <= 1 + ROUNDING:
        return ActionScale.identity(len(names)), {"clipped": 0}, []
    about = {"low": low.tolist(), "high": high.tolist(), "scaled_by": "the extremes of all episodes", "clipped": 0}
    what = f"actions: recorded between {_shown(low, high)}, limits unknown: scaled to [-1, 1] by these extremes of all sources"
    return _between(low, high), about, [what, *_stretched(names, low, high, np.concatenate([one.sample for one in measured]))]


def _between(low: np.ndarray, high: np.ndarray) -> ActionScale:
    return ActionScale.identity(len(low)) if (low == -1).all() and (high == 1).all() else ActionScale.between(low, high)


def _equal(one: tuple, other: tuple) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _checked(source: Source) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.asarray(side, np.float64) for side in source.limits)
    if low.shape != (len(source.action_names),) or high.shape != low.shape or not np.isfinite([low, high]).all() or (low > high).any():
        raise UserError(f"{source.path}: limits of the action {source.limits}, expected {len(source.action_names)} finite numbers, low before high")
    return low, high


def _shown(low: np.ndarray, high: np.ndarray) -> str:
    return f"{low.min():.4g} and {high.max():.4g}"


def _stretched(names: Sequence[str], low: np.ndarray, high: np.ndarray, sample: np.ndarray) -> list[str]:
    """One line for each dimension that few outliers stretch: they make everything else small."""
    rare = max(1, int(np.ceil(RARE * len(sample))))
    if len(sample) < 10 * rare:
        return []
    ordered = np.sort(sample, axis=0).astype(np.float64)
    inner_low, inner_high = ordered[rare], ordered[-1 - rare]
    lines = []
    for i, name in enumerate(names):
        width = inner_high[i] - inner_low[i]
        if width > 0 and high[i] - low[i] > STRETCHED * width:
            largest = low[i] if abs(low[i]) > abs(high[i]) else high[i]
            share = 100 * (1 - 2 * rare / len(sample))
            lines.append(
                f"action {name}: {share:.1f} % within [{inner_low[i]:.3g}, {inner_high[i]:.3g}], largest {largest:.3g}: it stretches the range"
            )
    return lines


def closing_action(recorded: np.ndarray, last: np.ndarray | None, scale: ActionScale, source: Source) -> np.ndarray:
    """(A,) stored: the action of the closing row, for an episode of (T, A) recorded actions. `closing_rule` says it in words."""
    if last is None:
        last = recorded[-1].copy()
        if not _repeats(scale, source):
            last[[i for i in range(len(last)) if i != (source.gripper or {}).get("dimension")]] = 0
    return np.clip(scale.to_unit(last), -1, 1).astype(np.float32)


def _repeats(scale: ActionScale, source: Source) -> bool:
    """Whether commands are targets, where zero is a place to go to: the source says so, or zero lies outside what was ever commanded."""
    return bool(source.action.get("absolute")) or bool((np.abs(scale.to_unit(np.zeros(len(source.action_names)))) > 1).any())


def closing_rule(recorded: Iterable[tuple[Source, bool]], scale: ActionScale) -> str:
    """What the closing rows of episodes hold, each with its source and whether an action was recorded with its last observation.

    A dataset of ours that is read again has an action in every closing row, but says itself which of them were recorded.
    """
    rules: list[str] = []
    for source, has_last in {(id(source), has_last): (source, has_last) for source, has_last in recorded}.values():
        held = f"{HELD}{BUT_THE_GRIPPER}"
        if has_last and source.closing_row:
            rules += [rule for rule in (RECORDED, REPEATED, held) if rule in source.closing_row]
            rules += [HELD] if source.closing_row.count(HELD) > source.closing_row.count(held) else []
        elif has_last:
            rules.append(RECORDED)
        elif _repeats(scale, source):
            rules.append(REPEATED)
        else:
            rules.append(HELD if source.gripper is None else held)
    return ", or ".join(dict.fromkeys(rules))
