"""A report says everything that is in its dict, nothing that is not, and cannot be broken out of."""

import copy
import io
import math
from html.parser import HTMLParser
from xml.etree.ElementTree import tostring

import pytest
from rich.console import Console

from worldenv_cli.evaluation.headline import headline
from worldenv_cli.evaluation.report import print_tables, write_report
from worldenv_cli.evaluation.sections import sections
from worldenv_cli.evaluation.svg import Point, Series, interval_plot, line_plot, span, ticks

VOID = {"meta", "link", "br", "hr", "img", "input", "source", "col"}


def rates(**tasks):
    return {task: {"successes": successes, "n": n} for task, (successes, n) in tasks.items()}


def full_report() -> dict:
    """Every part, with the numbers of a small run that never took place."""
    chunks = list(range(1, 9))
    arms = {
        "SFT": ((14, 40), (25, 40), 0),
        "filtered SFT": ((16, 40), (26, 40), 0),
        "post-trained": ((24, 40), (31, 40), 12_800),
        "control (zero advantages)": ((13, 40), (26, 40), 12_800),
    }
    return {
        "name": "quickstart",
        "created": "2026-11-22 16:02 UTC",
        "recipe": "env:\n  tasks: {push-v3: push the puck}\n",
        "versions": {"worldenv": "0.1.0", "torch": "2.13.0+cpu"},
        "wall_seconds": {"ingest": 12.3, "sft": 640.0, "post-train": 7321.0},
        "peak_memory_gb": 5.43,
        "protocol": {"horizon": 128, "chunk": 4, "camera": {"name": "front", "fovy": 45.0}, "seeds": [0, 1]},
        "arms": [
            {
                "name": name,
                "real_environment_steps": steps,
                "tasks": rates(**{"push-v3": push, "drawer-open-v3": drawer}),
                "pooled": {"successes": push[0] + drawer[0], "n": 80},
                "at_horizon": {"successes": push[0], "n": 80},
            }
            for name, (push, drawer, steps) in arms.items()
        ],
        "comparisons": [
            {
                "a": "SFT",
                "b": "post-trained",
                "per_task": {
                    "push-v3": {"both": 12, "only_a": 2, "only_b": 12, "neither": 14},
                    "drawer-open-v3": {"both": 22, "only_a": 3, "only_b": 9, "neither": 6},
                },
                "difference": {"estimate": 0.2, "low": 0.0812, "high": 0.3123},
                "mcnemar_p": 0.00245,
            },
            {"a": "control (zero advantages)", "b": "post-trained", "difference": {"estimate": 0.2, "low": -0.01, "high": 0.3}},
        ],
        "trust_table": [
            {
                "round": r,
                "task": task,
                "n": 20,
                "real_success": 0.35 + 0.1 * r,
                "reflector_on_real": 0.4,
                "reflector_on_imagined": 0.5 + 0.1 * r,
                "open": task == "push-v3",
                "reason": "agreement within bounds" if task == "push-v3" else "imagined success overstates the real one by more than 15 points",
            }
            for r in (0, 1)
            for task in ("push-v3", "drawer-open-v3")
        ],
        "imagined_vs_real": [
            {"checkpoint": f"update {10 * i}", "task": task, "imagined": 0.3 + 0.08 * i + off, "real": 0.28 + 0.06 * i, "n": 20}
            for i in range(5)
            for task, off in (("push-v3", 0.02), ("drawer-open-v3", 0.11))
        ],
        "fidelity": {
            "horizon": chunks,
            "simulator": {
                "psnr": [29.1 - 0.7 * c for c in chunks],
                "psnr_low": [28.4 - 0.8 * c for c in chunks],
                "psnr_high": [29.9 - 0.6 * c for c in chunks],
                "ssim": [0.95 - 0.015 * c for c in chunks],
                "perceptual": [0.05 + 0.012 * c for c in chunks],
            },
            "copy": {
                "psnr": [24 - 0.9 * c for c in chunks],
                "ssim": [0.9 - 0.03 * c for c in chunks],
                "perceptual": [0.1 + 0.03 * c for c in chunks],
            },
            "shuffled_actions": {"psnr": [25 - 1.0 * c for c in chunks]},
            "perceptual_name": "LPIPS (VGG)",
            "n_episodes": 24,
        },
        "compared": {
            "n_episodes": 24,
            "compared": [
                {
                    "objective": objective,
                    "steps": steps,
                    "seconds": 201.0,
                    "seconds_a_chunk": cost,
                    "psnr": [best - 0.7 * c for c in chunks],
                    "ssim": [0.9 - 0.01 * c for c in chunks],
                }
                for objective, steps, cost, best in (("regression", 450, 0.02, 28), ("flow", 310, 0.06, 29))
            ],
        },
        "reflector": {
            "real": {
                "auc": 0.953,
                "auc_low": 0.902,
                "auc_high": 0.978,
                "false_termination": 0.041,
                "missed_success": 0.087,
                "delay_steps": 2.4,
                "ece": 0.034,
                "n_episodes": 120,
            },
            "imagined": {"auc": 0.911, "false_termination": {"successes": 3, "n": 41}, "missed_success": 0.12, "n_episodes": 60},
            "per_task": [{"task": "push-v3", "auc": 0.967, "auc_low": 0.9, "auc_high": 0.99, "n_episodes": 60}],
            "threshold": 0.57,
            "reliability": [[0.05, 0.03, 900], [0.32, 0.27, 41], [0.71, 0.64, 50], [0.96, 0.95, 320]],
        },
        "updates": [
            {
                "round": i // 12,
                "update": i % 12,
                "imagined_success": 0.35 + 0.012 * i + 0.04 * math.sin(i),
                "kl": 0.002 + 0.0001 * i,
                "clip_fraction": 0.08 + 0.02 * math.cos(i),
                "scale": 0.2 * 0.99**i,
                "reward": 0.4 + 0.01 * i,
                "steps_per_second": 210 + 5 * math.sin(2 * i),
            }
            for i in range(36)
        ],
        "rounds": [
            {
                "round": 0,
                "updates": 12,
                "stopped_because": "the probe fell on push-v3",
                "probe": rates(**{"push-v3": (9, 20), "drawer-open-v3": (13, 20)}),
                "acceptance": {
                    "push-v3": {"sft": [6, 20], "start": [7, 20], "tuned": [9, 20], "used": "tuned"},
                    "drawer-open-v3": {"sft": [12, 20], "start": [13, 20], "tuned": [11, 20], "used": "start"},
                },
            },
            {"round": 1, "updates": 12, "stopped_because": "end of budget"},
        ],
        "videos": [
            {"path": "videos/push-v3 0.mp4", "caption": "push-v3, start 0: SFT fails, post-trained succeeds"},
            {"path": "videos/drawer.webp", "caption": "drawer-open-v3, imagined"},
        ],
        "limits": ["One training seed.", "Two tasks of one simulated robot."],
    }


class Page(HTMLParser):
    """Checks that tags nest, and collects texts and attributes."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def written(tmp_path, report) -> Page:
    html = write_report(tmp_path / "run" / "report.html", report).read_text()
    assert html.startswith("<!DOCTYPE html>")
    return Page(html)


@pytest.fixture
def page(tmp_path):
    return written(tmp_path, full_report())


def test_everything_is_there(page):
    for expected in [
        "quickstart", "2026-11-22 16:02 UTC", "push-v3", "drawer-open-v3", "control (zero advantages)", "12,800",
        "60.0%", "24/40", "[44.6, 73.7]", "35.0%", "14/40", "77.5%", "31/40", "68.8%", "55/80",
        "post-trained − SFT: +20.0 percentage points, 95% interval [+8.1, +31.2], n = 80 paired starts, McNemar p = 0.002"
        ". The interval excludes zero.",
        "post-trained − control (zero advantages): +20.0 percentage points, 95% interval [−1.0, +30.0], n not given"
        ". The interval includes zero.",
        "[+7.1, +40.3]", "0.013", "overstates", "open", "closed", "+15.0", "n = 20",
        "0.953", "[0.902, 0.978]", "4.1%", "3/41", "2.40", "0.034", "0.57", "n = 1311 predictions",
        "28.4 → 23.5", "mean 26.0", "n = 24 held-out episodes", "LPIPS (VGG) (lower is better)", "regression", "310 steps", "0.060",
        "the probe fell on push-v3", "end of budget", "9/20", "tuned", "One training seed.",
        "camera.fovy", "45.0", "2.0 h", "2.2 h", "Peak memory: 5.4 GB.", "2.13.0+cpu", "tasks: {push-v3: push the puck}",
    ]:  # fmt: skip
        assert expected in page.text, expected


def test_nothing_is_loaded_from_outside(page):
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert {source for source in sources if not source.startswith("#")} == {"videos/push-v3%200.mp4", "videos/drawer.webp"}
    player = next(attributes for tag, attributes in page.tags if tag == "video")
    assert {"controls", "loop", "muted"} <= set(player)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {source[1:] for source in sources if source.startswith("#")} == targets


def test_everything_is_escaped(tmp_path):
    evil = '</td><script>alert("1")</script> & [bold]x[/bold]'

    def poison(value):
        match value:
            case dict():
                return {(evil if key in ("push-v3", "torch") else key): poison(inner) for key, inner in value.items()}
            case list():
                return [poison(inner) for inner in value]
            case str():
                return value + evil
        return value

    report = poison(full_report())
    report["videos"][0]["path"] = 'javascript:alert(1)//"onerror=x'
    page = written(tmp_path, report)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>") > 40
    players = [attributes["src"] for tag, attributes in page.tags if tag in ("video", "img")]
    assert players[0] == "javascript%3Aalert%281%29//%22onerror%3Dx"
    assert "[bold]x[/bold]" in terminal(report)


@pytest.mark.parametrize("part", sorted(set(full_report()) - {"name"}))
def test_any_part_may_be_missing_or_stand_alone(tmp_path, part):
    without = full_report()
    del without[part]
    written(tmp_path, without)
    alone = written(tmp_path, {"name": "alone", part: full_report()[part]})
    assert "alone" in alone.text
    written(tmp_path, {"name": "null", part: None})


def test_a_bare_report_has_no_sections(tmp_path):
    assert sections({"name": "bare"}) == []
    assert "bare" in written(tmp_path, {"name": "bare"}).text


def test_what_was_not_measured_is_a_dash_and_not_a_zero(tmp_path):
    report = {
        "name": "gaps",
        "arms": [
            {"name": "SFT", "tasks": rates(push=(0, 0)), "at_horizon": 0.5},
            {"name": "tuned", "tasks": rates(reach=(3, 4)), "real_environment_steps": None},
        ],
        "trust_table": [{"round": 0, "task": "push", "n": 0, "real_success": float("nan"), "reflector_on_imagined": 0.4, "open": False}],
        "reflector": {"real": {"auc": float("nan"), "n_episodes": 3}},
        "imagined_vs_real": [{"checkpoint": "a", "task": "push", "imagined": 0.4, "real": 0.5, "n": 10}],
        "fidelity": {"horizon": [1, 2], "simulator": {"psnr": [None, 20.0]}},
        "updates": [{"round": 0, "kl": float("nan")}, {"round": 0, "kl": 0.1}],
    }
    page = written(tmp_path, report)
    assert "n = 0" in page.text and "50.0%" in page.text and "n not given" in page.text and "nan" not in page.text.lower()
    assert "0.0%" not in page.text.replace("50.0%", "").replace("40.0%", "")


def terminal(report, width=240) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(report, console)
    return console.file.getvalue()


def test_the_terminal_shows_the_tables():
    text = terminal(full_report())
    for expected in [
        "post-trained − SFT: +20.0",
        "24/40",
        "12,800",
        "0.953",
        "28.4 → 23.5",
        "the probe fell on push-v3",
        "One training seed.",
    ]:
        assert expected in text, expected
    assert "2.13.0+cpu" not in text
    terminal(full_report(), width=60)


def test_writing_does_not_change_the_report(tmp_path):
    report = full_report()
    before = copy.deepcopy(report)
    write_report(tmp_path / "report.html", report)
    assert report == before


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.3, 0.31, 4) == pytest.approx([-0.2, 0, 0.2])
    assert ticks(17.2, 29.8, 4) == pytest.approx([20, 25])
    assert ticks(0, 1300) == pytest.approx([0, 500, 1000])


def test_span_is_never_empty():
    for values in ([], [None], [3.0], [0.0], [1.0, 1.0]):
        low, high = span(values)
        assert low < high
    assert span([0.2, 0.4], (0.0, 1.0)) == (0.0, 1.0)
    assert span([2.0, 4.0], (0.0, 0.0)) == pytest.approx((0.0, 4.2))
    assert span([0.0, 0.0], (0.0, 0.0))[0] == 0.0  # a share is never below it


def test_a_line_breaks_where_nothing_was_measured():
    svg = tostring(line_plot([Series("kl", [1, 2, 3, 4], [0.1, None, 0.3, 0.4])], ("update", "kl")), encoding="unicode")
    path = svg.split(' d="')[1].split('"')[0]
    assert path.count("M") == 2 and path.count("L") == 1


def test_intervals_are_drawn_where_they_are():
    svg = interval_plot([("push", [Point(0.5, 0, 0.25, 0.75)])], (0.0, 1.0), "success")
    whisker = next(node for node in svg if node.get("class", "").startswith("whisker"))
    dot = next(node for node in svg if node.tag == "circle")
    assert (float(whisker.get("x1")) + float(whisker.get("x2"))) / 2 == pytest.approx(float(dot.get("cx")), abs=0.1)


def test_the_page_begins_with_what_came_out(page):
    assert headline(full_report()) == (
        "SFT 48.8% → post-trained 68.8% of 80 real episodes (+20.0 [+8.1, +31.2] points); "
        "not distinguishable from control (zero advantages) (+20.0 [−1.0, +30.0])."
    )
    text = page.text
    parts = ("SFT 48.8% →", "2026-11-22 16:02 UTC", "Success by policy", "Real episodes beside", "Starts solved by both arms")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert headline({"name": "bare"}) == "" and headline({"arms": [{"name": "SFT", "pooled": {"successes": 1, "n": 2}}]}) == ""


def test_a_narrow_terminal_says_what_each_row_is_and_shows_no_empty_section():
    lines = terminal(full_report() | {"curves": [{"name": "reflector", "step": [0, 20], "loss": [1.0, 0.5]}]}, 80).splitlines()
    assert "1" not in lines and "round 1" in lines and "Learning curves" not in lines


@pytest.mark.parametrize("width", [80, 100, 240])
def test_no_number_is_cut_in_the_terminal(width):
    shown = terminal(full_report(), width)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for whole in ("[44.6, 73.7]", "24/40", "[+8.1, +31.2]", "12,800", "[0.902, 0.978]", "28.4 → 23.5"):
        assert whole in shown, whole


def test_learning_curves_and_failures(tmp_path):
    report = {
        "name": "x",
        "curves": [{"name": "reflector", "step": [0, 20], "loss": [1.0, 0.5]}, {"name": "empty", "step": [0], "loss": [None]}],
        "videos": [{"path": "a.mp4", "caption": "a"}, {"path": "b.mp4", "caption": "b", "failed": True}],
    }
    page = written(tmp_path, report)
    assert "Learning curves" in page.text and "reflector" in page.text and "empty" not in page.text
    assert page.text.index("Real episodes that failed") > page.text.index("Real episodes beside")
