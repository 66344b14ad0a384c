"""Fusion: mix the cheap model's scores with the LLM's log-odds, and re-rank the head of the list.

For each user, over the first m candidates of the cheap list, with z the standard score (mean 0,
standard deviation 1; all 0 where the values are all alike):

    fused = (1 - weight) * z(cheap score) + weight * z(log-odds)

Standard scores make one weight fit every user: neither scale nor offset of either model matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.candidate_features import standard_scores as standard_scores
from frugalrec.types import PAD, FloatArray, Ranking


def fuse(ranking: Ranking, llm_scores: FloatArray, weight: float, m: int | None = None) -> Ranking:
    """Re-rank the first m items of each list by the fused score.

    A weight of 0 returns the cheap list as it is; 1 orders the head by the LLM alone. Ties keep the
    cheap order, so a user without LLM scores (a row of NaN) keeps the cheap list. The tail is not
    touched.

    Args:
        ranking: The cheap model's lists.
        llm_scores: Log-odds, (n_users, at least m); NaN where there is none (it counts as the mean).
        weight: The LLM's share, from 0 to 1.
        m: Length of the head; default: as many columns as `llm_scores` has.

    Returns:
        The same items in a new order. Scores stay with the *places*: fused scores of head and tail
        would not compare, and a list's scores must not rise.
    """
    depth = min(llm_scores.shape[1] if m is None else m, ranking.k)
    if not 0 <= weight <= 1:
        raise ConfigError(f"the fusion weight must lie between 0 and 1, not {weight}.")
    if depth < 1 or llm_scores.shape[0] != ranking.users.size or llm_scores.shape[1] < depth:
        raise DataError(
            f"re-ranking the first {depth} of {ranking.users.size} lists needs LLM scores of at least "
            f"({ranking.users.size}, {max(depth, 1)}); got {llm_scores.shape}."
        )
    if weight == 0:
        return ranking
    items = ranking.items[:, :depth]
    present = items != PAD
    odds = llm_scores[:, :depth]
    cheap = standard_scores(ranking.scores[:, :depth], present & np.isfinite(ranking.scores[:, :depth]))
    llm = standard_scores(odds, present & np.isfinite(odds))
    fused = np.where(present, (1 - weight) * cheap + weight * llm, -np.inf)
    order = np.argsort(-fused, axis=1, kind="stable")
    head = np.take_along_axis(items, order, axis=1)
    return Ranking(
        users=ranking.users,
        items=np.concatenate([head, ranking.items[:, depth:]], axis=1),
        scores=ranking.scores,
    )


@dataclass(frozen=True, kw_only=True)
class WeightChoice:
    """The weight that validation chose, and what every other would have given."""

    weight: float
    values: Mapping[float, float]
    """Weight -> validation metric."""


def choose_weight(grid: Sequence[float], evaluate: Callable[[float], float]) -> WeightChoice:
    """Return the weight with the highest validation value; ties go to the smaller weight.

    Args:
        grid: Weights to try; contain 0 so that the cheap list can win.
        evaluate: Weight -> metric on validation users, higher is better.
    """
    if not grid:
        raise ConfigError("the grid of fusion weights is empty; give at least 0 and one other weight.")
    values = {float(weight): float(evaluate(float(weight))) for weight in sorted(set(grid))}
    if not all(np.isfinite(value) for value in values.values()):
        raise DataError(f"the validation metric is undefined for some weights: {values}.")
    best = max(values, key=lambda weight: (values[weight], -weight))
    return WeightChoice(weight=best, values=values)
