import json
import os
import pty
import subprocess
import sys
import threading

import pytest
import torch

from worldenv_cli import progress
from worldenv_cli.errors import UserError
from worldenv_cli.progress import Metrics, check_finite, logged, say, say_once, track, voice
from worldenv_cli.remaining import Remaining


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_rare_and_the_last_is_there(capsys, clock):
    with track("sft", total=10, unit="batches") as bar:
        for step in range(10):
            clock[0] += 2
            bar.advance(loss=1 / (step + 1))
    assert capsys.readouterr().out.splitlines() == [
        "sft: 3/10 batches, loss 0.3333, 0:14 left",
        "sft: 6/10 batches, loss 0.1667, 0:08 left",
        "sft: 9/10 batches, loss 0.1111, 0:02 left",
        "sft: 10/10 batches, loss 0.1, took 0:20",
    ]


def test_what_an_earlier_run_did_costs_no_time(capsys, clock):
    with track("sft", total=100, done=90) as bar:
        bar.advance(0)
        clock[0] += 6
        bar.advance(2)
    assert capsys.readouterr().out.splitlines() == ["sft: 92/100 steps, 0:24 left", "sft: 92/100 steps, took 0:06"]


def test_the_last_line_comes_after_an_error_too(capsys, clock):
    with pytest.raises(RuntimeError), track("sft", total=3) as bar:
        bar.advance(2, loss=0.5)
        bar.advance(0, reward=7200)
        clock[0] += 3725
        raise RuntimeError
    assert capsys.readouterr().out == "sft: 2/3 steps, loss 0.5, reward 7200, took 1:02:05\n"


def test_nested_loops_speak_only_when_they_are_slow(capsys, clock):
    with track("rounds", total=2) as outer:
        for seconds in (1, 9):
            with track("inner", total=1) as inner:
                clock[0] += seconds
                inner.advance()
            outer.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["inner: 1/1 steps, took 0:09", "rounds: 2/2 steps, took 0:10"]


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    say("hello")
    with track("sft", total=1) as bar:
        bar.advance()
    assert capsys.readouterr().out == ""


TERMINAL = """
import time
from worldenv_cli.progress import check_finite, say, track
with track("outer [x]", 2, "rounds") as outer:
    for _ in range(2):
        with track("inner", 3) as inner:
            inner.advance(3, loss=0.25)
            time.sleep(0.3)
        say("between")
        outer.advance(reward=2)
"""


def test_bars_on_a_terminal():
    here, there = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", TERMINAL], stdout=there, stderr=there, env=environment)
    os.close(there)
    shown = b""
    try:
        while data := os.read(here, 65536):
            shown += data
    except OSError:  # Linux says that the other end is closed
        pass
    os.close(here)
    text = shown.decode()
    assert process.wait() == 0 and "Traceback" not in text
    assert text.count("between") == 2 and "3/3 steps loss 0.25" in text
    assert "outer [x]" in text.splitlines()[-2] and "2/2 rounds reward 2" in text.splitlines()[-2]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_tensorboard(monkeypatch):
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)


def test_metrics(tmp_path, no_tensorboard):
    metrics = Metrics(tmp_path / "run")
    metrics.log(1, loss=torch.tensor(0.5), episodes=3, task="reach", bad=float("nan"), none=None)
    metrics.log(2, **{"loss/frames": 0.25})
    first, second = lines(tmp_path / "run")
    time = first.pop("time")
    assert first == {"step": 1, "loss": 0.5, "episodes": 3, "task": "reach", "bad": None, "none": None}
    assert second["loss/frames"] == 0.25 and second["time"] >= time > 1e9
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl"]


def test_metrics_on_resume(tmp_path, no_tensorboard):
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3, 4):
        metrics.log(step, loss=step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    Metrics(tmp_path, resume_step=2).log(3, loss=30)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    Metrics(tmp_path, resume_step=99)
    assert len(lines(tmp_path)) == 3
    Metrics(tmp_path)
    assert lines(tmp_path) == []


def test_tensorboard_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.log(step, loss=step / 2, task="reach")
    Metrics(tmp_path, resume_step=2).log(3, loss=9.0)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert events.Tags()["scalars"] == ["loss"]
    Metrics(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_end_their_threads(tmp_path):
    pytest.importorskip("tensorboard")
    Metrics(tmp_path / "first").log(1, loss=1.0)  # imports what it needs, which may start threads that stay
    before = threading.active_count()
    with pytest.raises(RuntimeError), Metrics(tmp_path / "run") as metrics:
        metrics.log(1, loss=1.0)
        assert threading.active_count() > before
        raise RuntimeError
    metrics.close()
    assert threading.active_count() == before
    metrics.log(2, loss=2.0)  # a closed one opens another file
    metrics.close()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2] and threading.active_count() == before


def test_damaged_metrics_lose_the_damaged_lines(tmp_path, no_tensorboard):
    Metrics(tmp_path).log(1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[]\n{"loss": 3}\n{"step": "x"}\n')
    Metrics(tmp_path, resume_step=5).log(6, loss=6.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 6]


def test_check_finite():
    check_finite("video simulator", 1, loss=1.0, other=torch.tensor(2.0))
    for bad in (float("nan"), float("inf"), torch.tensor(float("nan"))):
        with pytest.raises(UserError, match=r"^video simulator: other is (nan|inf) at step 12, .*last good checkpoint is kept"):
            check_finite("video simulator", 12, loss=1.0, other=bad)


def test_what_is_said_beside_a_document(capsys, tmp_path, clock):
    with logged(tmp_path / "run.log"):
        say("one")
        with voice("stderr"):
            say("two")
        with voice("quiet"), track("three", total=1) as bar:
            bar.advance()
    say("four")
    shown = capsys.readouterr()
    assert shown.out == "one\nfour\n" and shown.err == "two\n"
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "two", "three: 1/1 steps, took 0:00"] and lines[0][:2] == "20"


def test_the_same_line_is_said_once(capsys):
    for _ in range(2):
        say_once("the weights of test_progress are right")
    assert capsys.readouterr().out.count("test_progress") == 1


def test_how_far_a_run_is():
    run = Remaining(["demonstrations", "sft", "simulator", "sft"], {})
    assert run.line("demonstrations") == "artifact 1 of 3" and run.line("other") == ""
    run.done("demonstrations", 12.0)  # twice as slow as the quickstart
    run.done("other", 100.0)
    assert run.line("sft") == f"artifact 2 of 3, about {398 / 60:.0f} minutes left"
    run.done("sft", 124.0)
    assert run.line("simulator") == f"artifact 3 of 3, about {274 / 60:.0f} minutes left"
    assert Remaining(["sft", "reflector"], {"sft": 30.0, "reflector": 50.0}).line("sft") == "artifact 1 of 2, about 80 seconds left"
    assert Remaining(["sft"], {}).line("sft") == ""
