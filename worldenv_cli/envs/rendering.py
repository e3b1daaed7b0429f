"""Which headless renderer works here. Probed in a child process, because a GL backend that fails can take its process with it."""

import functools
import subprocess
import sys

from ..errors import UserError
from .child import command, environment

BACKENDS = ("egl", "osmesa", "glfw")

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().std() > 0
"""

HOW_TO_INSTALL = (
    "on Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa); on a desktop GLFW needs a running display"
)


@functools.lru_cache(maxsize=None)
def probe(backend: str, python: str = sys.executable) -> str:
    """Empty when `backend` renders a picture under that interpreter, else the last line of what went wrong."""
    try:
        done = subprocess.run(command(python, _PROBE), env=environment(MUJOCO_GL=backend), capture_output=True, text=True, timeout=60)
    except (subprocess.TimeoutExpired, OSError) as error:
        return str(error)
    told = done.stderr.partition("Exception ignored in")[0]  # a context that was never made complains again when it is destroyed
    return "" if done.returncode == 0 else (told.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def choose_backend(wanted: str = "auto", python: str = sys.executable) -> str:
    """The first backend that renders, EGL before OSMesa before GLFW; or the wanted one, if it does.

    Raises UserError, with what to install, where none does.
    """
    candidates = BACKENDS if wanted == "auto" else (wanted,)
    failures = []
    for backend in candidates:
        failure = probe(backend, python)
        if not failure:
            return backend
        failures.append(f"{backend}: {failure}")
    raise UserError(f"no headless renderer works here ({'; '.join(failures)}); {HOW_TO_INSTALL}; `worldenv doctor` checks again")
