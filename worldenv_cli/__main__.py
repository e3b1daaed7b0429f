"""`python -m worldenv_cli`, which is also what torchrun and accelerate launch."""

import os
import sys

if __name__ == "__main__":
    # `-m` looks for every module in the current folder first; the command does not, and runs nothing that lies there
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path[0] in ("", os.getcwd()) and os.getcwd() != here and not sys.flags.safe_path:
        del sys.path[0]

    from .cli import main

    main()
