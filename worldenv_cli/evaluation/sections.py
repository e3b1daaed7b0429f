"""What a report says, before anybody decides how it looks: a report dict becomes sections of tables, plots and sentences.

Every part of the dict but `name` is optional, and what is absent is left out. A rate is {"successes": int, "n": int}, shown with its
Wilson interval and counts, or a bare number, of which is then said that its n is not given. Nothing is computed here beyond
intervals, sums of counts and differences of what stands in the dict.
"""

from . import statistics
from .blocks import (
    NOTHING,
    Cell,
    Listing,
    Plot,
    Section,
    Table,
    Video,
    difference_cell,
    duration,
    number,
    p_value,
    percent,
    points,
    rate,
)
from .diagnostics import compared, fidelity, reflector, rounds, updates
from .svg import Point, agreement_plot, interval_plot, known


def sections(report: dict) -> list[Section]:
    """The sections of a report that have anything to say, in reading order."""
    every = [
        Section("Result", result(report.get("comparisons") or [])),
        Section("Success in the real environment", success(report.get("arms") or [])),
        Section("Paired comparisons", comparisons(report.get("comparisons") or [])),
        Section("Trust: imagined against real", trust(report.get("trust_table") or []) + agreement(report.get("imagined_vs_real") or [])),
        Section("Post-training", rounds(report.get("rounds") or []) + updates(report.get("updates") or [])),
        Section("World simulator", fidelity(report.get("fidelity") or {}) + compared(report.get("compared") or {})),
        Section("Reflector", reflector(report.get("reflector") or {})),
        Section("Videos", videos(report.get("videos") or []), key=False),
        Section("Limits", list(report.get("limits") or [])),
        Section("Protocol, cost and versions", provenance(report), key=False),
    ]
    return [section for section in every if section.blocks]


def result(all_comparisons: list[dict]) -> list[str]:
    """One sentence a comparison: the difference, its interval, whether it can be told from zero."""
    sentences = []
    for comparison in all_comparisons:
        difference = comparison.get("difference") or {}
        if not known(difference.get("estimate")):
            continue
        text = f"{comparison['b']} − {comparison['a']}: {points(difference['estimate'])} percentage points"
        pairs = sum(sum(counts.values()) for counts in comparison.get("per_task", {}).values())
        if known(difference.get("low")) and known(difference.get("high")):
            text += f", 95% interval [{points(difference['low'])}, {points(difference['high'])}]"
        text += f", n = {pairs} paired starts" if pairs else ", n not given"
        if known(comparison.get("mcnemar_p")):
            text += f", McNemar p {'' if comparison['mcnemar_p'] < 0.001 else '= '}{p_value(comparison['mcnemar_p'])}"
        if known(difference.get("low")) and known(difference.get("high")):
            text += ". The interval " + ("excludes zero." if difference["low"] > 0 or difference["high"] < 0 else "includes zero.")
        sentences.append(text)
    return sentences


def success(arms: list[dict]) -> list:
    if not arms:
        return []
    tasks = list(dict.fromkeys(task for arm in arms for task in arm.get("tasks", {})))
    extra = {"at_reflector_stop": "stopped by the reflector", "at_horizon": "at the horizon", "real_environment_steps": "real steps"}
    extra = {key: title for key, title in extra.items() if any(key in arm for arm in arms)}
    pooled = any("pooled" in arm for arm in arms)
    rows = []
    for arm in arms:
        row = [arm["name"], *(rate(arm.get("tasks", {}).get(task)) for task in tasks)]
        row += [rate(arm.get("pooled"))] if pooled else []
        for key in extra:
            value = arm.get(key)
            row.append(rate(value) if key != "real_environment_steps" else f"{value:,}" if value is not None else NOTHING)
        rows.append(row)
    headers = ["", *tasks, *(["pooled"] if pooled else []), *extra.values()]
    table = Table("Success by arm", headers, rows, "Success rate, [95% Wilson interval in %], successes/episodes.")

    plot_rows = []
    for label in [*tasks, *(["pooled"] if pooled else [])]:
        dots = []
        for group, arm in enumerate(arms):
            value = arm.get("pooled") if label == "pooled" else arm.get("tasks", {}).get(label)
            if value and value["n"]:
                estimate, low, high = statistics.wilson(value["successes"], value["n"])
                dots.append(Point(estimate, 0, low, high, f"{arm['name']}: {' '.join(rate(value))}", group))
        if dots:
            plot_rows.append((label, dots))
    if not plot_rows:
        return [table]
    figure = interval_plot(plot_rows, (0.0, 1.0), "success, %")
    return [table, [Plot("Success by task", figure, [arm["name"] for arm in arms], "Bars: 95% intervals.")]]


def comparisons(all_comparisons: list[dict]) -> list[Table]:
    """For each pair of arms the counts, task by task and summed."""
    tables = []
    names = ("both", "only_a", "only_b", "neither")
    for comparison in all_comparisons:
        a, b, per_task = comparison["a"], comparison["b"], comparison.get("per_task", {})
        rows: list[list[Cell]] = []
        for task, counts in per_task.items():
            counts = [counts[name] for name in names]
            cell = difference_cell(*statistics.newcombe_paired_counts(*counts)) if sum(counts) else NOTHING
            rows.append([task, *map(str, counts), str(sum(counts)), cell, p_value(statistics.mcnemar_p(counts[1], counts[2]))])
        difference = comparison.get("difference") or {}
        totals = [sum(counts[name] for counts in per_task.values()) for name in names]
        shown = [str(total) for total in (*totals, sum(totals))] if per_task else [NOTHING] * 5
        pooled = difference_cell(*(difference.get(key) for key in ("estimate", "low", "high")))
        rows.append(["all", *shown, pooled, p_value(comparison.get("mcnemar_p"))])
        headers = ["task", "both", f"only {a}", f"only {b}", "neither", "pairs", "difference, points", "McNemar p"]
        note = "Starts solved by both arms, by one, by neither. By task: Newcombe's paired 95% interval and the exact McNemar test."
        if comparison.get("method"):
            note += f" All: {comparison['method']}."
        tables.append(Table(f"{b} − {a}", headers, rows, note))
    return tables


def trust(rows: list[dict]) -> list[Table]:
    if not rows:
        return []
    cells = []
    for row in rows:
        real, imagined, n = row.get("real_success"), row.get("reflector_on_imagined"), row.get("n")
        gap = imagined - real if known(real) and known(imagined) else None
        cells.append(
            [
                str(row.get("round", NOTHING)),
                row.get("task", ""),
                rate({"successes": round(real * n), "n": n}) if known(real) and n else rate(real),
                (percent(row.get("reflector_on_real")), f"n = {n}") if n else rate(row.get("reflector_on_real")),
                (percent(imagined), f"n = {row['n_imagined']}") if row.get("n_imagined") else percent(imagined),
                points(gap),
                {True: "open", False: "closed"}.get(row.get("open"), NOTHING),
                row.get("reason", ""),
            ]
        )
    headers = ["round", "task", "real success", "reflector, real", "reflector, imagined", "imagined − real, points", "gate", "reason"]
    note = "A task is trained on in imagination only while its gate is open. Success that only the reflector sees is reward hacking."
    return [Table("What the reflector says and what is true", headers, cells, note)]


def agreement(rows: list[dict]) -> list:
    rows = [row for row in rows if known(row.get("imagined")) and known(row.get("real"))]
    if not rows:
        return []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    dots = []
    for row in rows:
        n = row.get("n") or 0
        _, low, high = statistics.wilson(round(row["real"] * n), n)
        text = f"{row['checkpoint']}, {row['task']}: imagined {percent(row['imagined'])}, real {percent(row['real'])}"
        text += f", n = {n or 'not given'}"
        dots.append(Point(row["imagined"], row["real"], low if n else None, high if n else None, text, tasks.index(row["task"])))
    plot = Plot("Imagined and real success of the same checkpoint", agreement_plot(dots, ("imagined success", "real success")), tasks)
    plot.note = "Bars: 95% Wilson intervals of the real rate. On the dashed line the two agree."
    if any("starts" in row for row in rows):
        plot.note += " Imagined from the first frames of held-out exploration, played from the evaluation's starts."

    imagined, real = [row["imagined"] for row in rows], [row["real"] for row in rows]
    gaps = [x - y for x, y in zip(imagined, real, strict=True)]
    r, r_low, r_high = statistics.correlation(imagined, real)
    correlation = (f"{r:.2f}", f"[{r_low:.2f}, {r_high:.2f}]") if known(r_low) else number(r, 2)
    table = Table(
        "Agreement of imagined and real success",
        ["points", "correlation", "mean gap imagined − real, points", "mean absolute gap, points"],
        [[str(len(rows)), correlation, difference_cell(*statistics.mean(gaps)), f"{100 * sum(map(abs, gaps)) / len(gaps):.1f}"]],
        "Correlation: Pearson with Fisher's 95% interval; mean gap: Student's. Points of one task are not independent of each other.",
    )
    return [table, [plot]]


def videos(rows: list[dict]) -> list[list[Video]]:
    return [[Video(row["path"], row.get("caption", "")) for row in rows]] if rows else []


def provenance(report: dict) -> list:
    blocks: list = []
    if report.get("protocol"):
        blocks.append(Table("Protocol", ["setting", "value"], [[key, value] for key, value in flat(report["protocol"])]))
    if report.get("wall_seconds"):
        seconds = report["wall_seconds"]
        rows: list[list[Cell]] = [[stage, duration(value)] for stage, value in seconds.items()]
        blocks.append(Table("Wall-clock time", ["stage", "time"], [*rows, ["total", duration(sum(seconds.values()))]]))
    if known(report.get("peak_memory_gb")):
        blocks.append(f"Peak memory: {report['peak_memory_gb']:.1f} GB.")
    if report.get("versions"):
        blocks.append(Table("Versions", ["package", "version"], [[key, value] for key, value in flat(report["versions"])]))
    if report.get("recipe"):
        blocks.append(Listing("Recipe", report["recipe"]))
    return blocks


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Rows of a nested dict, keys joined by dots."""
    rows = []
    for key, value in values.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]
    return rows
