"""One process at a time in one place (worldenv_cli/locks.py)."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from conftest import MINI
from typer.testing import CliRunner

from worldenv_cli import locks
from worldenv_cli.cli import app
from worldenv_cli.errors import UserError
from worldenv_cli.locks import lock_of, locked

HOLDER = """
import sys, time, pathlib
from worldenv_cli.locks import locked
with locked(pathlib.Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(request, tmp_path):
    """Another process that holds the lock of tmp_path/place."""

    def hold(kind):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "place"), kind], stdout=subprocess.PIPE, text=True)
        request.addfinalizer(lambda: (process.kill(), process.wait(), process.stdout.close()))
        assert process.stdout.readline() == "held\n"
        return process

    return hold


def test_it_is_gone_with_what_it_guarded(tmp_path):
    with locked(tmp_path / "deep" / "run", "run"):
        assert (tmp_path / "deep" / "run" / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "set", "dataset"):
        assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), locked(tmp_path / "run", "run"):
        (tmp_path / "run" / "result").write_text("kept")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


@pytest.mark.parametrize("kind", ["run", "dataset"])
def test_another_process_is_told_who_holds_it(tmp_path, holder, kind):
    process = holder(kind)
    for place in (tmp_path / "place", tmp_path / "place" / ".." / "place"):
        with pytest.raises(UserError, match=rf"another worldenv \(pid {process.pid}, `worldenv \S+place {kind}`, since 20.*wait for it or stop it"):
            with locked(place, kind):
                pass
    assert lock_of(tmp_path / "place", kind).is_file()


def test_a_lock_of_a_killed_process_is_stale_and_told(tmp_path, holder, capsys):
    process = holder("run")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path / "place", "run"):
        assert f"(pid {process.pid}, " in capsys.readouterr().out
    assert list((tmp_path / "place").iterdir()) == []


def test_a_damaged_lock_file_holds_nobody_up(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with locked(tmp_path, "run"):
        pass


def test_where_there_are_no_locks_it_is_told(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with locked(tmp_path / "run", "run"):
        assert "has no locks; see that no other process writes there" in capsys.readouterr().out


def test_of_two_that_wait_for_the_end_of_a_third_one_gets_it(tmp_path):
    """A lock file that its last holder deleted while another one had it open counts for nothing."""
    with locked(tmp_path, "run"):
        late = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(late, fcntl.LOCK_EX)  # of the deleted file
    with locked(tmp_path, "run"):
        assert not os.path.samestat(os.fstat(late), os.stat(tmp_path / ".lock"))
    os.close(late)


def refused(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and "is working in" in result.stderr and result.stderr.count("\n") == 1, result.output


def test_the_commands_of_a_run(tmp_path, holder):
    holder("run")
    for command in ("run", "ingest"):
        refused(command, MINI, "--out", tmp_path / "place")
    assert CliRunner().invoke(app, ["ingest", str(MINI), "--out", str(tmp_path / "place"), "--dry-run"]).exit_code == 0  # reads need no lock
    assert [path.name for path in (tmp_path / "place").iterdir()] == [".lock"]
