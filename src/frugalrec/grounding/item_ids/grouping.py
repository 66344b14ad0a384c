"""K-means with or without room for only so many points a group, seeded.

Without a limit these are Lloyd's steps. With one, points and groups are matched so that no point is
nearer to a group that would rather have it than one of its own: the stable matching of Gale and Shapley
by distance, which is unique where distances differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frugalrec.errors import ConfigError
from frugalrec.types import DoubleArray, LongArray

CELLS = 1 << 22
"""Distances held at once where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of points."""

    centres: DoubleArray
    """Centre of each group, (k, d)."""
    labels: LongArray
    """Group of each point, (n,)."""
    error: float
    """Sum of squared distances from the centres."""


def kmeans(
    points: DoubleArray,
    k: int,
    rng: np.random.Generator,
    *,
    room: int | None = None,
    iterations: int = 25,
) -> Groups:
    """Group points; of all steps, the one with the smallest error counts.

    Args:
        points: Points, (n, d).
        k: Groups; fewer where there are fewer different points and no limit.
        rng: Draws the starting centres (k-means++, Arthur and Vassilvitskii, SODA 2007).
        room: The most points of a group; None sets no limit.
        iterations: The most steps.

    Raises:
        ConfigError: If the groups have no room for all points.
    """
    n = points.shape[0]
    if not 1 <= k <= n or (room is not None and k * room < n):
        raise ConfigError(f"{n} points do not fit into {k} groups of at most {room or n}, none empty.")
    centres = points[_starts(points, k, rng, fill=room is not None)]
    best, before = Groups(centres=centres, labels=np.zeros(n, dtype=np.int64), error=np.inf), None
    for _ in range(iterations):
        if room is None:
            labels = _nearest(points, centres)
        else:
            labels = matched(squared_distances(points, centres), room)
        if before is not None and np.array_equal(labels, before):
            break
        before, centres = labels, _means(points, labels, centres)
        away = points - centres[labels]
        error = float(np.einsum("nd,nd->", away, away))
        if error < best.error:
            best = Groups(centres=centres, labels=labels, error=error)
    return best


def squared_distances(points: DoubleArray, centres: DoubleArray) -> DoubleArray:
    """Return squared distances, (n, k), up to rounding."""
    gaps: DoubleArray = -2 * (points @ centres.T)
    gaps += np.einsum("kd,kd->k", centres, centres)
    gaps += np.einsum("nd,nd->n", points, points)[:, None]
    return gaps


def matched(costs: DoubleArray, room: int) -> LongArray:
    """Return the group of each point in the stable matching by cost, (n,); ties go by number.

    Args:
        costs: Distances, (n, k); points prefer near groups, and groups near points.
        room: The most points of a group; k times room is at least n.
    """
    n, k = costs.shape
    wishes = np.argsort(costs, axis=1, kind="stable")
    wish = np.zeros(n, dtype=np.int64)
    points = np.arange(n)
    while True:
        group = wishes[points, wish]
        order = np.lexsort((points, costs[points, group], group))
        starts = np.searchsorted(group[order], np.arange(k))
        place = np.arange(n) - starts[group[order]]
        refused = order[place >= room]
        if not refused.size:
            return group
        wish[refused] += 1


def _starts(points: DoubleArray, k: int, rng: np.random.Generator, *, fill: bool) -> LongArray:
    """Draw different points, each with a chance that grows with its squared distance from those before.

    Where the points left are all equal to drawn ones, `fill` goes on at random; else fewer are returned.
    """
    n = points.shape[0]
    chosen = [int(rng.integers(n))]
    squares = np.full(n, np.inf)
    while len(chosen) < k:
        away = points - points[chosen[-1]]
        squares = np.minimum(squares, np.einsum("nd,nd->n", away, away))
        squares[chosen] = 0.0
        total = squares.sum()
        if total > 0:
            chosen.append(int(rng.choice(n, p=squares / total)))
        elif fill:
            chosen.append(int(rng.choice(np.setdiff1d(np.arange(n), chosen))))
        else:
            break
    return np.array(chosen, dtype=np.int64)


def _means(points: DoubleArray, labels: LongArray, centres: DoubleArray) -> DoubleArray:
    """Return the mean of each group; an empty one keeps its centre."""
    k = centres.shape[0]
    counts = np.bincount(labels, minlength=k)
    order = np.argsort(labels, kind="stable")
    occupied = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[occupied]
    means = centres.copy()
    means[occupied] = np.add.reduceat(points[order], starts, axis=0) / counts[occupied, None]
    return means


def _nearest(points: DoubleArray, centres: DoubleArray) -> LongArray:
    """Return the nearest centre of each point, (n,).

    A centre that is nearest to none gets the point that its own centre suits worst, but never an only one.
    """
    n, k = points.shape[0], centres.shape[0]
    labels, squares = np.empty(n, dtype=np.int64), np.empty(n)
    step = max(CELLS // k, 1)
    for start in range(0, n, step):
        gaps = squared_distances(points[start : start + step], centres)
        labels[start : start + step], squares[start : start + step] = gaps.argmin(axis=1), gaps.min(axis=1)
    counts = np.bincount(labels, minlength=k)
    for group in np.flatnonzero(counts == 0):
        lost = np.where(counts[labels] > 1, squares, -np.inf)
        point = int(lost.argmax())
        counts[labels[point]] -= 1
        counts[group] += 1
        labels[point], squares[point] = group, 0.0
    return labels
