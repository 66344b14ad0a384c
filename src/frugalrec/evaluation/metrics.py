"""Ranking metrics: pure per-user functions of `Ranks`, and their names, such as "ndcg@10".

A name is ``metric[@k][:dialect]``. Libraries differ in what they divide by; each way has a name here,
the first in the table being the default. A user without held-out items gets NaN, never 0.

Where a held-out item ties with others, every metric is its expected value over random orders of the
tied items, in closed form: no seed, no luck at the cut-off. Without ties it is the textbook value.

Sources: NDCG, Järvelin and Kekäläinen 2002; AUC over held-out against unseen items, Rendle et al.
2009; expected values under ties, McSherry and Najork 2008.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError
from frugalrec.evaluation.ranks import Ranks
from frugalrec.types import DoubleArray, LongArray


def recall(ranks: Ranks, k: int, dialect: str = "relevant") -> DoubleArray:
    """Return the share of held-out items in the top k, (n_users,).

    Args:
        ranks: Where the held-out items came out.
        k: List length.
        dialect: `relevant` divides by the number of held-out items; `capped` by that or k, whichever
            is smaller, so that a perfect list scores 1.
    """
    divisor = ranks.n_relevant if dialect == "relevant" else np.minimum(ranks.n_relevant, k)
    return _divide(_hits(ranks, k), divisor)


def precision(ranks: Ranks, k: int, dialect: str = "all-k") -> DoubleArray:
    """Return the share of the top k places that hold a held-out item, (n_users,)."""
    return _divide(_hits(ranks, k), np.where(ranks.n_relevant > 0, k, 0))


def hit_rate(ranks: Ranks, k: int, dialect: str = "any") -> DoubleArray:
    """Return 1 where the top k hold at least one held-out item, else 0, (n_users,)."""
    return _first(ranks, k, np.ones_like)


def mrr(ranks: Ranks, k: int | None = None, dialect: str = "first") -> DoubleArray:
    """Return one over the place of the first held-out item, 0 beyond place k, (n_users,)."""
    return _first(ranks, k, np.reciprocal)


def ndcg(ranks: Ranks, k: int | None = None, dialect: str = "achievable") -> DoubleArray:
    """Return the normalised discounted cumulative gain, (n_users,); a place p gains 1 / log2(p + 1).

    Args:
        ranks: Where the held-out items came out.
        k: List length; None ranks to the end.
        dialect: `achievable` divides by the gain of a perfect list of the user's own items (at most
            k of them); `all-k` by that of k held-out items, as RecTools does.
    """
    end = _end(ranks, k)
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, end + 2)))])
    low, high = _places(ranks, end)
    earned = _sum(ranks, (gains[high] - gains[low]) / (ranks.tied + 1))
    ideal = gains[np.minimum(ranks.n_relevant, end)]
    return _divide(earned, ideal if dialect == "achievable" else np.where(ideal > 0, gains[end], 0.0))


def average_precision(ranks: Ranks, k: int | None = None, dialect: str = "relevant") -> DoubleArray:
    """Return the average precision (its mean over users is MAP), (n_users,).

    Args:
        ranks: Where the held-out items came out.
        k: List length; None ranks to the end.
        dialect: The precisions at the places of held-out items are summed and divided by: `relevant`,
            the number of held-out items (trec_eval, RecTools); `capped`, that or k, whichever is
            smaller; `all-k`, k (RecTools with ``divide_by_k``).
    """
    end = _end(ranks, k)
    low, high = _places(ranks, end)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, end + 1))])
    inverse = harmonic[high] - harmonic[low]  # sum of 1/p over the places p the item can take
    before, together = _runs(ranks)
    # At place low + r, of the item's tied fellows a share (r - 1) / tied stands before it.
    earlier = np.divide(together - 1, ranks.tied, out=np.zeros_like(ranks.tied), where=ranks.tied > 0)
    total = (before + 1) * inverse + earlier * ((high - low) - (low + 1) * inverse)
    earned = _sum(ranks, total / (ranks.tied + 1))
    divisor = {"relevant": ranks.n_relevant, "capped": np.minimum(ranks.n_relevant, end)}.get(dialect)
    return _divide(earned, np.where(ranks.n_relevant > 0, end, 0) if divisor is None else divisor)


def auc(ranks: Ranks, k: int | None = None, dialect: str = "unseen") -> DoubleArray:
    """Return the share of (held-out, other candidate) pairs in the right order, ties as half, (n_users,).

    Raises:
        ConfigError: If the ranks come from cut lists, which say nothing of the items left out.
    """
    missed = int(np.isinf(ranks.better).sum())
    if missed:
        raise ConfigError(
            f"auc needs the place of every held-out item, and {missed} are not on their cut list. "
            f"Evaluate the scores of the full catalogue, or drop auc."
        )
    positives = ranks.n_relevant
    negatives = ranks.n_candidates - positives
    wrong = _sum(ranks, ranks.ranks) - positives * (positives + 1) / 2.0
    return 1.0 - _divide(wrong, positives * negatives)


@dataclass(frozen=True)
class MetricKind:
    """One line of the metric table."""

    function: Callable[..., DoubleArray]
    dialects: tuple[str, ...]
    """Names of the ways to compute it; the first is the default."""
    cut: str
    """Whether the name takes ``@k``: `required`, `optional` or `none`."""


METRICS: Mapping[str, MetricKind] = MappingProxyType(
    {
        "recall": MetricKind(recall, ("relevant", "capped"), "required"),
        "precision": MetricKind(precision, ("all-k",), "required"),
        "hit": MetricKind(hit_rate, ("any",), "required"),
        "ndcg": MetricKind(ndcg, ("achievable", "all-k"), "optional"),
        "mrr": MetricKind(mrr, ("first",), "optional"),
        "map": MetricKind(average_precision, ("relevant", "capped", "all-k"), "optional"),
        "auc": MetricKind(auc, ("unseen",), "none"),
    }
)
"""Name -> function and dialects of every ranking metric."""


@dataclass(frozen=True)
class Metric:
    """A metric made from its name; call it on `Ranks`."""

    name: str
    kind: str
    k: int | None
    dialect: str

    def __call__(self, ranks: Ranks) -> DoubleArray:
        """Return per-user values, (n_users,); NaN where undefined."""
        return METRICS[self.kind].function(ranks, k=self.k, dialect=self.dialect)


def parse_metric(name: str) -> Metric:
    """Turn ``"ndcg@10"`` or ``"recall@20:capped"`` into a metric.

    Raises:
        ConfigError: If the name, its k or its dialect is unknown.

    >>> parse_metric("recall@20:capped").k
    20
    """
    match = re.fullmatch(r"([a-z]+)(?:@(\d+))?(?::([a-z-]+))?", name)
    kind = METRICS.get(match[1]) if match else None
    if match is None or kind is None:
        known = ", ".join(f"{key}@k" if row.cut == "required" else key for key, row in METRICS.items())
        raise ConfigError(f"unknown metric {name!r}; choose among {known}, for example ndcg@10.")
    k = None if match[2] is None else int(match[2])
    dialect = match[3] or kind.dialects[0]
    if dialect not in kind.dialects:
        raise ConfigError(f"{name!r}: {match[1]} knows the dialects {', '.join(kind.dialects)}.")
    if k == 0 or (k is None and (kind.cut == "required" or dialect == "all-k")):
        raise ConfigError(f"{name!r} needs a list length of at least 1, for example {match[1]}@10.")
    if k is not None and kind.cut == "none":
        raise ConfigError(f"{name!r}: {match[1]} takes no list length; write {match[1]}.")
    return Metric(name=name, kind=match[1], k=k, dialect=dialect)


def _end(ranks: Ranks, k: int | None) -> int:
    if k is not None:
        return k
    last = (ranks.better + ranks.tied + 1)[np.isfinite(ranks.better)]
    return int(max(last.max(initial=1), ranks.n_relevant.max(initial=1)))


def _places(ranks: Ranks, end: int) -> tuple[LongArray, LongArray]:
    """Return (low, high): within the first `end`, the item can take the places low + 1 to high."""
    low = np.minimum(ranks.better, end).astype(np.int64)
    return low, np.minimum(ranks.better + ranks.tied + 1, end).astype(np.int64)


def _hits(ranks: Ranks, k: int) -> DoubleArray:
    low, high = _places(ranks, k)
    return _sum(ranks, (high - low) / (ranks.tied + 1))


def _runs(ranks: Ranks) -> tuple[LongArray, LongArray]:
    """Return, per held-out item, the held-out items ranked surely before it and those tied, itself too."""
    new = np.ones(ranks.items.size, dtype=bool)
    new[1:] = (ranks.rows[1:] != ranks.rows[:-1]) | (ranks.better[1:] != ranks.better[:-1])
    starts = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    lengths = np.diff(np.append(starts, ranks.items.size))
    return starts[run] - ranks.indptr[ranks.rows], lengths[run]


def _first(ranks: Ranks, k: int | None, value: Callable[[DoubleArray], DoubleArray]) -> DoubleArray:
    """Return the expected `value` of the place of the best held-out item, 0 beyond k."""
    result = np.where(ranks.n_relevant > 0, 0.0, np.nan)
    end = _end(ranks, k)
    row = np.flatnonzero(ranks.n_relevant > 0)
    first = ranks.indptr[row]
    place, open_places = ranks.better[first] + 1, ranks.tied[first] + 1
    hits, none_yet = _runs(ranks)[1][first].astype(np.float64), np.ones(row.size)
    # The best group has `hits` held-out items among its places, in random order: walk along them.
    live = np.flatnonzero(place <= end)
    while live.size:
        chance = hits[live] / open_places[live]
        result[row[live]] += none_yet[live] * chance * value(place[live])
        none_yet[live] *= 1.0 - chance
        place[live] += 1
        open_places[live] -= 1
        live = live[(none_yet[live] > 0) & (open_places[live] > 0) & (place[live] <= end)]
    return result


def _sum(ranks: Ranks, values: NDArray[Any]) -> DoubleArray:
    return np.bincount(ranks.rows, weights=values, minlength=ranks.users.size).astype(np.float64, copy=False)


def _divide(values: DoubleArray, divisor: NDArray[Any]) -> DoubleArray:
    result = np.full(values.size, np.nan)
    np.divide(values, divisor, out=result, where=divisor > 0)
    return result
