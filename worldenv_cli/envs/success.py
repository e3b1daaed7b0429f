"""What an environment says of success, as a bool."""

import numpy as np

from ..errors import UserError


def achieved(value, task: str) -> bool:
    """True for a number above 0. Raises UserError for what says nothing: None, text, NaN, which Python takes for true, or several numbers."""
    number = np.asarray(value)
    if number.shape not in ((), (1,)) or number.dtype.kind not in "biuf" or not np.isfinite(number).all():
        raise UserError(f"env.tasks.{task}: the environment says {value!r} of success, expected a bool or a finite number; check its version")
    return bool((number > 0).all())
