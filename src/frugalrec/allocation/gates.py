"""Gates: the LLM is used in a segment of users only where calibration shows a gain, with a weight of its own.

For each segment the fusion weight with the best mean on calibration users is taken, and the gate opens only
if the lower confidence bound of its mean gain is above 0. The best of many weights looks good by luck, so the
bounds hold for all weights at once: their width is the quantile of the largest deviation of any weight when
the users' deviations change sign at random (max-t, Romano and Wolf 2005; signs after Liu 1988). Measuring
across folds would not do: where all folds choose alike, it is the same lucky mean.

A weight of 0 is the cheap list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import fuse
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, FloatArray, Ranking

FEWEST = 10
"""Calibration users below which a segment's gate stays shut."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One segment's decision."""

    segment: int
    weight: float
    """The LLM's share in the fused list; 0 where the gate is shut."""
    best_weight: float
    """The weight with the best calibration mean, whether or not the gate is open."""
    gain: float
    """Mean gain of `best_weight` over the cheap list on calibration: picked as best, so on the high side."""
    lower: float
    """Its lower confidence bound, which allows for the picking; -inf with too few users."""
    n: int
    """Calibration users."""

    @property
    def open(self) -> bool:
        """Return whether the segment uses the LLM."""
        return self.weight > 0


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The decisions of all segments."""

    gates: Mapping[int, Gate]
    level: float

    def weights(self, segments: NDArray[Any]) -> DoubleArray:
        """Return each user's fusion weight, (n,); 0 in a segment that calibration never saw."""
        return np.array(
            [self.gates[s].weight if s in self.gates else 0.0 for s in np.asarray(segments).tolist()]
        )

    def __str__(self) -> str:
        """Say which segments use the LLM."""
        used = [gate for gate in self.gates.values() if gate.open]
        if not used:
            return (
                f"no segment's gain is above 0 with {self.level:.0%} confidence: the LLM is used for nobody."
            )
        parts = ", ".join(
            f"{g.segment} (weight {g.weight:g}, gain {g.gain:+.4f}, at least {g.lower:+.4f})" for g in used
        )
        return f"the LLM is used in {len(used)} of {len(self.gates)} segments: {parts}."


def fit_gates(
    segments: NDArray[Any],
    values: Mapping[float, NDArray[Any]],
    *,
    level: float = 0.95,
    flips: int = 2000,
    seed: int = 0,
) -> Gates:
    """Choose each segment's weight on calibration users, and whether to use the LLM at all.

    Args:
        segments: Segment of each calibration user, (n,), known before treatment, such as
            `frugalrec.evaluation.segments.activity_groups`.
        values: Fusion weight -> the metric of each calibration user's fused list, (n,); must hold 0, the
            cheap list. Users undefined in any are left out.
        level: Confidence of the lower bounds, one-sided, for all weights of a segment at once.
        flips: Random changes of sign that the bounds' width is taken from.
        seed: Seed of the signs; the result does not depend on the order of users.
    """
    if 0.0 not in values:
        raise ConfigError("give the values of weight 0, the cheap list, to compare with.")
    if not 0.5 <= level < 1 or flips < 1:
        raise ConfigError(f"level={level} must lie in 0.5..1 and flips={flips} be at least 1.")
    weights = np.array(sorted(values))
    table = np.stack([np.asarray(values[weight], dtype=np.float64) for weight in weights])
    groups = np.asarray(segments, dtype=np.int64)
    if table.shape[1:] != groups.shape:
        raise DataError(f"one value a user is needed: {groups.shape} segments, {table.shape[1:]} values.")
    gains = table - table[int(np.flatnonzero(weights == 0)[0])]
    known = ~np.isnan(gains).any(axis=0)
    gains, groups = gains[:, known], groups[known]
    gates = {}
    for segment in np.unique(groups).tolist():
        own = gains[:, groups == segment]
        own = own[:, np.lexsort(own)]
        signs = generator(seed, "gates", segment).choice(np.array([-1.0, 1.0]), (flips, own.shape[1]))
        gates[segment] = _gate(segment, weights, own, signs, level)
    return Gates(gates=gates, level=level)


def fuse_by_user(
    ranking: Ranking, llm_scores: FloatArray, weights: NDArray[Any], m: int | None = None
) -> Ranking:
    """Re-rank each list with its user's own fusion weight.

    Args:
        ranking: The cheap model's lists.
        llm_scores: Log-odds, (n_users, at least m).
        weights: The LLM's share for each user, (n_users,).
        m: Length of the head.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != ranking.users.shape:
        raise DataError(f"one weight a list is needed: {ranking.users.shape}, not {shares.shape}.")
    items = ranking.items.copy()
    for weight in np.unique(shares).tolist():
        rows = np.flatnonzero(shares == weight)
        items[rows] = fuse(ranking.take(rows), llm_scores[rows], weight, m).items
    return Ranking(users=ranking.users, items=items, scores=ranking.scores)


def _gate(segment: int, weights: DoubleArray, gains: DoubleArray, signs: DoubleArray, level: float) -> Gate:
    n = gains.shape[1]
    means = gains.mean(axis=1)
    best = int(np.argmax(means))  # ties go to the smaller weight
    lower = float(_lower_bounds(gains, signs, level)[best]) if n >= FEWEST else float("-inf")
    return Gate(
        segment=segment,
        weight=float(weights[best]) if lower > 0 else 0.0,
        best_weight=float(weights[best]),
        gain=float(means[best]),
        lower=lower,
        n=n,
    )


def _lower_bounds(gains: DoubleArray, signs: DoubleArray, level: float) -> DoubleArray:
    """Return lower bounds of all weights' mean gains, (k,), that hold together with confidence `level`."""
    means = gains.mean(axis=1)
    centred = gains - means[:, None]
    flipped = signs @ centred.T / gains.shape[1]
    errors = centred.std(axis=1, ddof=1) / np.sqrt(gains.shape[1])
    # Each flip has a spread of its own, as a t statistic does.
    second = (centred**2).mean(axis=1)[None, :] - flipped**2
    spread = np.sqrt(np.maximum(second, 0.0) / (gains.shape[1] - 1))
    t = np.divide(flipped, spread, out=np.zeros_like(flipped), where=spread > 1e-300)
    bounds: DoubleArray = means - np.quantile(t.max(axis=1), level) * errors
    return bounds
