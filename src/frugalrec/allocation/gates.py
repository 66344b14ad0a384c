"""Gates: the LLM is used in a segment of users only where calibration shows a gain, with a weight of its own.

For each segment the fusion weight with the best mean on calibration users is taken, and the gate opens only
if the lower confidence bound of its mean gain is above 0. Both come from one set of users, so the gain is
measured across folds: chosen on some users, measured on the others. A weight of 0 is the cheap list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import fuse
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, FloatArray, LongArray, Ranking

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
    """Mean gain over the cheap list, chosen and measured on different users; NaN with too few users."""
    lower: float
    """Its lower confidence bound."""
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
    folds: int = 5,
    seed: int = 0,
) -> Gates:
    """Choose each segment's weight on calibration users, and whether to use the LLM at all.

    Args:
        segments: Segment of each calibration user, (n,), known before treatment, such as
            `frugalrec.evaluation.segments.activity_groups`.
        values: Fusion weight -> the metric of each calibration user's fused list, (n,); must hold 0, the
            cheap list. Users undefined in any are left out.
        level: Confidence of the lower bound, one-sided.
        folds: Folds between which weights are chosen and gains measured.
        seed: Seed of the folds.
    """
    if 0.0 not in values:
        raise ConfigError("give the values of weight 0, the cheap list, to compare with.")
    if not 0.5 <= level < 1 or folds < 2:
        raise ConfigError(f"level={level} must lie in 0.5..1 and folds={folds} be at least 2.")
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
        fold = generator(seed, "gates", segment).permutation(own.shape[1]) % folds
        gates[segment] = _gate(segment, weights, own, fold, level)
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


def _gate(segment: int, weights: DoubleArray, gains: DoubleArray, fold: LongArray, level: float) -> Gate:
    n = gains.shape[1]
    best = _best(weights, gains.mean(axis=1))
    if n < FEWEST:
        nan = float("nan")
        return Gate(segment=segment, weight=0.0, best_weight=best, gain=nan, lower=nan, n=n)
    honest = np.empty(n)
    for number in np.unique(fold):
        inside = fold == number
        chosen = _best(weights, gains[:, ~inside].mean(axis=1))
        honest[inside] = gains[weights == chosen][0, inside]
    mean, error = float(honest.mean()), float(honest.std(ddof=1) / np.sqrt(n))
    lower = mean - float(stdtrit(n - 1, level)) * error
    return Gate(
        segment=segment, weight=best if lower > 0 else 0.0, best_weight=best, gain=mean, lower=lower, n=n
    )


def _best(weights: DoubleArray, means: DoubleArray) -> float:
    """Return the weight with the highest mean; ties go to the smaller weight."""
    return float(weights[int(np.argmax(means))])
