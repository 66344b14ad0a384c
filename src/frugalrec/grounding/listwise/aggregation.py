"""Aggregation: one order from several, and how much the several agree.

An answer depends on the order in which the candidates were shown, so some users' candidates are shown in
several orders (permutation self-consistency, arXiv 2310.07712). Candidates are numbered in the cheap
order; of two with equal points the one with the lower number is first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.types import DoubleArray, LongArray

FUSION_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
MOST_EXACT = 8
"""Candidates up to which Kemeny's order is found exactly; more are searched from Borda's order."""


def aggregate(orders: NDArray[Any], method: str = "borda") -> DoubleArray:
    """Return points of each candidate, (m,), higher is better.

    >>> aggregate(np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2]])).round(2).tolist()
    [2.67, 2.0, 1.33]

    Args:
        orders: Candidates as numbers from 0, best first, (n_orders, m); each row holds each once.
        method: A name in `AGGREGATES`.
    """
    if method not in AGGREGATES:
        raise ConfigError(f"unknown aggregation {method!r}; choose one of {', '.join(AGGREGATES)}.")
    return AGGREGATES[method](places(orders))


def places(orders: NDArray[Any]) -> LongArray:
    """Return the place of each candidate in each order, from 0, (n_orders, m).

    Raises:
        DataError: If a row does not hold each candidate once.
    """
    orders = np.atleast_2d(np.asarray(orders, dtype=np.int64))
    found: LongArray = np.argsort(orders, axis=1, kind="stable")
    if not orders.size or not (np.take_along_axis(orders, found, axis=1) == np.arange(orders.shape[1])).all():
        raise DataError(
            f"orders must hold each of m candidates once, as 0..m-1; got {orders.tolist()!s:.80}."
        )
    return found


def kendall_tau(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return Kendall's tau-a of two lists of places (or scores): 1 for the same order, -1 for its reverse.

    NaN for fewer than two entries.

    >>> kendall_tau(np.array([0, 1, 2, 3]), np.array([0, 1, 3, 2])).__round__(3)
    0.667
    """
    first, second = (np.sign(np.subtract.outer(x, x)) for x in (np.asarray(a), np.asarray(b)))
    n = first.shape[0]
    return float((first * second).sum() / (n * (n - 1))) if n > 1 else float("nan")


def agreement(orders: NDArray[Any]) -> float:
    """Return the mean of Kendall's tau over all pairs of orders; NaN for a single order."""
    rows = places(orders)
    pairs = [kendall_tau(rows[i], rows[j]) for i in range(len(rows)) for j in range(i)]
    return float(np.mean(pairs)) if pairs else float("nan")


def _borda(rows: LongArray) -> DoubleArray:
    """Mean number of candidates that stand at or below each: m for the first place, 1 for the last."""
    points: DoubleArray = rows.shape[1] - rows.mean(axis=0)
    return points


def _reciprocal_rank(rows: LongArray) -> DoubleArray:
    """Sum of 1 / (60 + place), places from 1."""
    fused: DoubleArray = (1.0 / (FUSION_CONSTANT + 1 + rows)).sum(axis=0)
    return fused


def _kemeny(rows: LongArray) -> DoubleArray:
    """Points by place in the order that contradicts the fewest pairs of all orders."""
    m = rows.shape[1]
    # prefers[i, j]: how many orders have i before j.
    prefers = (rows[:, :, None] < rows[:, None, :]).sum(axis=0)
    order = (
        _exact(prefers) if m <= MOST_EXACT else _searched(prefers, np.argsort(-_borda(rows), kind="stable"))
    )
    points = np.empty(m)
    points[order] = np.arange(m, 0, -1)
    return points


def _exact(prefers: NDArray[Any]) -> list[int]:
    """Return the first of the orders with the fewest contradictions, by dynamic programming over sets."""
    m = prefers.shape[0]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(m):
        longer: dict[int, tuple[int, list[int]]] = {}
        for members, (cost, order) in best.items():
            rest = [j for j in range(m) if not members >> j & 1]
            for item in rest:
                # Whoever comes later was preferred to `item` by some orders.
                value = (cost + int(prefers[rest, item].sum()), [*order, item])
                key = members | 1 << item
                longer[key] = min(longer.get(key, value), value)
        best = longer
    return best[(1 << m) - 1][1]


def _searched(prefers: NDArray[Any], start: NDArray[Any]) -> list[int]:
    """Return an order that no move of one candidate to another place improves."""
    order: list[int] = start.tolist()
    moved = True
    while moved:
        moved = False
        for item in sorted(order):
            others = [other for other in order if other != item]
            # Contradictions with `item` in front of all others, and behind the first 1, 2, ... of them.
            ahead, behind = prefers[others, item], prefers[item, others]
            costs = int(ahead.sum()) + np.concatenate([[0], np.cumsum(behind - ahead)])
            place = order.index(item)
            if costs.min() < costs[place]:
                others.insert(int(np.argmin(costs)), item)
                order, moved = others, True
    return order


AGGREGATES: dict[str, Callable[[LongArray], DoubleArray]] = {
    "borda": _borda,
    "reciprocal-rank": _reciprocal_rank,
    "kemeny": _kemeny,
}
"""Name -> points of each candidate from its places in all orders."""
