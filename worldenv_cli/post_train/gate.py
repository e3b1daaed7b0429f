"""Which tasks may be trained in imagination: the small table in which reward hacking shows before it happens.

For real episodes of every task on which neither model was trained: true success / the reflector on their real frames / the reflector on the
simulator's replay of the same actions. If the second disagrees with the first the reflector would be exploited, if the third does, the simulator.
"""

from collections.abc import Sequence

import numpy as np

from ..data.dataset import Episode
from ..reflector.calibration import Scored, measure
from ..reflector.compact import Reflector
from ..reflector.train import imagined_sequences, real_sequences, score_sequences
from ..simulator.simulator import Simulator
from .config import GateConfig


def judged(episode: Scored, threshold: float) -> float:
    """What an imagined episode with these scores would be rewarded: the score where it first passes the threshold, or the last one."""
    passed = np.flatnonzero(episode.scores[1:] >= threshold)
    return float(episode.scores[1 + passed[0]] if len(passed) else episode.scores[-1])


def score_both(simulator: Simulator, reflector: Reflector, episodes: Sequence[Episode]) -> tuple[list[Scored], list[Scored]]:
    """The episodes under the reflector's eye, as they were and as the simulator replays their actions."""
    real = score_sequences(reflector, real_sequences(episodes, simulator.config.camera))
    return real, score_sequences(reflector, imagined_sequences(simulator, episodes))


def gate(real: Sequence[Scored], imagined: Sequence[Scored], threshold: float, tasks: Sequence[str], config: GateConfig) -> list[dict]:
    """One row for each task: its three figures, whether it is open to post-training, and why not."""
    rows = []
    for task in tasks:
        mine = [i for i, scored in enumerate(real) if scored.task == task]
        if not mine:
            rows.append({"task": task, "n": 0, "open": False, "reason": "no unseen episodes"})
            continue
        success = float(np.mean([real[i].success[-1] for i in mine]))
        on_real = float(np.mean([judged(real[i], threshold) for i in mine]))
        on_imagined = float(np.mean([judged(imagined[i], threshold) for i in mine]))
        area = measure([imagined[i] for i in mine], threshold)["auc"]
        reason = _closed_because(success, on_real, on_imagined, area, config)
        rows.append(
            {
                "task": task,
                "n": len(mine),
                "real_success": success,
                "reflector_on_real": on_real,
                "reflector_on_imagined": on_imagined,
                "auc_imagined": area,
                "open": not reason,
                "reason": reason or "both models agree with the truth",
            }
        )
    return rows


def errors_on(tasks: Sequence[str], scored: dict[str, Sequence[Scored]], threshold: float) -> list[dict]:
    """What the reflector gets wrong on these tasks together: a row (see `measure`) for each kind of frames."""
    chosen = {kind: [episode for episode in episodes if episode.task in tasks] for kind, episodes in scored.items()}
    return [{"task": "open tasks", "frames": kind, **measure(episodes, threshold)} for kind, episodes in chosen.items() if episodes]


def _closed_because(success: float, on_real: float, on_imagined: float, area: float, config: GateConfig) -> str:
    if success < config.success_min:
        return f"success {success:.2f} is below {config.success_min}: no signal"
    if success > config.success_max:
        return f"success {success:.2f} is above {config.success_max}: no room"
    if abs(on_real - success) > config.gap:
        return f"reflector says {on_real:.2f} of real frames, the truth is {success:.2f}: it would be exploited"
    if abs(on_imagined - success) > config.gap:
        return f"reflector says {on_imagined:.2f} of imagined frames, the truth is {success:.2f}: the simulator would be exploited"
    if np.isnan(area):
        return "no AUC: all unseen episodes end alike"
    if area < config.auc:
        return f"AUC {area:.2f} on imagined frames is below {config.auc}"
    return ""
