"""HDF5 files from anybody: opened read-only, followed nowhere else, measured before memory is spent, and every way to be broken told as one line."""

import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...errors import UserError
from .frames import ROOM, check_unpacked

DEMOS = "data"
ENDINGS = (".hdf5", ".h5")
AGAIN = "copy or download the file again"
UNTRUSTED = "do not trust this file"
LONGEST_CHAIN = 16  # of soft links, one leading to the next
DEFLATE, LARGEST_DEFLATE = 1, 1032  # HDF5's number of the filter, and the most that it can pack into a byte
FAILURES = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, SystemError, MemoryError, zlib.error)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever h5py and what it calls raise of a damaged file, as one line; as little else as possible belongs inside."""
    try:
        yield
    except FAILURES as error:
        raise UserError(f"{where}: damaged ({reason(error)}); {AGAIN}") from error


def reason(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(text: str) -> str:
    """Names in a file can be bytes that are no text, which h5py gives as characters that cannot be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def opened(path: Path) -> Iterator:
    """The `h5py.File`. Raises UserError where h5py is missing or the file is not whole."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading HDF5 needs h5py; pip install 'worldenv[hdf5]'") from error
    if not path.is_file():
        raise UserError(f"{path}: not a file, expected one in HDF5; check the path")
    try:
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; give yourself the right to (chmod u+r)") from error
    except FAILURES as error:
        raise UserError(f"{path}: not a whole HDF5 file ({reason(error)}); {_advice(path)}") from error
    try:
        yield file
    finally:
        with reading(str(path)):
            file.close()


def _advice(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS: git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "this is a web page: download the file itself"
    return AGAIN


def files_of(path: Path) -> list[Path]:
    """The file itself, or a folder's: those in it, else those one folder below. Hidden files, such as macOS' `._name`, are no data."""
    if path.is_file():
        return [path]
    for pattern in ("*", "*/*"):
        found = [file for file in sorted(path.glob(pattern)) if file.suffix in ENDINGS and not _hidden(file, path)]
        if found:
            return found
    return []


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def has(parent, name: str, where: str) -> bool:
    """Whether a group has a member of that name, or path; the last part of it is not opened."""
    *groups, last = name.split("/")
    for part in groups:
        if not has(parent, part, where):
            return False
        parent = group(parent, part, where)
    with reading(where):
        return parent.get(last, getlink=True) is not None


def names(parent, where: str) -> list[str]:
    """Of a group's members; those that are not UTF-8 come as Python's file names do, and cannot be opened."""
    with reading(where):
        return sorted(os.fsdecode(name) for name in parent)


def member(parent, path: str, where: str, followed: int = 0):
    """What lies at a path below a group, inside the file: soft links are followed there, and nothing leads to another file."""
    found = parent
    for part in filter(None, path.split("/")):
        found = _step(found, part, where, followed)
    return found


def _step(parent, name: str, where: str, followed: int):
    import h5py

    if not isinstance(parent, h5py.Group):
        raise UserError(f"{where}: no {printable(name)} inside an array, expected a group; is it another format?")
    with reading(f"{where}, {printable(name)}"):
        link = parent.get(name, getlink=True)
    if link is None:
        found = [printable(name) for name in names(parent, where)[:12]]
        raise UserError(f"{where}: no {printable(name)}, found {found}; is it another format, or another --state, --action or --cameras?")
    if isinstance(link, h5py.ExternalLink):
        raise UserError(f"{where}, {printable(name)}: a link to another file ({link.filename!r}), expected the data itself; {UNTRUSTED}")
    if isinstance(link, h5py.SoftLink):
        if followed == LONGEST_CHAIN:
            raise UserError(f"{where}, {printable(name)}: links that lead in a circle, expected the data itself; {UNTRUSTED}")
        return member(parent.file if link.path.startswith("/") else parent, link.path, where, followed + 1)
    with reading(f"{where}, {printable(name)}"):
        return parent[name]


def group(parent, name: str, where: str):
    import h5py

    found = member(parent, name, where)
    if not isinstance(found, h5py.Group):
        raise UserError(f"{where}, {printable(name)}: an array, expected a group; is it another format?")
    return found


def dataset(parent, name: str, where: str):
    """An array that is not read yet, its numbers stored in the file itself."""
    import h5py

    found = member(parent, name, where)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{where}, {printable(name)}: a group, expected an array; check --state, --action and --cameras")
    with reading(f"{where}, {printable(name)}"):
        elsewhere, kind, dimensions = found.is_virtual or found.external, found.dtype, found.shape
    if elsewhere:
        raise UserError(f"{where}, {printable(name)}: its numbers lie elsewhere, expected them here; copy them into the array itself")
    if kind.kind not in "biuf" or dimensions is None:
        raise UserError(f"{where}, {printable(name)}: {'empty' if dimensions is None else kind}, expected numbers")
    return found


def array(parent, name: str, where: str) -> np.ndarray:
    """(rows, ...) a whole dataset, after a look at what it takes."""
    found = dataset(parent, name, where)
    if not found.shape:
        raise UserError(f"{where}, {printable(name)}: one number, expected one for each step")
    with reading(f"{where}, {printable(name)}"):
        _check_stored(found, f"{where}, {printable(name)}")
        return found[()]


def _check_stored(found, where: str) -> None:
    """Refuse what was never written, and what unpacks to far more than a recording of its size on disk does: before anything is allocated."""
    size, stored = math.prod(found.shape) * found.dtype.itemsize, found.id.get_storage_size()
    chunk = math.prod(found.chunks) * found.dtype.itemsize if found.chunks else 0
    pieces = math.prod(-(-n // each) for n, each in zip(found.shape, found.chunks)) if found.chunks else 0
    if found.id.get_num_chunks() < pieces if found.chunks else stored < size:
        raise UserError(f"{where}: {found.shape}, of which a part was never written; record or convert it again")
    check_unpacked(max(size, chunk), stored, where)
    if found.chunks:
        _check_filters(found, chunk, where)


def _check_filters(found, chunk: int, where: str) -> None:
    """HDF5 unpacks a chunk to whatever its deflate stream holds, whatever the chunk's own size: those that could be large are tried first."""
    import h5py

    plist = found.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    missing = next((kind for kind in filters if not h5py.h5z.filter_avail(kind[0])), None)
    if missing:
        raise UserError(
            f"{where}: packed by the filter {printable(str(missing[3]))!r}, which h5py lacks; rewrite the file: h5repack -f GZIP=4 IN OUT"
        )
    codes = [kind[0] for kind in filters]
    if codes.count(DEFLATE) > 1:
        raise UserError(f"{where}: packed several times over; {UNTRUSTED}")
    if DEFLATE not in codes:
        return
    chunks: list = []
    found.id.chunk_iter(chunks.append)
    for stored in chunks:
        if stored.size * LARGEST_DEFLATE > max(4 * ROOM, chunk):
            stream = zlib.decompressobj()
            if len(stream.decompress(found.id.read_direct_chunk(stored.chunk_offset)[1], chunk + 1)) > chunk:
                raise UserError(f"{where}: a chunk unpacks to more than {chunk:,} bytes, its size; {UNTRUSTED}")


def rows(parent, columns: Sequence[str], where: str) -> np.ndarray:
    """(T, D) the numbers of several arrays side by side, (T, ...) each."""
    arrays = {name: array(parent, name, where) for name in columns}
    count = same_length(where, arrays)
    return np.concatenate([values.reshape(count, math.prod(values.shape[1:])) for values in arrays.values()], 1)


def same_length(where: str, arrays: dict[str, np.ndarray]) -> int:
    """The number of rows that all of them have."""
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{where}: lengths differ ({', '.join(f'{name} {n}' for name, n in lengths.items())}); convert it again or leave it out")
    return next(iter(lengths.values()))


def demos(data, where: str) -> list[str]:
    """Names of the demonstrations, by number."""
    numbered = {name: int(match[1]) for name in names(data, where) if (match := re.fullmatch(r"(?:\w*_)?([0-9]{1,18})", name, re.ASCII))}
    return sorted(numbered, key=numbered.__getitem__)


def text(holder, name: str, where: str) -> str | None:
    """An attribute's text; None where there is no such attribute."""
    with reading(f"{where}, {name}"):
        if name not in holder.attrs:
            return None
        if math.prod(holder.attrs.get_id(name).shape or ()) != 1:
            raise UserError(f"{where}, {name}: several values, expected one text; correct the attribute")
        value = holder.attrs[name]
        value = value.flat[0] if isinstance(value, np.ndarray) else value
    try:
        value = value.decode() if isinstance(value, bytes) else value
        if not isinstance(value, str):
            raise UserError(f"{where}, {name}: {type(value).__name__}, expected text; correct the attribute")
        return value.encode().decode()
    except UnicodeError as error:
        raise UserError(f"{where}, {name}: not text in UTF-8; correct the attribute or {AGAIN}") from error


def words(parent, name: str, where: str) -> list[str]:
    """A list of texts, such as names of demonstrations."""
    import h5py

    found = member(parent, name, where)
    with reading(f"{where}, {name}"):
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.ndim != 1 or found.dtype.kind not in "SO":
            raise UserError(f"{where}, {name}: expected a list of names; make it again")
        _check_stored(found, f"{where}, {name}")
        values = found[()].tolist()
    if not all(isinstance(value, (str, bytes)) for value in values):
        raise UserError(f"{where}, {name}: {type(values[0]).__name__}, expected names; make it again")
    return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]


def json_attribute(holder, name: str, where: str) -> dict | None:
    """None where there is no such attribute."""
    words = text(holder, name, where)
    if words is None:
        return None
    try:
        found = json.loads(words)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}, {name}: not JSON ({reason(error)}); correct the attribute or {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}, {name}: {str(found)[:60]!r}, expected an object; correct the attribute or {AGAIN}")
    return found
