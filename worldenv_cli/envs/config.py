"""Which real environment a recipe describes: `env.kind` tells; Meta-World where it is left out."""

from typing import Annotated

from pydantic import Discriminator, Tag

from .libero import LiberoConfig
from .metaworld import MetaWorldConfig


def _kind(section) -> str:
    return section.get("kind", "metaworld") if isinstance(section, dict) else getattr(section, "kind", "metaworld")


EnvConfig = Annotated[Annotated[MetaWorldConfig, Tag("metaworld")] | Annotated[LiberoConfig, Tag("libero")], Discriminator(_kind)]
