"""What a run says while it works, to people (bars or lines) and to files (metrics.jsonl, TensorBoard)."""

import functools
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, Self

from .atomic import write_text
from .errors import UserError

SECONDS_BETWEEN_LINES = 5.0
_open_bars = 0
_voice: Literal["stdout", "stderr", "quiet"] = "stdout"
_log: Path | None = None


class Progress(Protocol):
    def advance(self, n: int = 1, **figures: float) -> None:
        """`n` more are done; `figures` are shown beside the count, and stay until they change."""


@contextmanager
def voice(where: Literal["stdout", "stderr", "quiet"]) -> Iterator[None]:
    """Where lines and bars go: to stderr where stdout is a document for programs, nowhere where only results are asked for."""
    global _voice
    before, _voice = _voice, where
    try:
        yield
    finally:
        _voice = before


@contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Append everything that is said meanwhile to a file, with the time, whatever is shown; None: to none."""
    global _log
    before, _log = _log, path
    try:
        yield
    finally:
        _log = before


def say(text: str) -> None:
    """One line for people, above a bar if there is one. Only the first of several processes speaks."""
    text = " ".join(text.splitlines())  # names of other people's data may hold line breaks
    if _speaks():
        _note(text)
        if _voice != "quiet":
            print(text, file=_stream(), flush=True)


@functools.cache
def say_once(text: str) -> None:
    """A line that would be the same every time it is said in this process."""
    say(text)


def _note(text: str) -> None:
    if _log is not None:
        with _log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def _stream():
    return sys.stdout if _voice == "stdout" else sys.stderr


@contextmanager
def track(description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Progress]:
    """Show how far something is: a bar on a terminal, elsewhere a line every few seconds and a last one.

    `done` of them were done by an earlier run, and do not count for the time that is left. May be nested.
    """
    global _open_bars
    kind = _Bar if _voice != "quiet" and _stream().isatty() and _speaks() else _Lines
    bar = kind(description, total, unit, done, nested=_open_bars > 0)
    _open_bars += 1
    try:
        yield bar
    finally:
        _open_bars -= 1
        bar.close()


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class _Bar:
    def __init__(self, description: str, total: int, unit: str, done: int, nested: bool):
        from rich import console, progress

        self.description, self.unit, self.started = description, unit, time.monotonic()
        self.rich = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}", markup=False),
            progress.TextColumn("{task.fields[listed]}", markup=False),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console.Console(file=_stream()),
            transient=nested,
        )
        self.figures: dict[str, float] = {}
        self.task = self.rich.add_task(description, total=total, completed=done, listed="")
        self.rich.start()

    def advance(self, n: int = 1, **figures: float) -> None:
        self.figures |= figures
        self.rich.update(self.task, advance=n, listed=_listed(self.figures))

    def close(self) -> None:
        self.rich.stop()
        counts = f"{self.rich.tasks[0].completed:.0f}/{self.rich.tasks[0].total:.0f} {self.unit}"
        _note(", ".join(filter(None, [f"{self.description}: {counts}", _listed(self.figures), f"took {_clock(time.monotonic() - self.started)}"])))


class _Lines:
    def __init__(self, description: str, total: int, unit: str, done: int, nested: bool):
        self.description, self.total, self.unit, self.nested = description, total, unit, nested
        self.before = self.done = done
        self.started = self.told = time.monotonic()
        self.figures: dict[str, float] = {}

    def advance(self, n: int = 1, **figures: float) -> None:
        self.done += n
        self.figures |= figures
        now = time.monotonic()
        if now - self.told >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self.told = now
            left = (now - self.started) / max(1, self.done - self.before) * (self.total - self.done)
            self._say(f"{_clock(left)} left")

    def close(self) -> None:
        took = time.monotonic() - self.started
        if not self.nested or took >= SECONDS_BETWEEN_LINES:  # a quick loop within a loop is not worth a line each time
            self._say(f"took {_clock(took)}")

    def _say(self, when: str) -> None:
        parts = [f"{self.description}: {self.done}/{self.total} {self.unit}", _listed(self.figures), when]
        say(", ".join(part for part in parts if part))


class Metrics:
    """Figures of a run, one JSON line a step in `folder`/metrics.jsonl, and TensorBoard events beside it where that is installed.

    A run begins an empty file. One that goes on after `resume_step` keeps what was logged up to it: the steps that follow come again.
    """

    def __init__(self, folder: Path, resume_step: int | None = None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.jsonl"
        self.resume_step = resume_step
        self._writer = None
        kept = [] if resume_step is None else [line for line in read_lines(self.path) if line["step"] <= resume_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        if resume_step is None:
            for events in self.folder.glob("events.out.tfevents.*"):
                events.unlink()

    def log(self, step: int, **figures: float | str | None) -> None:
        """Append the figures of one step. What is not finite becomes null, because JSON has no word for it."""
        values = {name: _plain(value) for name, value in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if importlib.util.find_spec("tensorboard"):
            self._log_events(step, values)

    def _log_events(self, step: int, values: dict) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=None if self.resume_step is None else self.resume_step + 1)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the threads of TensorBoard's writer. May be called twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[dict]:
    """The lines of a metrics.jsonl that can be read: a run that was killed may have left half of the last."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield values


def check_finite(what: str, step: int, **losses: float) -> None:
    """Stop at the first loss that is NaN or infinite, before it reaches the weights. Raises UserError."""
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise UserError(
                f"{what}: {name} is {float(loss)} at step {step}, expected a finite number; the last good checkpoint is kept: "
                "lower the learning rate or check the data, and run again"
            )


def _plain(value) -> float | int | str | None:
    if value is None or isinstance(value, (int, str)):
        return value
    return float(value) if math.isfinite(value) else None
