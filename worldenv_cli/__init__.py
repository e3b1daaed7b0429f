"""worldenv: post-train a vision-language-action policy inside a learned world.

Importing the package is cheap on purpose: torch, transformers, diffusers and MuJoCo are imported by the stage that needs them. Where gymnasium
has been imported before it, it enters its environment there: `gymnasium.make_vec("worldenv/World-v0", run=RUN)`.
"""

import sys

__version__ = "0.1.0"

if "gymnasium" in sys.modules:
    from .envs import registration

    registration.register()
