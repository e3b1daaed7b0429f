"""The processes behind a real environment: what they may import, and what becomes of a run when one of them dies, stops or is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import COFFEE, DRAWER
from gymnasium.utils.env_checker import data_equivalence

from worldenv_cli.doctor import check_renderers
from worldenv_cli.envs.metaworld import MetaWorldConfig
from worldenv_cli.envs.rendering import choose_backend, probe
from worldenv_cli.envs.vector import RESTARTS, RealVectorEnv
from worldenv_cli.errors import UserError
from worldenv_cli.stage_runner import open_run

STARTS = [(COFFEE, 0), (DRAWER, 1), (COFFEE, 2)]
CHUNKS = np.random.default_rng(0).uniform(-1, 1, (4, 3, 4, 4)).astype(np.float32)


def small(mini, **changes) -> MetaWorldConfig:
    return MetaWorldConfig(**(mini.env.model_dump() | {"rows": 1, "workers": 1, "resolution": 16} | changes))


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """The current folder is a downloaded one, with files that are called like modules; the path of the file that they would write."""
    folder, ran = tmp_path / "downloaded", tmp_path / "ran"
    folder.mkdir()
    for name in (
        "numpy",
        "mujoco",
        "yaml",
        "torch",
        "json",
        "pickle",
        "signal",
        "pydantic",
        "metaworld",
        "gymnasium",
        "worldenv_cli",
        "sitecustomize",
    ):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')\nraise ImportError('{name} of the current folder')\n")
    monkeypatch.chdir(folder)
    return ran


@pytest.mark.parametrize("path", [None, "", ".", os.pathsep, f"{os.pathsep}/nowhere"])
def test_nothing_in_the_current_folder_is_run(mini, poisoned, monkeypatch, path):
    """Not by the probe of a renderer, not by workers, whatever PYTHONPATH says of the folder in which they happen to be started."""
    monkeypatch.delenv("PYTHONPATH", raising=False) if path is None else monkeypatch.setenv("PYTHONPATH", path)
    probe.cache_clear()
    assert choose_backend() and any(check.ok for check in check_renderers())
    env = RealVectorEnv(small(mini))
    env.reset(options={"starts": [(DRAWER, 0)]})
    assert env.step_expert()[-1]["alive"].all() and "mujoco" in env.versions
    env.close()
    assert not poisoned.exists(), poisoned.read_text()


def test_the_current_folder_is_what_a_plain_child_would_run(poisoned):
    """The trap works: this is what children did."""
    subprocess.run([sys.executable, "-c", "import mujoco"], capture_output=True)
    assert poisoned.read_text() == "mujoco "


def test_the_command_as_a_module_runs_nothing_in_the_current_folder(poisoned):
    poisoned.parent.joinpath("downloaded", "worldenv_cli.py").unlink()
    package = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-m", "worldenv_cli", "run", "no-such-recipe"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no-such-recipe" in done.stderr and not poisoned.exists()


def test_entries_of_pythonpath_that_name_a_folder_reach_workers(mini, tmp_path, monkeypatch):
    """Where an interpreter finds its packages by it, a worker does too."""
    (tmp_path / "metaworld.py").write_text("raise RuntimeError('the one that PYTHONPATH names')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    env = RealVectorEnv(small(mini))
    with pytest.raises(RuntimeError, match="the one that PYTHONPATH names"):
        env.reset(options={"starts": [(DRAWER, 0)]})
    env.close()


def test_a_long_folder_for_temporary_files_does_no_harm(mini, tmp_path, monkeypatch):
    """A socket's path may have 107 bytes; workers have none."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    env = RealVectorEnv(small(mini))
    assert env.reset(options={"starts": [(DRAWER, 0)]})[1]["alive"].all()
    env.close()
    assert not list(folder.iterdir())


def episode(env, disturb=lambda number: None) -> list:
    results = [env.reset(options={"starts": STARTS})]
    for number, chunks in enumerate(CHUNKS):
        disturb(number)
        results.append(env.step(chunks))
    disturb(len(CHUNKS))
    return [*results, env.step_expert()]


def test_a_worker_that_is_lost_is_started_anew_and_nothing_changes(mini, capsys):
    """Killed, stopped, or at work when its caller was interrupted: its episodes begin again and come to the same bits."""
    env = RealVectorEnv(small(mini, rows=3, workers=2, worker_timeout=6))
    whole, steps = episode(env), env.environment_steps

    def disturb(number):
        first, second = env.workers
        if number == 1:
            first.process.kill()
        if number == 2:
            os.kill(second.process.pid, signal.SIGSTOP)
        if number == 3:  # as after Ctrl-C in a notebook: the answer to this is never read
            first.ask("step", {0: CHUNKS[0, 0]}, True)
        if number == 4:
            second.process.terminate()

    again = episode(env, disturb)
    assert all(data_equivalence(a, b, exact=True) for a, b in zip(whole, again, strict=True))
    assert env.environment_steps == 2 * steps  # what was played again is no part of an episode's cost
    env.close()
    told = [line for line in capsys.readouterr().out.splitlines() if "started anew" in line]
    reasons = ["killed by signal 9 (Killed)", "did not answer for 6 s", "interrupted at work", "killed by signal 15 (Terminated)"]
    assert len(told) == 4 and all(reason in line for reason, line in zip(reasons, told))
    assert told[0].startswith("Meta-World worker 1 was") and told[1].startswith("Meta-World worker 2 did")


def test_a_worker_that_is_lost_while_others_begin(mini):
    """A reset of one row leaves the others of a worker where they stood, started anew or not."""
    env, seen = RealVectorEnv(small(mini, rows=3, workers=1)), []
    for disturbed in (False, True):
        env.reset(options={"starts": STARTS})
        env.step(CHUNKS[0])
        if disturbed:
            env.workers[0].process.kill()
        env.reset(options={"starts": [(DRAWER, 9)], "reset_mask": np.array([False, True, False])})
        seen.append(env.step(CHUNKS[1]))
    env.close()
    assert data_equivalence(*seen, exact=True)


def test_a_worker_that_is_lost_again_and_again_is_told_in_a_line(mini, capsys, monkeypatch):
    env = RealVectorEnv(small(mini))
    env.reset(options={"starts": [(DRAWER, 0)]})
    (worker,) = env.workers
    ask = worker.ask

    def killed_at_work(verb, *arguments):
        ask(verb, *arguments)
        if verb == "step":
            os.pwrite(worker.stderr.fileno(), b"first\nCannot allocate\n  memory\n\n", 0)
            worker.process.kill()

    monkeypatch.setattr(worker, "ask", killed_at_work)
    with pytest.raises(UserError) as error:
        env.step(np.zeros((1, 4, 4), np.float32))
    assert capsys.readouterr().out.count("started anew") == RESTARTS == 3
    text = str(error.value)
    assert text.startswith("Meta-World worker 1 was killed by signal 9 (Killed) (its last words: first | Cannot allocate | memory), as before in 3")
    assert "\n" not in text and "rows [0]" in text and "lower env.rows or env.workers" in text
    env.close()
    assert worker.process.poll() == -9


@pytest.mark.parametrize(
    ("does", "told"),
    [("echo no module >&2; exit 1", "it ended with exit code 1 (its last words: no module)"), ("exec sleep 60", "it did not answer for 4 s")],
)
def test_an_interpreter_that_cannot_be_a_worker_is_told(mini, tmp_path, does, told):
    """It renders, as far as the probe can tell, but lacks the package, or hangs."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *mujoco.Renderer*) exit 0;; esac\n{does}\n')
    python.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        RealVectorEnv(small(mini, python=str(python), worker_timeout=2))
    assert str(error.value).startswith(f"env.python: a worker under {python} did not start: {told}") and time.monotonic() - began < 20
    assert not [child for child in psutil.Process().children() if "sleep" in child.name()]


CALLER = """
import signal
import sys
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores, and its children with it
from worldenv_cli.envs.vector import RealVectorEnv
from worldenv_cli.recipe import load_recipe
env = RealVectorEnv(load_recipe(sys.argv[1]).env)
print(*[worker.process.pid for worker in env.workers], flush=True)
env.reset(options={"starts": [("drawer-close-v3", 0)]})
try:
    while True:
        env.step(np.zeros(env.action_space.shape, np.float32))
        env.reset(options={"starts": [("drawer-close-v3", 0)]})
finally:
    env.close()
"""


def caller():
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(Path(__file__).with_name("mini.yaml"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def test_ctrl_c_is_the_callers_alone(tmp_path):
    """A terminal sends it to the whole process group: no worker may answer with a traceback of its own."""
    process, workers = caller()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert told.count("Traceback") == 1 and told.rstrip().endswith("KeyboardInterrupt")
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.parametrize("stopped", [False, True])
def test_no_worker_outlives_its_caller(stopped):
    process, workers = caller()
    if stopped:
        workers[0].suspend()
    process.kill()
    _, told = process.communicate(timeout=20)
    assert told == "" and not psutil.wait_procs(workers, timeout=10)[1]


def test_the_time_limit_changes_no_artifact(mini, tmp_path):
    slow = mini.model_copy(update={"env": mini.env.model_copy(update={"worker_timeout": 600.0})})
    assert open_run(mini, tmp_path, dry_run=True).settings("env") == open_run(slow, tmp_path, dry_run=True).settings("env")
