"""Which real environment a recipe describes (`env.kind`; Meta-World where it is left out), and the settings of its imagined twin."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from ..config import Config
from .libero import LiberoConfig
from .metaworld import MetaWorldConfig


def _kind(section) -> str:
    return section.get("kind", "metaworld") if isinstance(section, dict) else getattr(section, "kind", "metaworld")


EnvConfig = Annotated[Annotated[MetaWorldConfig, Tag("metaworld")] | Annotated[LiberoConfig, Tag("libero")], Discriminator(_kind)]


class WorldEnvConfig(Config):
    """The imagined environment: simulator and reflector together."""

    rows: int = Field(128, ge=1, description="Imagined episodes that run side by side")
    horizon: int = Field(32, ge=1, description="Control steps of an episode, at most, with those of its history; follows the environment")
    terminate: bool = Field(True, description="End an episode when the reflector's probability passes its threshold")
