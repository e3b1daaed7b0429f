"""The report's sections on what was learned: the rounds of post-training, the simulator's fidelity, the reflector's errors."""

import math

from . import statistics
from .blocks import NOTHING, Cell, Plot, Table, number, percent, rate, rate_of
from .svg import Point, Series, agreement_plot, known, line_plot


def rounds(all_rounds: list[dict]) -> list[Table]:
    if not all_rounds:
        return []
    tasks = list(dict.fromkeys(task for row in all_rounds for task in row.get("probe", {})))
    rows = []
    for row in all_rounds:
        probes = [rate(row.get("probe", {}).get(task)) for task in tasks]
        rows.append([str(row["round"]), str(row.get("updates", NOTHING)), *probes, row.get("stopped_because", "")])
    note = "The probe plays the round's policy for a few real episodes. [95% Wilson interval in %], successes/episodes." if tasks else ""
    tables = [Table("Rounds", ["round", "updates", *(f"probe: {task}" for task in tasks), "stopped because"], rows, note)]
    accepted = [(row["round"], task, value) for row in all_rounds for task, value in row.get("acceptance", {}).items()]
    if accepted:
        names = ("sft", "start", "tuned")
        rows = [[str(r), task, *(rate_of(v.get(name)) for name in names), v.get("used", NOTHING)] for r, task, v in accepted]
        note = "Real episodes decide, task by task, which policy is used: the fine-tuned one, the one the round started from, or the tuned one."
        tables.append(Table("Acceptance", ["round", "task", *names, "used"], rows, note))
    return tables


def updates(rows: list[dict]) -> list:
    """One small plot for each known metric, all updates in a row, rounds parted by dashed lines."""
    metrics = {
        "imagined_success": ("imagined success", (0.0, 1.0)),
        "reward": ("reward", None),
        "kl": ("KL to the old policy", (0.0, 0.0)),
        "clip_fraction": ("clipped share", (0.0, 0.0)),
        "scale": ("scale of the policy", None),
        "steps_per_second": ("steps a second", (0.0, 0.0)),
    }
    x = list(range(1, len(rows) + 1))
    breaks = [i + 0.5 for i in range(1, len(rows)) if rows[i].get("round") != rows[i - 1].get("round")]
    plots = []
    for key, (title, at_least) in metrics.items():
        y = [row.get(key) for row in rows]
        if any(known(value) for value in y):
            plots.append(Plot(title, line_plot([Series(title, x, y)], ("update", ""), at_least, breaks)))
    return [plots] if plots else []


def fidelity(values: dict) -> list:
    horizon = values.get("horizon") or []
    metrics = {"psnr": "PSNR, dB (higher is better)", "ssim": "SSIM (higher is better)"}
    metrics["perceptual"] = f"{values.get('perceptual_name', 'perceptual distance')} (lower is better)"
    arms = {"simulator": "simulator", "copy": "copy of the last real frame", "shuffled_actions": "simulator, shuffled actions"}
    arms = {key: title for key, title in arms.items() if values.get(key)}
    metrics = {key: title for key, title in metrics.items() if any(values[arm].get(key) for arm in arms)}
    blocks: list = []
    if horizon and metrics:
        rows: list[list[Cell]] = [[title, *(course(values[arm].get(key)) for key in metrics)] for arm, title in arms.items()]
        n = f"n = {values['n_episodes']} held-out episodes" if "n_episodes" in values else "n not given"
        note = f"First chunk → last chunk ({horizon[0]} → {horizon[-1]}) of an open-loop replay, and the mean over it; {n}."
        blocks.append(Table("Fidelity", ["", *metrics.values()], rows, note))
        plots = []
        for key, title in metrics.items():
            present = {arm: name for arm, name in arms.items() if values[arm].get(key)}
            series = [
                Series(name, horizon, values[arm][key], values[arm].get(f"{key}_low"), values[arm].get(f"{key}_high"))
                for arm, name in present.items()
            ]
            plots.append(Plot(title, line_plot(series, ("chunk", "")), list(present.values())))
        blocks.append(plots)
    return blocks


def compared(values: dict) -> list:
    """One-step regression and few-step flow matching, trained for equal times (`worldenv simulate --compare`)."""
    objectives = values.get("compared") or []
    if not objectives:
        return []
    rows: list[list[Cell]] = []
    for one in objectives:
        trained = (f"{one['seconds']:.0f} s", f"{one['steps']:,} steps")
        rows.append([one["objective"], trained, number(one["seconds_a_chunk"]), course(one["psnr"]), course(one["ssim"])])
    headers = ["objective", "trained", "seconds a chunk", "PSNR, dB (higher is better)", "SSIM (higher is better)"]
    note = f"First chunk → last chunk, open loop; n = {values['n_episodes']} held-out episodes, imagined side by side."
    table = Table("Objectives compared", headers, rows, note)
    series = [Series(one["objective"], list(range(1, len(one["psnr"]) + 1)), one["psnr"]) for one in objectives]
    return [table, [Plot("PSNR by objective, dB", line_plot(series, ("chunk", "")), [line.name for line in series])]]


def course(values: list[float] | None) -> Cell:
    """How a metric goes over the horizon: first → last, and the mean."""
    values = [value for value in values or [] if known(value)]
    return (f"{number(values[0])} → {number(values[-1])}", f"mean {number(math.fsum(values) / len(values))}") if values else NOTHING


def reflector(values: dict) -> list:
    measured = [(name, values[name]) for name in ("real", "imagined") if values.get(name)]
    measured += [(f"{row['task']}, {row['frames']}" if "frames" in row else row["task"], row) for row in values.get("per_task", [])]
    blocks: list = []
    if measured:
        rows: list[list[Cell]] = []
        for name, row in measured:
            area, low, high = (row.get(key) for key in ("auc", "auc_low", "auc_high"))
            auc = (number(area), f"[{number(low)}, {number(high)}]") if known(low) and known(high) else number(area)
            errors = [row.get(key) for key in ("false_termination", "missed_success")]
            errors = [rate(value) if isinstance(value, dict) else percent(value) for value in errors]
            rows.append([name, auc, *errors, number(row.get("delay_steps")), number(row.get("ece")), str(row.get("n_episodes", NOTHING))])
        headers = ["episodes", "AUC", "false termination", "missed success", "delay, steps", "calibration error", "n"]
        note = "AUC with its 95% interval."
        if values.get("never_stops"):
            note += f" {values['never_stops']['message']}."
        elif known(values.get("threshold")):
            note += f" Errors and delay at the threshold {values['threshold']:.3g}."
        blocks.append(Table("Ranking, errors and calibration", headers, rows, note))
    if values.get("reliability"):
        dots = []
        for p, y, n in values["reliability"]:
            _, low, high = statistics.wilson(round(y * n), int(n))
            dots.append(Point(p, y, low, high, f"predicted {p:.3f}, observed {y:.3f}, n = {n}"))
        plot = Plot("Reliability", agreement_plot(dots, ("predicted probability", "observed share")))
        total = sum(int(n) for _, _, n in values["reliability"])
        plot.note = f"n = {total} predictions; bars: 95% Wilson intervals, too narrow where frames of one episode share a bin."
        blocks.append([plot])
    return blocks
