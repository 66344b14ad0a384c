"""The lines behind quality-against-cost curves: spending and gain along a policy's order of users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frugalrec.types import DoubleArray

STEPS = 20
"""Steps of the grid between no cost and that of asking about everybody."""
MILESTONES = (0.2, 0.5, 0.8, 0.95)
CHUNK_CELLS = 4_000_000


class Line:
    """One trial's users in a policy's order, those of one score together, those never asked left out."""

    def __init__(self, scores: DoubleArray, gains: DoubleArray, costs: DoubleArray) -> None:
        """Order users by score, (n,); `gains` and `costs` are theirs, in the same order."""
        asked = np.flatnonzero(scores > -np.inf)
        self.order = asked[np.argsort(-scores[asked], kind="stable")]
        ranked = scores[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])[: ranked.size])
        self.costs, self.gains = costs, gains

    def corners(self, weights: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        """Return the curve's corners under weights of users (b, n): (shares of cost, gains), (b, k + 1)."""
        own = weights[:, self.order]
        zero = np.zeros((weights.shape[0], 1))
        if not self.order.size:
            return zero, zero
        spent = np.cumsum(np.add.reduceat(own * self.costs[self.order], self.starts, axis=1), axis=1)
        gained = np.cumsum(np.add.reduceat(own * self.gains[self.order], self.starts, axis=1), axis=1)
        total = (weights @ self.costs)[:, None]
        shares = np.divide(spent, total, out=np.zeros_like(spent), where=total > 0)
        gained /= weights.sum(axis=1, keepdims=True)
        return np.concatenate([zero, shares], axis=1), np.concatenate([zero, gained], axis=1)


def measure(own: Sequence[Line], weights: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Return areas (b,) and gains at the shares of the grid (b, g), means over trials."""
    points = grid()
    areas, gains = np.zeros(weights.shape[0]), np.zeros((weights.shape[0], points.size))
    step = max(1, CHUNK_CELLS // weights.shape[1])
    for start in range(0, weights.shape[0], step):
        rows = slice(start, start + step)
        for line in own:
            x, y = line.corners(weights[rows])
            # Beyond its last corner a policy spends no more, and keeps what it has gained.
            areas[rows] += (np.trapezoid(y, x, axis=1) + y[:, -1] * (1.0 - x[:, -1])) / len(own)
            each = [np.interp(points, a, b) for a, b in zip(x, y, strict=True)]
            gains[rows] += np.array(each) / len(own)
    return areas, gains


def needed(lines: Sequence[tuple[DoubleArray, DoubleArray]], gap: float) -> dict[float, float]:
    """Return the smallest share of the cost at which the mean curve recovers each part of the gap."""
    if not gap > 0:
        return dict.fromkeys(MILESTONES, float("nan"))
    x = np.unique(np.concatenate([[1.0], *(corners[0] for corners, _ in lines)]))
    y = np.mean([np.interp(x, a[0], b[0]) for a, b in lines], axis=0)
    return {part: _first_reach(x, y, part * gap) for part in MILESTONES}


def _first_reach(x: DoubleArray, y: DoubleArray, wanted: float) -> float:
    # The last corner is everybody for a policy that asks all: rounding must not make it miss the gap.
    reached = np.flatnonzero(y >= wanted * (1 - 1e-12))
    if not reached.size:
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    part = (wanted - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + min(max(part, 0.0), 1.0) * (x[i] - x[i - 1]))


def grid() -> DoubleArray:
    """Return the budgets of a curve, as shares of the cost of asking about everybody."""
    return np.linspace(0.0, 1.0, STEPS + 1)
