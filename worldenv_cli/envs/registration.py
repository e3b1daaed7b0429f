"""The imagined environment in gymnasium's registry: `gymnasium.make_vec("worldenv/World-v0", num_envs=8, run=RUN)`."""

import gymnasium

NAME = "worldenv/World-v0"


def register() -> None:
    """Add it, once. Its keyword arguments are those of `WorldEnv.from_pretrained`."""
    if NAME not in gymnasium.registry:
        gymnasium.register(NAME, vector_entry_point="worldenv_cli.envs.registration:imagined_environment")


def imagined_environment(run: str, **options):
    from ..world_env import WorldEnv  # torch is not needed to register

    return WorldEnv.from_pretrained(run, **options)
