"""What is common to lists of episodes in files of anybody's: what cannot be used is left out and named where that is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import UserError


@contextmanager
def left_out(unusable: list[str], skip_bad: bool) -> Iterator[None]:
    """With `skip_bad` a UserError becomes one line in `unusable`."""
    try:
        yield
    except UserError as error:
        if not skip_bad:
            raise
        unusable.append(str(error))
