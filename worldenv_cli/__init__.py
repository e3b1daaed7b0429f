"""worldenv: post-train a vision-language-action policy inside a learned world.

Importing the package is cheap on purpose: torch, transformers, diffusers and MuJoCo are imported by the stage that needs them.
"""

__version__ = "0.1.0"
