"""Re-weighting of distances by popularity or another model's scores, for all strengths in one pass.

BIGRec's equation 3 (arXiv 2308.08434) with a weight W between 0 and 1 for each item (and user), and a
strength gamma:

    relative = (distance - nearest) / (farthest - nearest)        a user's nearest item gets 0
    reweighted = relative * (1 + W) ** -gamma                     smaller is better

The nearest item stays first whatever gamma is; with `origin="zero"`, distances count from 0 and it can
move. In logarithms an item overtakes another at one gamma, ``log(relative_i / relative_j) / log((1 + W_i)
/ (1 + W_j))``; so the places of a held-out item at every gamma of a grid come out of one histogram of
these, without sorting and without a pass for each gamma.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import Ranks, target_ranks
from frugalrec.grounding.fusion import WeightChoice, choose_weight
from frugalrec.types import DoubleArray, FloatArray

Origin = Literal["nearest", "zero"]

GAMMAS: tuple[float, ...] = (*(n / 100 for n in range(100)), *map(float, range(1, 100)))
"""The grid of BIGRec's films with collaborative weights: 0 to 0.99 by 0.01, then 1 to 99."""


def popularity_weights(counts: NDArray[Any]) -> FloatArray:
    """Return how popular each item is, from 0 (least) to 1 (most), (n_items,).

    >>> popularity_weights(np.array([2, 10, 6])).tolist()
    [0.0, 1.0, 0.5]
    """
    weights: FloatArray = score_weights(np.asarray(counts)[None])[0]
    return weights


def score_weights(scores: NDArray[Any]) -> FloatArray:
    """Return each row's scores stretched to 0 (lowest) to 1 (highest), (n, n_items).

    Scores of -inf get 0, as do all of a row without two different finite scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    finite = np.isfinite(values)
    if np.isnan(values).any() or np.isposinf(values).any():
        raise DataError("scores to weigh items by hold NaN or +inf; give finite numbers, or -inf for none.")
    low = np.where(finite, values, np.inf).min(axis=1, keepdims=True)
    high = np.where(finite, values, -np.inf).max(axis=1, keepdims=True)
    spread = high - low
    usable = finite & (spread > 0) & np.isfinite(spread)
    found: DoubleArray = np.divide(values - low, spread, out=np.zeros_like(values), where=usable)
    return found.astype(np.float32)


def reweight(
    distances: NDArray[Any], weights: NDArray[Any], gamma: float, *, origin: Origin = "nearest"
) -> DoubleArray:
    """Return re-weighted distances, (n, n_items); smaller is better, +inf stays.

    Args:
        distances: (n, n_items), not negative; +inf for an item that is no candidate.
        weights: (n_items,) or (n, n_items), from 0 to 1.
        gamma: Strength; 0 leaves the order as it is.
        origin: What has distance 0: each row's `nearest` item, or `zero` itself.
    """
    _check(distances, weights, [gamma], origin)
    relative = _relative(np.asarray(distances, dtype=np.float64), origin)
    reweighted: DoubleArray = relative * (1.0 + np.asarray(weights, dtype=np.float64)) ** -gamma
    return reweighted


def gamma_ranks(
    distances: NDArray[Any],
    weights: NDArray[Any],
    gammas: Sequence[float],
    users: NDArray[Any],
    targets: Dataset,
    *,
    seen: Dataset | None = None,
    origin: Origin = "nearest",
) -> dict[float, Ranks]:
    """Return, for each gamma, where each user's held-out items come out of the re-weighted distances.

    Ties are counted apart, and never broken in an item's favour.

    Args:
        distances: (len(users), n_items), as in `reweight`.
        weights: (n_items,) or (len(users), n_items), from 0 to 1.
        gammas: Strengths, at least 0.
        users: User codes, each once.
        targets: The held-out interactions.
        seen: Interactions whose items are no candidates for their user.
        origin: As in `reweight`.
    """
    _check(distances, weights, gammas, origin)
    grid = np.array(sorted(set(map(float, gammas))))
    codes = np.asarray(users, dtype=np.int32)
    if len(distances) != codes.size:
        raise DataError(
            f"expected one row of distances for each of {codes.size} users; got {len(distances)}."
        )
    number = np.full(targets.n_users, -1)
    number[codes] = np.arange(codes.size)
    # The pairs to rank, their candidates and their order are those of any other evaluation.
    plain = target_ranks(lambda some: -np.asarray(distances)[number[some]], codes, targets, seen=seen)
    wide = np.broadcast_to(np.log1p(np.asarray(weights, dtype=np.float64)), np.shape(distances))
    better, tied = np.zeros((2, grid.size, plain.items.size))
    for row in range(codes.size):
        pairs = np.arange(plain.indptr[row], plain.indptr[row + 1])
        if not pairs.size:
            continue
        own = np.array(distances[row], dtype=np.float64)
        if seen is not None:
            own[seen.history(int(codes[row]))] = np.inf
        with np.errstate(divide="ignore"):
            logs = np.log(_relative(own[None], origin)[0])
        for pair in pairs:
            better[:, pair], tied[:, pair] = _places(logs, wide[row], int(plain.items[pair]), grid)
    return {float(gamma): _reordered(plain, better[g], tied[g]) for g, gamma in enumerate(grid)}


def choose_gamma(ranks: Mapping[float, Ranks], metric: str = "ndcg@10") -> WeightChoice:
    """Return the one gamma with the highest mean of one metric on validation; ties go to the smaller.

    Args:
        ranks: What `gamma_ranks` returned for validation users.
        metric: For example ``"ndcg@10"``; see `frugalrec.evaluation.metrics.METRICS`.
    """
    measure = parse_metric(metric)
    return choose_weight(list(ranks), lambda gamma: float(np.nanmean(measure(ranks[gamma]))))


def _places(
    logs: DoubleArray, strengths: DoubleArray, target: int, grid: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """Return how many items are better than one, and how many tie with it, at each gamma.

    Item i is better where ``logs[i] - gamma * strengths[i]`` is below the target's; so it overtakes at one
    gamma, upwards of it if its strength is the larger, else downwards.
    """
    n, own = grid.size, logs[target]
    lead = strengths - strengths[target]
    if np.isfinite(own):
        ahead = logs - own
    else:  # distance 0 or infinite: others like it tie at every gamma, and all the rest are on one side
        ahead = np.where(logs == own, 0.0, -own)
        lead = np.where(logs == own, 0.0, lead)
    level = lead == 0
    always, equal = (ahead[level] < 0).sum(), (ahead[level] == 0).sum() - 1  # not with itself
    ahead, lead = ahead[~level], lead[~level]
    turn = ahead / lead
    at = np.searchsorted(grid, turn)
    ties = np.append(grid, np.nan)[at] == turn
    up = lead > 0
    from_here = np.bincount(at[up] + ties[up], minlength=n + 1)[:n]
    until_here = np.bincount(at[~up], minlength=n + 1)
    better = always + np.cumsum(from_here) + (until_here.sum() - np.cumsum(until_here)[:n])
    return better, equal + np.bincount(at[ties], minlength=n + 1)[:n]


def _relative(distances: DoubleArray, origin: Origin) -> DoubleArray:
    """Return distances between 0 and 1 a row; +inf stays."""
    finite = np.isfinite(distances)
    low = np.where(finite, distances, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    low = np.where(np.isfinite(low), low, 0.0) if origin == "nearest" else np.zeros_like(low)
    spread = np.where(finite, distances, 0.0).max(axis=1, keepdims=True, initial=0.0) - low
    found: DoubleArray = (distances - low) / np.where(spread > 0, spread, 1.0)
    return found


def _reordered(plain: Ranks, better: DoubleArray, tied: DoubleArray) -> Ranks:
    order = np.lexsort((plain.items, better, plain.rows))
    return Ranks(
        users=plain.users,
        indptr=plain.indptr,
        items=plain.items[order],
        better=better[order],
        tied=tied[order],
        n_candidates=plain.n_candidates,
        n_items=plain.n_items,
        n_repeats=plain.n_repeats,
    )


def _check(distances: NDArray[Any], weights: NDArray[Any], gammas: Sequence[float], origin: str) -> None:
    shape, own = np.shape(distances), np.shape(weights)
    if len(shape) != 2 or own not in (shape, shape[1:]):
        raise DataError(
            f"distances (n, n_items) need weights (n_items,) or (n, n_items); got {shape} and {own}."
        )
    if not (np.asarray(distances) >= 0).all():
        raise DataError("distances must be 0 or more, +inf for items that are no candidates; some are not.")
    if not ((np.asarray(weights) >= 0) & (np.asarray(weights) <= 1)).all():
        raise DataError("weights must lie between 0 and 1; stretch them with score_weights.")
    if not gammas or not all(0 <= gamma < np.inf for gamma in gammas):
        raise ConfigError(
            f"gamma must be a number of at least 0, and there must be one; got {list(gammas)[:5]}."
        )
    if origin not in ("nearest", "zero"):
        raise ConfigError(f"origin must be nearest or zero, not {origin!r}.")
