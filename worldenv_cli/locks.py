"""One process at a time in a folder that is written. The kernel releases the lock of a process that ends, however it ends."""

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .destination import LOCK
from .errors import UserError
from .progress import say

NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_of(place: Path, kind: str) -> Path:
    """A run's lock lies in its folder; a dataset's beside it, because the folder is replaced as a whole."""
    place = Path(os.path.realpath(place))
    return place / LOCK if kind == "run" else place.with_name(f".{place.name}{LOCK}")


@contextmanager
def locked(place: Path, kind: str) -> Iterator[None]:
    """Hold the lock of a run or a dataset; it is an advisory `flock` on a file that says who holds it, and goes with it.

    Folders that had to be made for it, and stayed empty, go too. Raises UserError where another process works there. Over a network file system
    the lock counts between machines if that passes `flock` on (NFS does, since Linux 2.6.12); where there are no locks at all, a line says so.
    """
    path = lock_of(place, kind)
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = None
    try:
        handle = _acquire(path, place)
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)  # still locked: whoever waits on this file finds that it is gone, and opens the next one
            os.close(handle)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _acquire(path: Path, place: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by the programs that this one starts
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(handle)
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"another worldenv ({_named(holder)}) is working in {place}: wait for it or stop it") from error
            if error.errno not in NOT_SUPPORTED:
                raise
            say(f"{place}: this file system has no locks; see that no other process writes there")
            return os.open(path, os.O_RDWR)
        if _is_there(handle, path):
            break
        os.close(handle)  # its last holder deleted it in between
    before = _read(handle)
    if before:
        say(f"{place}: the last command there ({_named(before)}) ended before it was done; going on from what it left")
    os.ftruncate(handle, 0)
    command = " ".join(["worldenv", *sys.argv[1:]])
    holder = {"pid": os.getpid(), "host": platform.node(), "command": command, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.pwrite(handle, json.dumps(holder).encode(), 0)
    return handle


def _is_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict:
    try:
        found = json.loads(os.pread(handle, 10_000, 0))
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _named(holder: dict) -> str:
    if not holder:
        return "it has not said which"
    host = f" on {holder.get('host')}" if holder.get("host") != platform.node() else ""
    return f"pid {holder.get('pid')}{host}, `{holder.get('command')}`, since {holder.get('since')}"
