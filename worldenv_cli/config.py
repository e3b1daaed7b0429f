"""The base of every configuration section: typed, strict about unknown keys, immutable once read."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A recipe section. Unknown keys are errors, so that a misspelt setting never falls back to its default in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
