"""Words alone: items whose titles resemble those of the latest history, and what they add to another model.

No training at all, so it is a baseline of its own; and as it knows what sequence models do not, a small share
of it on top of their scores can help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.evaluate import evaluate_ranks
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.batching import recent
from frugalrec.types import DoubleArray, FloatArray, IntArray

BLOCK = 256
"""Users scored at once."""
FLAT = 1e-6
"""Deviation of a user's scores, relative to the length of what they are asked with, that is rounding."""


@dataclass(kw_only=True, eq=False, repr=False)
class TitleMatch(Recommender):
    """Score items by the cosine to the recency-weighted mean title vector of the last items.

    Scores are standard scores over the catalogue, so that a share of them means the same for every user;
    a user without any titled item is given 0 for all. Mean and deviation follow from those of the vectors, so
    that a user costs one product and no pass over the scores.
    """

    name: ClassVar[str] = "title-match"

    vectors: FloatArray
    """Title vectors, (n_items, any width), of length 1; zeros where an item has no title."""
    window: int = 10
    """The most recent items that count."""
    decay: float = 0.8
    """Weight of an item relative to the one after it."""
    _centred: FloatArray = field(init=False)
    _covariance: DoubleArray = field(init=False)

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        if len(self.vectors) != train.n_items:
            raise DataError(
                f"{len(self.vectors)} title vectors for {train.n_items} items; give one an item, zeros where "
                "there is no title."
            )
        if self.window < 1 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"{self.name}: window must be at least 1 and decay above 0 and at most 1, "
                f"not {self.window} and {self.decay}."
            )
        centred = self.vectors - self.vectors.mean(axis=0, dtype=np.float64)
        self._covariance = centred.T @ centred / max(1, len(centred))
        self._centred = centred.astype(np.float32)

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        indptr, items = recent(histories, users, self.window)
        lengths = np.diff(indptr)
        age = np.repeat(indptr[1:], lengths) - 1 - np.arange(items.size)
        weights = sp.csr_array((self.decay**age, items, indptr), shape=(users.size, len(self.vectors)))
        queries = weights @ self.vectors
        # The deviation of q.v over the items, from the covariance C of the vectors v: sqrt(q C q).
        deviation = np.sqrt(np.maximum(((queries @ self._covariance) * queries).sum(axis=1), 0))
        flat = deviation <= FLAT * np.linalg.norm(queries, axis=1)
        queries *= np.divide(1, deviation, out=np.zeros_like(deviation), where=~flat)[:, None]
        scores: FloatArray = queries.astype(np.float32) @ self._centred.T
        return scores


def best_share(
    base: Callable[[IntArray], FloatArray],
    match: Callable[[IntArray], FloatArray],
    valid: Dataset,
    seen: Dataset,
    shares: Sequence[float],
) -> tuple[float, dict[float, float]]:
    """Return the share of `match` on top of `base` that is best on validation, and the NDCG@10 of each.

    Ties go to the smaller share; 0 is always among them. Memory is some blocks of `BLOCK` rows of scores.

    Args:
        base: Scores of all items for some users, in nats: (b,) -> (b, n_items).
        match: Standard scores, of the same shape.
        valid: Held-out interactions.
        seen: Histories, whose items do not compete.
        shares: What to try, 0 or above.
    """
    tried = sorted({0.0, *shares})
    if tried[0] < 0:
        raise ConfigError(f"shares must not be negative, but one is {tried[0]}.")
    users = np.flatnonzero((valid.lengths > 0) & (seen.lengths > 0)).astype(np.int32)
    sums, count = np.zeros(len(tried)), 0
    for start in range(0, users.size, BLOCK):
        block = users[start : start + BLOCK]
        one, other = base(block), match(block)
        for number, share in enumerate(tried):
            fused = one + np.float32(share) * other
            ranks = target_ranks(_of_rows(fused, block), block, valid, seen=seen)
            gains = evaluate_ranks("", ranks, ["ndcg@10"]).values["ndcg@10"]
            known = ~np.isnan(gains)
            sums[number] += gains[known].sum()
            count += int(known.sum()) if number == 0 else 0
    values = {share: float(total / max(1, count)) for share, total in zip(tried, sums, strict=True)}
    return max(tried, key=lambda share: (values[share], -share)), values


def _of_rows(scores: FloatArray, users: IntArray) -> Callable[[NDArray[Any]], FloatArray]:
    """Return a lookup of rows by user; users ascend."""
    return lambda wanted: scores[np.searchsorted(users, wanted)]
