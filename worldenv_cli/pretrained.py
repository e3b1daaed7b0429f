"""`from_pretrained`, as users of the Hub know it, for every kind of model."""

from pathlib import Path
from typing import ClassVar, Self


class Pretrained:
    """Classes say of which kind of artifact they are; `models.load_model` does the rest."""

    kind: ClassVar[str]

    @classmethod
    def from_pretrained(cls, reference: str | Path) -> Self:
        """The model of an artifact folder or Hub reference `owner/name[/folder][@revision]`, in evaluation mode.

        A policy comes back as what was saved: with its adapter, or of several members. Raises UserError as `load_model` does.
        """
        from .models import load_model  # which imports the classes that inherit this

        return load_model(reference, cls.kind)
