"""Spend a hard budget greedily, best users first, with a floor for the worst served.

Users are taken in order of score; one who no longer fits is passed over, and cheaper ones behind may still
fit. With gain per cost as the score this is the linear programme's optimum up to one user (Dantzig 1957).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.costs import ROUNDING
from frugalrec.errors import ConfigError, DataError
from frugalrec.types import BoolArray, DoubleArray, LongArray


def greedy(
    scores: NDArray[Any],
    costs: NDArray[Any],
    limit: float,
    *,
    ties: NDArray[Any] | None = None,
    floor: float = 0.0,
    worst: NDArray[np.bool_] | None = None,
) -> tuple[BoolArray, BoolArray]:
    """Return (routed (n,), routed by the floor (n,)); the routed users cost at most `limit`.

    Args:
        scores: Higher is taken first; -inf is never taken.
        costs: What each user costs, at least 0.
        limit: The budget, in the unit of `costs`.
        ties: Keys that order equal scores, ascending; default: the place in the arrays.
        floor: At least this share of the budget goes to users of `worst`, as far as they have scores above
            -inf and fit: they are served first, best first, until the share is reached. What they cannot
            use goes to the others.
        worst: The users whom the floor is for.
    """
    values, prices = np.asarray(scores, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if not 0 <= floor <= 1:
        raise ConfigError(f"the floor is a share of the budget, from 0 to 1, not {floor}.")
    if floor > 0 and worst is None:
        raise ConfigError("a floor needs to know whom it is for; give worst, such as the least active tenth.")
    if not limit >= 0:
        raise ConfigError(f"a budget must be at least 0, not {limit}.")
    if (
        values.shape != prices.shape
        or np.isnan(values).any()
        or not (np.isfinite(prices) & (prices >= 0)).all()
    ):
        raise DataError("each user needs a score that is not NaN and a finite cost of at least 0.")
    keys = np.arange(values.size) if ties is None else np.asarray(ties)
    order = np.lexsort((keys, -values))
    order = order[values[order] > -np.inf]
    reserved = _reserved(order, prices, limit, floor, worst)
    left = limit - math.fsum(prices[reserved].tolist())
    others = order[~np.isin(order, reserved)]
    taken = np.concatenate([reserved, _fill(others, prices, left, ROUNDING * limit)])
    taken = _exact(taken, prices, limit)
    routed, by_floor = np.zeros(values.size, dtype=bool), np.zeros(values.size, dtype=bool)
    routed[taken] = True
    by_floor[reserved] = True
    return routed, by_floor & routed


def _reserved(
    order: LongArray, costs: DoubleArray, limit: float, floor: float, worst: NDArray[np.bool_] | None
) -> LongArray:
    """Return whom the floor serves first: the best of the worst, until their share is spent."""
    if floor == 0 or worst is None or not np.isfinite(limit):
        return order[:0]
    fitting = _fill(order[worst[order]], costs, limit, ROUNDING * limit)
    enough = np.cumsum(costs[fitting]) >= floor * limit
    return fitting[: int(enough.argmax()) + 1] if enough.any() else fitting


def _fill(order: LongArray, costs: DoubleArray, left: float, slack: float) -> LongArray:
    """Return who is taken, in order, passing over those who do not fit any more."""
    if not np.isfinite(left):
        return order
    taken: list[LongArray] = []
    while order.size:
        order = order[costs[order] <= left + slack]
        total = np.cumsum(costs[order])
        n = int(np.searchsorted(total, left + slack, "right"))
        taken.append(order[:n])
        left -= float(total[n - 1]) if n else 0.0
        order = order[n + 1 :]
    return np.concatenate(taken) if taken else order


def _exact(taken: LongArray, costs: DoubleArray, limit: float) -> LongArray:
    """Drop the last ones where rounding of running sums let them pass the budget."""
    while taken.size and math.fsum(costs[taken].tolist()) > limit * (1 + ROUNDING):
        taken = taken[:-1]
    return taken
