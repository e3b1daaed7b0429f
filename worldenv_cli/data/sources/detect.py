"""Which format lies at a path, by its files and, for HDF5, by what is in them."""

from pathlib import Path

from ...errors import UserError
from . import hdf5
from .rlds_files import versions

OTHERS = {"observations": "ALOHA's layout", "observation": "DROID's raw layout", "root": "another layout"}


def detect(path: Path) -> str:
    """Raises UserError where nothing known lies there; a file that cannot be opened does not decide while another one can."""
    if not path.exists():
        raise UserError(f"{path}: does not exist, expected a file or folder of recorded episodes; check the path")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a device or pipe, expected a file or folder of recorded episodes; check the path")
    if (path / "meta/info.json").is_file():
        return "lerobot"
    if path.is_dir() and versions(path):
        return "rlds"
    files, broken = hdf5.files_of(path), None
    for file in files:
        try:
            return _of_hdf5(file)
        except UserError as error:
            broken = broken or error
    if broken:
        raise broken
    found = sorted(p.name for p in path.iterdir())[:8]
    raise UserError(f"{path}: none of lerobot, libero, robomimic, rlds, found {found}; give --format or check the path")


def _of_hdf5(path: Path) -> str:
    """LIBERO's attributes, or its names of pictures, which files that were made from it keep; else robomimic's."""
    where = str(path)
    with hdf5.opened(path) as file:
        if not hdf5.has(file, hdf5.DEMOS, where):
            found = hdf5.names(file, where)
            other = next(
                (f"; this is {name}: convert it to a LeRobotDataset" for key, name in OTHERS.items() if key in found), "; is it another format?"
            )
            raise UserError(f"{where}: no {hdf5.DEMOS}/demo_0, which LIBERO's and robomimic's files have, found {found[:8]}{other}")
        data = hdf5.group(file, hdf5.DEMOS, where)
        if hdf5.text(data, "problem_info", where) is not None:
            return "libero"
        for name in hdf5.demos(data, where)[:1]:
            demo = hdf5.group(data, name, where)
            if hdf5.has(demo, "obs", where) and any(name in hdf5.names(hdf5.group(demo, "obs", where), where) for name in LIBEROS_PICTURES):
                return "libero"
    return "robomimic"


LIBEROS_PICTURES = ("agentview_rgb", "eye_in_hand_rgb")
