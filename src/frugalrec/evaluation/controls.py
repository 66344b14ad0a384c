"""Controls for re-ranking: a random order, popularity order, and the oracle's ceiling.

A re-ranked list proves little unless a random permutation of the same places, for the same users,
does worse. The oracle shows how much any re-ranking could gain; it knows the answers, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.rng import derive_seed
from frugalrec.types import PAD, Evaluation, IntArray, Ranking


def random_permutation(ranking: Ranking, m: int, seed: int) -> Ranking:
    """Shuffle the first m places of each list, uniformly.

    A user's order depends on the seed, the user and the place alone: not on the other users, their
    order or the list length.

    Args:
        ranking: Lists, padded with -1 (padding stays at the end).
        m: Places to shuffle.
        seed: Seed.
    """
    m = _checked_m(ranking, m)
    base = np.uint64(derive_seed(seed, "control", "random-permutation"))
    users = _mixed(_mixed(ranking.users.astype(np.uint64)) ^ base)
    places = np.arange(1, m + 1, dtype=np.uint64)
    return _reordered(ranking, _mixed(users[:, None] ^ _mixed(places)[None, :]))


def popularity_rerank(ranking: Ranking, counts: NDArray[Any], m: int) -> Ranking:
    """Sort the first m places of each list by popularity, most popular first, ties as they were.

    Args:
        ranking: Lists.
        counts: Interactions of each item in training, (n_items,).
        m: Places to sort.
    """
    m = _checked_m(ranking, m)
    return _reordered(ranking, -np.asarray(counts, dtype=np.float64)[ranking.items[:, :m]])


def oracle_rerank(ranking: Ranking, targets: Dataset, m: int) -> Ranking:
    """Move the held-out items among the first m places to the front. Knows the answers: a ceiling only."""
    m = _checked_m(ranking, m)
    n_items = np.int64(targets.n_items)
    keys = ranking.users.astype(np.int64)[:, None] * n_items + ranking.items[:, :m]
    hit = np.isin(keys, targets.rows.astype(np.int64) * n_items + targets.items) & (
        ranking.items[:, :m] != PAD
    )
    return _reordered(ranking, ~hit)


def headroom(ranking: Ranking, targets: Dataset, m: int, metric: str, *, seen: Dataset | None) -> Evaluation:
    """Return the best `metric` that any order of the first m places could reach, as an oracle arm.

    `details` holds ``oracle`` (always True), ``current`` and ``ceiling`` (means), ``headroom`` (their
    difference) and ``share_with_hit`` (users with a held-out item among the m places: for the others
    re-ranking cannot help at any price).

    Args:
        ranking: Lists of the cheap model.
        targets: The held-out interactions.
        m: Places that a re-ranker may reorder.
        metric: A metric name with a list length, for example ``"ndcg@10"``.
        seen: As in `frugalrec.evaluation.evaluate.evaluate_ranking`.
    """
    best = oracle_rerank(ranking, targets, m)
    ceiling = evaluate_ranking(f"oracle@{m}", best, targets, [metric, f"hit@{m}"], seen=seen)
    current = evaluate_ranking("current", ranking, targets, [metric], seen=seen).mean(metric)
    figures: Mapping[str, Any] = {
        **ceiling.details,
        "oracle": True,
        "current": current,
        "ceiling": ceiling.mean(metric),
        "headroom": ceiling.mean(metric) - current,
        "share_with_hit": ceiling.mean(f"hit@{m}"),
    }
    return replace(ceiling, values={metric: ceiling.values[metric]}, details=figures)


def _checked_m(ranking: Ranking, m: int) -> int:
    if not 1 <= m <= ranking.k:
        raise ConfigError(f"m={m} must lie in 1..{ranking.k}, the length of the lists.")
    return m


def _reordered(ranking: Ranking, keys: NDArray[Any]) -> Ranking:
    """Sort the first places by `keys`, ascending and stable; padding stays last, scores stay in place."""
    m = keys.shape[1]
    head: IntArray = ranking.items[:, :m]
    order = np.lexsort((keys, head == PAD), axis=1)
    items = ranking.items.copy()
    items[:, :m] = np.take_along_axis(head, order, axis=1)
    return Ranking(users=ranking.users, items=items, scores=ranking.scores)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64-bit integers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
