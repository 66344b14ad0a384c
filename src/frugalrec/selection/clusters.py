"""Seeded k-means, and draws that take one row from every group before a second from any.

Rows that are equal count once, with a weight, so there are never more groups than distinct rows and no
group is empty. Starting centres are drawn far from each other (k-means++, Arthur and Vassilvitskii, SODA
2007), many at a time where there are many, then Lloyd's steps follow until no row changes its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.types import DoubleArray, FloatArray, LongArray

STARTS = 64
"""The most passes over the rows while the starting centres are drawn."""
CELLS = 1 << 22
"""Distances held at once."""


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Groups of rows."""

    centres: DoubleArray
    """Mean of each group, (k, d)."""
    labels: LongArray
    """Group of each row, (n,)."""
    distances: DoubleArray
    """Distance of each row from its centre, (n,)."""


def kmeans(
    vectors: FloatArray | DoubleArray, k: int, rng: np.random.Generator, *, iterations: int = 25
) -> Clusters:
    """Group rows into k clusters, or into as many as there are distinct rows where these are fewer.

    Args:
        vectors: One vector a row, (n, d), finite.
        k: Groups, 1 to n.
        rng: Draws the starting centres.
        iterations: The most steps of Lloyd.

    Raises:
        ConfigError: If k is out of range.
        DataError: If a vector is not finite.
    """
    values = finite(vectors, "the rows to group")
    check_groups(k, values.shape[0], "rows to group")
    distinct, place, counts = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)  # numpy 2.0 gives it another shape
    middle = values.mean(axis=0)
    points = distinct - middle  # near the origin, products lose fewer digits
    weights = counts.astype(np.float64)
    centres = _spread(points, weights, min(k, points.shape[0]), rng)
    labels = np.full(points.shape[0], -1, dtype=np.int64)
    for _ in range(iterations):
        before = labels
        labels, squares = _nearest(points, centres)
        _fill_empty(labels, squares, len(centres))
        if np.array_equal(labels, before):
            break
        centres = _means(points, weights, labels, len(centres))
    distances = np.linalg.norm(points - centres[labels], axis=1)
    return Clusters(centres=centres + middle, labels=labels[place], distances=distances[place])


def check_groups(clusters: Any, n: int, of: str) -> None:
    """Refuse a number of groups that is no whole number from 1 to n.

    Args:
        clusters: What was given.
        n: How many there are to group.
        of: What they are, for the message.

    Raises:
        ConfigError: If it is out of range.
    """
    if not isinstance(clusters, int) or not 1 <= clusters <= n:
        raise ConfigError(f"clusters={clusters!r} must be a whole number in 1..{n}, the number of {of}.")


def finite(vectors: Any, what: str, shape: tuple[int | None, int | None] = (None, None)) -> DoubleArray:
    """Return vectors as (n, d) doubles.

    Args:
        vectors: What was given.
        what: Its name, for messages.
        shape: The expected sizes; None where any will do.

    Raises:
        DataError: If they are no table of numbers, have another shape, or one is not finite.
    """
    try:
        values = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what}: expected a table of numbers, one vector a line.") from None
    fits = values.ndim == 2 and all(a in (None, b) for a, b in zip(shape, values.shape, strict=True))
    if not fits or 0 in values.shape:
        expected = ", ".join(
            name if size is None else str(size) for name, size in zip("nd", shape, strict=True)
        )
        raise DataError(f"{what}: expected shape ({expected}), one vector a line; got {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise DataError(
            f"{what}: line {bad[0]} holds NaN or an infinite number ({bad.size} of {len(values)} lines do); "
            f"give finite numbers."
        )
    return values


def rank_within(groups: NDArray[Any], *keys: NDArray[Any]) -> LongArray:
    """Return each row's place inside its group, from 0, by the first key, ties by the next, (n,).

    >>> rank_within(np.array([0, 1, 0, 0]), np.array([0.5, 0.1, 0.2, 0.9])).tolist()
    [1, 0, 0, 2]
    """
    order = np.lexsort((*reversed(keys), groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    sizes = np.diff(starts, append=order.size)
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.arange(order.size) - np.repeat(starts, sizes)
    return ranks


def _spread(points: DoubleArray, weights: DoubleArray, k: int, rng: np.random.Generator) -> DoubleArray:
    """Draw k different points, each with a chance that grows with its squared distance from those before."""
    n = points.shape[0]
    if k == n:
        return points.copy()
    chosen = np.array([rng.choice(n, p=weights / weights.sum())])
    squares = np.full(n, np.inf)
    newest = chosen
    while chosen.size < k:
        squares = np.minimum(squares, _nearest(points, points[newest])[1])
        squares[chosen] = 0
        mass = squares * weights
        wanted = min(-(-k // STARTS), k - chosen.size)
        if np.count_nonzero(mass) < wanted:  # the rest lies closer than a distance can tell
            mass = np.ones(n)
            mass[chosen] = 0
        newest = rng.choice(n, size=wanted, replace=False, p=mass / mass.sum())
        chosen = np.concatenate([chosen, newest])
    starts: DoubleArray = points[chosen]
    return starts


def _nearest(points: DoubleArray, centres: DoubleArray) -> tuple[LongArray, DoubleArray]:
    """Return the nearest centre of each point and the squared distance from it."""
    labels = np.empty(points.shape[0], dtype=np.int64)
    rough = points.astype(np.float32)  # half the time; near ties may fall either way
    towards = np.ascontiguousarray(-2 * centres.T, dtype=np.float32)
    lengths = np.einsum("kd,kd->k", centres, centres).astype(np.float32)
    step = max(CELLS // centres.shape[0], 1)
    for start in range(0, points.shape[0], step):
        gaps = rough[start : start + step] @ towards
        gaps += lengths
        labels[start : start + step] = gaps.argmin(axis=1)
    away = points - centres[labels]
    return labels, np.einsum("nd,nd->n", away, away)


def _fill_empty(labels: LongArray, squares: DoubleArray, k: int) -> None:
    """Give each empty group the point farthest from its centre, but never a group's only point."""
    sizes = np.bincount(labels, minlength=k)
    empty = np.flatnonzero(sizes == 0)
    if empty.size == 0:
        return
    farthest = iter(np.argsort(-squares, kind="stable"))
    for group in empty:
        point = next(p for p in farthest if sizes[labels[p]] > 1)
        sizes[labels[point]] -= 1
        sizes[group] += 1
        labels[point] = group


def _means(points: DoubleArray, weights: DoubleArray, labels: LongArray, k: int) -> DoubleArray:
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(k))
    sums: DoubleArray = np.add.reduceat((points * weights[:, None])[order], starts, axis=0)
    return sums / np.add.reduceat(weights[order], starts)[:, None]
