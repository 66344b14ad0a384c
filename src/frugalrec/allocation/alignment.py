"""Line up results that were made for other users, or in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError
from frugalrec.types import DoubleArray, LongArray


def positions(own: NDArray[Any], wanted: NDArray[Any], what: str) -> LongArray:
    """Return where each wanted user stands among `own`.

    Args:
        own: User codes that there are results for, each once.
        wanted: User codes asked for.
        what: Name of the results, for the message.

    Raises:
        DataError: If a wanted user is not there.
    """
    own, wanted = np.asarray(own), np.asarray(wanted)
    order = np.argsort(own, kind="stable")
    at = np.searchsorted(own[order], wanted)
    found = order[np.minimum(at, max(own.size - 1, 0))] if own.size else np.zeros(wanted.size, dtype=np.int64)
    there = own[found] == wanted if own.size else np.zeros(wanted.size, dtype=bool)
    if not there.all():
        missing = wanted[~there]
        raise DataError(
            f"{what} holds nothing of user {int(missing[0])} ({missing.size} of {wanted.size} users are "
            f"missing); make it for the same users."
        )
    return found.astype(np.int64)


def look_up(own: NDArray[Any], values: NDArray[Any], wanted: NDArray[Any], default: float) -> DoubleArray:
    """Return each wanted user's value, (n,), and `default` for users of whom there is none."""
    there = np.isin(wanted, own)
    found = np.full(np.asarray(wanted).shape, default, dtype=np.float64)
    found[there] = np.asarray(values, dtype=np.float64)[
        positions(own, np.asarray(wanted)[there], "the table")
    ]
    return found
