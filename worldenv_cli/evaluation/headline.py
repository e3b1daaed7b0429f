"""What a report says first: one sentence on what came out, and one line on when, from which code, with which seed and on which machine."""

import os
import subprocess
import time
from pathlib import Path

from .. import __version__
from .blocks import percent, points
from .svg import known

BASE, RESULT = "SFT", "post-trained"


def headline(report: dict) -> str:
    """The base policy against the post-trained one, and whether the gain can be told from the rival's and from the control's; empty without them."""
    arms = {arm["name"]: arm.get("pooled") for arm in report.get("arms") or []}
    before, after = arms.get(BASE), arms.get(RESULT)
    if not before or not after or not before["n"] or not after["n"]:
        return ""
    text = f"{BASE} {percent(before['successes'] / before['n'])} → {RESULT} {percent(after['successes'] / after['n'])} of {after['n']} real episodes"
    others = []
    for comparison in report.get("comparisons") or []:
        difference = comparison.get("difference") or {}
        if comparison["b"] != RESULT or not known(difference.get("low")) or not known(difference.get("high")):
            continue
        interval = f"{points(difference['estimate'])} [{points(difference['low'])}, {points(difference['high'])}]"
        if comparison["a"] == BASE:
            text += f" ({interval} points)"
        else:
            better, worse = difference["low"] > 0, difference["high"] < 0
            verdict = "better than" if better else "worse than" if worse else "not distinguishable from"
            others.append(f"{verdict} {comparison['a']} ({interval})")
    return "; ".join([text, *others]) + "."


def origin(seed: int) -> dict[str, str]:
    """{"created", "code", "seed", "machine"} of a report that is written now."""
    return {"created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "code": _code(), "seed": f"seed {seed}", "machine": _machine()}


def _code() -> str:
    """The commit of a clone, else the installed version."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / ".git").exists():
        try:
            asked = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=10"]
            found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            return f"worldenv {__version__}, commit {found}"
        except (OSError, subprocess.SubprocessError):
            pass
    return f"worldenv {__version__}"


def _machine() -> str:
    import torch

    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores"
    return f"{torch.cuda.get_device_name()}, {cores}" if torch.cuda.is_available() else f"no GPU, {cores}"
