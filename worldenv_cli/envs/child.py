"""How Python children are started: nothing that lies in the current folder is imported, whatever it is called.

`python -c` and `python -m` look for modules in the current folder first, and so does an empty or relative entry of PYTHONPATH: a `numpy.py` in a
downloaded folder would be run by every worker that is started there. `-I` would close that, but drops the whole PYTHONPATH, which the worker's
interpreter may need, and `-P` came with Python 3.11 only: LIBERO's interpreters are often older.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

_SAFE_PATH = "import sys\nsys.path[:] = [entry for entry in sys.path if entry]\n"  # before anything else is imported
_THIS_PACKAGE = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("worldenv_cli", {str(PACKAGE / "__init__.py")!r}, submodule_search_locations=[{str(PACKAGE)!r}])
sys.modules["worldenv_cli"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["worldenv_cli"])
"""


def command(python: str, code: str, *arguments: str, package: bool = False) -> list[str]:
    """The command line that runs `code` under the interpreter `python`; the code finds `arguments` in sys.argv[1:].

    With `package` it can import this package, and nothing that is installed beside it, which may not be what another interpreter must use.
    """
    return [python, "-c", _SAFE_PATH + (_THIS_PACKAGE if package else "") + code, *arguments]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, without the entries of PYTHONPATH that mean another folder wherever they are read."""
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries), "PYTHONSAFEPATH": "1", **changes}
