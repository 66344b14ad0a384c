"""Models that only count: first-order Markov chain, and like-rates."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.base import Recommender, last_items
from frugalrec.types import PAD, DoubleArray, FloatArray, IntArray


class Markov(Recommender):
    """How often each item directly followed the user's last item in the training data.

    Items that never followed it come after all that did, in order of popularity; popularity also
    orders items with the same count.
    """

    name: ClassVar[str] = "markov"
    transitions_: sp.csr_array[Any, tuple[int, int]]
    """Times that the column's item directly followed the row's, (n_items, n_items) float32."""
    popularity_: FloatArray
    """Training counts over one more than their maximum, (n_items,): below one transition."""

    def __init__(self, *, fallback: bool = True) -> None:
        """Store the options.

        Args:
            fallback: Add popularity behind the transition counts. Without it every item that never
                followed scores 0, and equal counts are ties.
        """
        self.fallback = fallback

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        follows = train.rows[1:] == train.rows[:-1]
        before, after = train.items[:-1][follows], train.items[1:][follows]
        pairs = sp.coo_array(
            (np.ones(before.size, dtype=np.float32), (before, after)), shape=(train.n_items, train.n_items)
        )
        self.transitions_ = pairs.tocsr()  # adds up repeated pairs
        counts = train.item_counts
        self.popularity_ = (counts / (counts.max() + 1)).astype(np.float32)

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        last = last_items(histories, users)
        scores = np.zeros((users.size, histories.n_items), dtype=np.float32)
        known = last != PAD
        scores[known] = self.transitions_[last[known]].toarray()
        return scores + self.popularity_ if self.fallback else scores

    def _state(self) -> dict[str, NDArray[Any]]:
        matrix = self.transitions_
        return {
            "indptr": matrix.indptr,
            "indices": matrix.indices,
            "counts": matrix.data,
            "popularity": self.popularity_,
        }

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        n_items = state["popularity"].size
        self.transitions_ = sp.csr_array(
            (state["counts"], state["indices"], state["indptr"]), shape=(n_items, n_items)
        )
        self.popularity_ = state["popularity"]


class LikeRate(Recommender):
    """The user's share of liked items plus the item's share of likes: the pointwise control.

    Counting the likes in the prompt's own history gives a pooled AUC above published fine-tuned
    language models on yes/no data. Inside a user's list only the item's share makes a difference.
    """

    name: ClassVar[str] = "like-rate"
    rates_: DoubleArray
    """The items' smoothed like-rates, (n_items,)."""

    def __init__(self, *, threshold: float = 4.0, prior: float = 5.0) -> None:
        """Store the options.

        Args:
            threshold: The lowest value that counts as a like.
            prior: Pseudo-interactions with the average like-rate, added to each item.
        """
        self.threshold = threshold
        self.prior = prior

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        self.rates_ = item_like_rate(train, self.threshold, self.prior)

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        rates = history_like_rate(histories, users, self.threshold)
        return (rates[:, None] + self.rates_[None, :]).astype(np.float32)

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"rates": self.rates_}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.rates_ = state["rates"]


def history_like_rate(histories: Dataset, users: NDArray[Any], threshold: float = 4.0) -> DoubleArray:
    """Return each user's share of history items with a value of at least `threshold`, (len(users),).

    A user without history gets the share over all of `histories`.

    Raises:
        DataError: If the data carry no values.
    """
    liked = _liked(histories, threshold)
    # Running sums give every user's likes at once, whatever the users' lengths.
    total = np.concatenate([[0], np.cumsum(liked)])
    codes = np.asarray(users, dtype=np.int64)
    likes = total[histories.indptr[codes + 1]] - total[histories.indptr[codes]]
    average = float(liked.mean()) if liked.size else 0.5
    lengths = histories.lengths[codes]
    rates: DoubleArray = np.where(lengths > 0, likes / np.maximum(lengths, 1), average)
    return rates


def item_like_rate(train: Dataset, threshold: float = 4.0, prior: float = 5.0) -> DoubleArray:
    """Return each item's share of values of at least `threshold`, smoothed, (n_items,).

    ``(likes + prior * average) / (n + prior)``: an item without interactions gets the average.

    Raises:
        DataError: If the data carry no values.
        ConfigError: If `prior` is not above 0.
    """
    if prior <= 0:
        raise ConfigError(
            f"prior must be above 0, not {prior}; an item without values has no rate of its own."
        )
    liked = _liked(train, threshold)
    likes = np.bincount(train.items, weights=liked, minlength=train.n_items)
    rates: DoubleArray = (likes + prior * liked.mean()) / (train.item_counts + prior)
    return rates


def _liked(dataset: Dataset, threshold: float) -> NDArray[np.bool_]:
    if dataset.values is None:
        raise DataError(
            f"like-rate: {dataset.name} has no values (ratings), so nothing says what a user liked. "
            f"Map a value column, or leave this control out."
        )
    liked: NDArray[np.bool_] = dataset.values >= threshold
    return liked
