"""Names that come out of a checkpoint, dataset or artifact stay inside its folder, where they are read and where they are written.

Whoever made a folder chose the names in it. Without this check `state_file: /home/me/.ssh/authorized_keys` would be written, and a symbolic link
called `notes.json` would be read, copied and published.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .errors import UserError

CACHED = re.compile(r"(?P<repository>.*/(?:models|datasets|spaces)--[^/]+)/snapshots/[0-9a-f]{40}(?:/.*)?")


def inside(folder: Path, name: str, where: str | Path) -> Path:
    """`folder / name`, once it is known to lie in `folder` with all symbolic links resolved. It need not exist; "." is the folder itself.

    The Hub's cache keeps the files of a snapshot as links to the blobs of the same repository: these links, and no others, may leave the folder.
    `where` begins the message: the file or folder that `name` was found in. Raises UserError for anything but a relative name that stays inside.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not _is_relative(name):
        raise UserError(f"{where}: names {name!r:.200}, expected a file inside its own folder; do not use what you do not trust")
    path = folder / name
    home, place = (os.path.realpath(one) for one in (folder, path))
    if not Path(place).is_relative_to(home) and not _is_blob(home, place):
        raise UserError(f"{where}: {name} is a link to {place}, outside of its folder; if you trust it, put the file itself there")
    return path


def _is_relative(name: str) -> bool:
    """Printable, so without NUL, line breaks and lone surrogates; no drive letter, no backslash, no `..`, no part that no file system takes."""
    parts = PurePosixPath(name).parts
    unusual = not name.isprintable() or "\\" in name or re.match(r"[A-Za-z]:", name) or any(len(part.encode()) > 255 for part in parts)
    return not (unusual or name.startswith("/") or ".." in parts)


def _is_blob(home: str, place: str) -> bool:
    match = CACHED.fullmatch(Path(home).as_posix())
    return match is not None and Path(place).parent.as_posix() == f"{match['repository']}/blobs"


def copy_files(folder: Path, place: Path, wanted: Callable[[Path], bool]) -> None:
    """Copy the files directly in `folder` that are `wanted` into `place`. Raises UserError for one that is a link out of the folder."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and wanted(path):
            shutil.copy(inside(folder, path.name, folder), place / path.name)
