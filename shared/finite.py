"""A prediction that is not finite is an error, never a score."""

import math

from shared.errors import InputError


def finite(values, what: str):
    """`values` as they are, if all of them are finite.

    Every `evaluate` and `apply` passes each prediction through it before anything is measured or written.

    Args:
        values: a tensor, an array or a number.
        what: is predicted, and for which case: "the segmentation of case 7".

    Raises:
        InputError: some are NaN or infinite.

    Example:
        >>> finite([0.5, float("inf")][0], "the age of patient 3")
        0.5
        >>> finite(float("inf"), "the age of patient 3")
        Traceback (most recent call last):
        shared.errors.InputError: the age of patient 3 is not finite (1 of 1 values): the input or the checkpoint ...
    """
    if hasattr(values, "isfinite"):  # a tensor, without importing torch
        good = values.isfinite()
        bad, count = int((~good).sum()), good.numel()
    elif isinstance(values, int | float):
        bad, count = int(not math.isfinite(values)), 1
    else:
        import numpy as np

        good = np.isfinite(values)
        bad, count = int((~good).sum()), good.size
    if bad:
        raise InputError(
            f"{what} is not finite ({bad} of {count} values): the input or the checkpoint is out of range; "
            "look for absurd values in the input, or give the --checkpoint of another run"
        )
    return values
