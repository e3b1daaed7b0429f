"""The base of every configuration section: typed, strict about unknown keys, immutable once read."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Channels = Annotated[int, Field(ge=8, multiple_of=8)]  # of a convolution: they are normalised in eight groups


class Config(BaseModel):
    """A recipe section. Unknown keys are errors, so that a misspelt setting never falls back to its default in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
