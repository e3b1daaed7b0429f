"""LIBERO's package under this interpreter: found and checked, pointed at its files, its recorded initial states read."""

import contextlib
import importlib.util
import os
import pickle
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import yaml

from ..errors import UserError

PACKAGES = ("hf-libero", "libero", "robosuite", "bddl", "mujoco")  # whose versions decide what an episode looks like
NEWEST_MUJOCO = (3, 3, 2)
HOW_TO_INSTALL = "make a Python environment for it (pip install hf-libero==0.1.4 mujoco==3.3.2 pydantic) and name its python in env.python"
HOW_TO_GET_ASSETS = "hf download lerobot/libero-assets --repo-type dataset --local-dir FOLDER, and name the folder in env.assets"


def find_package() -> Path:
    """Where LIBERO lies under this interpreter, once its MuJoCo is known to be right. LIBERO itself is not imported."""
    with contextlib.suppress(ModuleNotFoundError):
        found = importlib.util.find_spec("libero.libero")
        if found is not None:
            check_mujoco(metadata.version("mujoco"))
            return Path(found.submodule_search_locations[0])
    raise UserError(f"env.python: {sys.executable} has no LIBERO; {HOW_TO_INSTALL}")


def check_mujoco(version: str) -> None:
    if tuple(map(int, re.findall(r"\d+", version)[:3])) > NEWEST_MUJOCO:
        newest = ".".join(map(str, NEWEST_MUJOCO))
        raise UserError(
            f"env.python: {sys.executable} has mujoco {version}, expected {newest} or older (newer ones darken LIBERO's floors and break an initial "
            f"state); pip install mujoco=={newest} there"
        )


def find_assets(assets: str | None, root: Path) -> Path:
    """The folder of meshes and textures that the recipe names, or the package's own."""
    folder = Path(assets or root / "assets").absolute()
    if not (folder / "scenes").is_dir():
        what = f"env.assets {assets}: has no folder scenes" if assets else "env.assets is not set and the package has none"
        raise UserError(f"{what}, expected LIBERO's meshes and textures; {HOW_TO_GET_ASSETS}")
    return folder


def point_at(root: Path, assets: Path, folder: Path) -> None:
    """Import LIBERO with its settings in `folder`: without any it asks on standard input, and writes into the user's home."""
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files", "assets": assets, "datasets": folder}
    (folder / "config.yaml").write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}), encoding="utf-8")
    os.environ["LIBERO_CONFIG_PATH"] = os.environ["MPLCONFIGDIR"] = str(folder)
    import libero.libero

    libero.libero._assets_path_cache = str(assets)  # hf-libero looks here, not in its settings, and would download otherwise


def read_init_states(path: Path) -> np.ndarray:
    """(50, D) flattened MuJoCo states that LIBERO recorded: time, positions, velocities.

    The file is torch's: a zip around a pickle of one array. Read without torch, and without letting the pickle make anything but arrays.
    """
    with zipfile.ZipFile(path) as file:
        (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        with file.open(name) as pickled:
            return _Arrays(pickled).load()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return lambda *_: np.ndarray(0)  # its contents follow
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} in a file of initial states, expected arrays only")
