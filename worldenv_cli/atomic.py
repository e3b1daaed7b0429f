"""Files and folders that are there whole or not at all.

A folder is written beside its place and renamed, so that a run that is cut off, a full disk or a second run never leave half of one
behind. Tensors are safetensors and everything else is JSON: no pickle is written or read.
"""

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch


@contextmanager
def staged(folder: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place once the block ends without an exception.

    What was there before is deleted after that, or moved to `keep`.
    """
    folder = Path(os.path.realpath(folder))
    recover(folder)
    partial, aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}"), keep or _aside(folder)
    try:
        with disk_full_told(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent, glob.escape(folder.name))
            partial.mkdir()
            yield partial
            for path in [*partial.rglob("*"), partial]:
                _flush(path)
            if folder.exists():
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder, aside) if keep else folder.rename(aside)
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.exists() and aside.exists():
            shutil.move(aside, folder)
        recover(folder)
        raise
    _flush(folder.parent)
    recover(folder)


def recover(folder: Path) -> None:
    """Finish a replacement that was cut off: the old copy comes back where the new one is missing, and goes where it is not."""
    folder = Path(os.path.realpath(folder))
    aside = _aside(folder)
    if not aside.exists():
        return
    if not folder.exists():
        aside.rename(folder)
        return
    doomed = folder.with_name(f".{folder.name}.partial-{os.getpid()}")  # half deleted, it must not look like something to put back
    aside.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def sweep(parent: Path, pattern: str) -> None:
    """Delete the temporary folders of processes that were killed."""
    import psutil

    for left in parent.glob(f".{pattern}.partial-*"):
        pid = left.name.rpartition("-")[2]
        if pid == str(os.getpid()) or (pid.isdigit() and not psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: BaseException) -> bool:
    """safetensors hides the error number in its message."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


@contextmanager
def disk_full_told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise UserError(disk_full_message(path)) from error


def disk_full_message(path: Path) -> str:
    existing = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free / 2**20
    return f"the disk is full: could not write {path} ({free:.0f} MiB free there); free some space and run it again, it continues"


OS_ERRORS = {  # what each says of the place that the error names, and what to do
    PermissionError: "no permission, or read-only: choose another place, or change its permissions",
    IsADirectoryError: "is a folder, where a file was expected: check the path",
    NotADirectoryError: "a part of this path is a file, where a folder was expected: check the path",
    FileNotFoundError: "does not exist: check the path",
    FileExistsError: "exists, and is not what was expected there: move it away or choose another place",
}
OS_NUMBERS = {
    errno.EROFS: "is on a read-only file system: choose another place",
    errno.ENAMETOOLONG: "is too long for a name: choose a shorter one",
    errno.ELOOP: "is a symbolic link that leads to itself: check the path",
    errno.EBUSY: "is in use, a mounted folder say: choose a folder inside or beside it",
    errno.EXDEV: "lies on two file systems: choose a place on one of them",
    errno.ENOTEMPTY: "is not empty: move away what lies there",
    errno.EIO: "cannot be read or written, the disk or the network behind it fails: check the machine",
    errno.ESTALE: "is gone from the network file system: run the same command again",
}


def os_error_message(error: BaseException) -> str | None:
    """One line for an operating system's error that names a path, which is the user's to mend; None for any other error."""
    path = getattr(error, "filename", None)
    if not isinstance(error, OSError) or not path:
        return None
    told = OS_NUMBERS.get(error.errno or 0) or next((text for kind, text in OS_ERRORS.items() if isinstance(error, kind)), None)
    return f"{os.fsdecode(path)}: {told}" if told else None


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]") -> None:
    """One safetensors file. Tied tensors are written once for each name, because safetensors refuses to share memory."""
    from safetensors.torch import save_file

    plain, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    save_file(plain, path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: it is there whole, or as it was before."""
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with disk_full_told(path), partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def opened(path: Path) -> Iterator:
    """A safetensors file of which only what is asked for is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({error}): download it again") from error


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({error}): make it or download it again") from error


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): make it or download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}: expected a JSON object; make it or download it again")
    return value
