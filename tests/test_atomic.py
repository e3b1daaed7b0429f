import errno
import os
import subprocess
import sys

import pytest

from worldenv_cli import atomic
from worldenv_cli.atomic import os_error_message, recover, staged, write_json, write_text
from worldenv_cli.errors import UserError


def write(folder, text):
    with staged(folder) as partial:
        (partial / "file").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_appears_only_when_whole(tmp_path):
    folder = tmp_path / "deep" / "artifact"
    with staged(folder) as partial:
        assert partial.parent == folder.parent and partial.name == f".artifact.partial-{os.getpid()}"
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("one")
        assert not folder.exists()
    assert (folder / "sub" / "file").read_text() == "one"
    assert names(folder.parent) == ["artifact"]


def test_an_exception_leaves_the_old_one(tmp_path):
    write(tmp_path / "artifact", "one")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "artifact") as partial:
        (partial / "file").write_text("two")
        raise KeyboardInterrupt
    assert (tmp_path / "artifact" / "file").read_text() == "one"
    assert names(tmp_path) == ["artifact"]


def test_replaces(tmp_path):
    write(tmp_path / "artifact", "one")
    write(tmp_path / "artifact", "two")
    assert (tmp_path / "artifact" / "file").read_text() == "two"
    assert names(tmp_path) == ["artifact"]


CRASH = """
import os, sys, pathlib
from worldenv_cli.atomic import staged
rename, count = pathlib.Path.rename, 0
def crashing(self, target):
    global count
    count += 1
    if count > int(sys.argv[2]):
        os._exit(9)
    return rename(self, target)
pathlib.Path.rename = crashing
with staged(pathlib.Path(sys.argv[1])) as partial:
    (partial / "file").write_text("two")
"""


@pytest.mark.parametrize("renames, survivor", [(0, "one"), (1, "one"), (2, "two")])
def test_a_crash_at_any_rename_leaves_one_of_the_two(tmp_path, renames, survivor):
    folder = tmp_path / "artifact"
    write(folder, "one")
    done = subprocess.run([sys.executable, "-c", CRASH, str(folder), str(renames)])
    assert done.returncode == 9
    recover(folder)
    assert (folder / "file").read_text() == survivor
    write(folder, "three")
    assert (folder / "file").read_text() == "three"
    assert names(tmp_path) == ["artifact"]  # what the crash left is gone


def test_a_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "artifact", "one")
    rename = atomic.Path.rename

    def failing(self, target):
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(atomic.Path, "rename", failing)
        write(tmp_path / "artifact", "two")
    assert (tmp_path / "artifact" / "file").read_text() == "one"
    assert names(tmp_path) == ["artifact"]


def test_leftovers_of_living_processes_stay(tmp_path):
    (tmp_path / f".artifact.partial-{os.getppid()}").mkdir()
    (tmp_path / ".artifact.partial-4194304").mkdir()  # above Linux's highest pid
    (tmp_path / ".other.partial-4194304").mkdir()
    write(tmp_path / "artifact", "one")
    assert names(tmp_path) == [f".artifact.partial-{os.getppid()}", ".other.partial-4194304", "artifact"]


def test_through_a_symbolic_link(tmp_path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "artifact").symlink_to(tmp_path / "big-disk")
    write(tmp_path / "artifact", "one")
    assert (tmp_path / "artifact").is_symlink() and (tmp_path / "big-disk" / "file").read_text() == "one"
    assert names(tmp_path) == ["artifact", "big-disk"]


def test_disk_full_names_the_path_and_the_space(tmp_path):
    with pytest.raises(UserError, match=rf"disk is full: could not write {tmp_path}/artifact \(\d+ MiB free there\)"):
        with staged(tmp_path / "artifact"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []
    with pytest.raises(PermissionError), staged(tmp_path / "artifact"):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_disk_full_for_real(tmp_path):
    with pytest.raises(UserError, match="disk is full"), staged(tmp_path / "artifact"):
        with open("/dev/full", "w") as file:
            file.write("x")


def test_disk_full_as_safetensors_says_it():
    from safetensors import SafetensorError

    said = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert atomic.is_disk_full(said) and not atomic.is_disk_full(SafetensorError("header too small"))


@pytest.mark.parametrize("write", [write_json, lambda path, value: write_text(path, str(value))])
def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch, write):
    path = tmp_path / "timing.json"
    write(path, {"sft": 1})
    before = path.read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full: could not write .*timing.json"):
            write(path, {"sft": 2})
    assert path.read_text() == before and names(tmp_path) == ["timing.json"]
    write(path, {"sft": 2})
    assert path.read_text() != before


def test_what_was_replaced_is_kept_where_that_is_wanted(tmp_path, monkeypatch):
    write(tmp_path / "artifact", "one")
    with staged(tmp_path / "artifact", keep=tmp_path / "old" / "artifact") as partial:
        (partial / "file").write_text("two")
    assert (tmp_path / "artifact" / "file").read_text() == "two" and (tmp_path / "old" / "artifact" / "file").read_text() == "one"
    rename = atomic.Path.rename

    def failing(self, target):
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(atomic.Path, "rename", failing)
        with staged(tmp_path / "artifact", keep=tmp_path / "older") as partial:
            (partial / "file").write_text("three")
    assert (tmp_path / "artifact" / "file").read_text() == "two" and names(tmp_path) == ["artifact", "old"]


SYSTEM = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "read-only",
    errno.EISDIR: "is a folder",
    errno.ENOTDIR: "is a file",
    errno.ENOENT: "does not exist",
    errno.ENAMETOOLONG: "too long",
    errno.ELOOP: "symbolic link",
}


@pytest.mark.parametrize("number", SYSTEM)
def test_errors_of_the_system_that_name_a_path(number):
    message = os_error_message(OSError(number, "in words", "/some/where"))
    assert SYSTEM[number] in message and "/some/where" in message
    assert os_error_message(OSError(number, "in words")) is None and os_error_message(ValueError("/some/where")) is None
