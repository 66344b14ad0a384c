"""Controls that know nothing of a user's taste: random, popularity, recent popularity, the id rule."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import VALID
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.base import Recommender
from frugalrec.rng import derive_seed
from frugalrec.types import BoolArray, FloatArray, IntArray, LongArray

DAY = 86_400


class Random(Recommender):
    """Uniform scores that depend on nothing but the seed, the user and the item."""

    name: ClassVar[str] = "random"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        """Learn nothing."""

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        key = np.uint64(derive_seed(self.seed, "random"))
        rows = _mix(users.astype(np.uint64) + key)[:, None]
        columns = np.arange(histories.n_items, dtype=np.uint64)[None, :]
        # The upper 24 bits fill a float32's mantissa exactly, so no two bit patterns are merged.
        bits = _mix(rows + columns) >> np.uint64(40)
        return bits.astype(np.float32) * np.float32(2.0**-24)

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"seed": np.array(self.seed)}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.seed = int(state["seed"])


class Popularity(Recommender):
    """The number of interactions of each item in the training data, alike for everybody."""

    name: ClassVar[str] = "popularity"
    counts_: LongArray
    """Interactions per item, (n_items,)."""

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        self.counts_ = train.item_counts

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        return np.tile(self.counts_.astype(np.float32), (users.size, 1))

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"counts": self.counts_}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.counts_ = state["counts"]


class RecentPopularity(Popularity):
    """The number of interactions of each item in the latest part of the training data.

    On data cut by global time this simple control beats published LLM recommenders (DEALRec's
    Games data: Recall@10 0.0223 against 0.0181).
    """

    name: ClassVar[str] = "recent-popularity"

    def __init__(
        self, *, share: float = 0.1, days: float | None = None, fold: Literal["valid"] | None = None
    ) -> None:
        """Store the options; `fold` goes before `days`, and `days` before `share`.

        Args:
            share: The latest share of the training interactions, by time (interactions at the same
                instant stay together). Where only the order is known there is no common clock: the
                latest share of each user's interactions is taken, rounded up, at least one a user.
            days: The interactions of so many days up to the last training instant; needs times.
            fold: `valid` counts those training interactions that the publisher put into the
                validation fold. For a model that is fitted on train and validation together before
                the test; held-out interactions passed as `valid` to `fit` are never counted.
        """
        self.share = share
        self.days = days
        self.fold = fold

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        recent = self._window(train)
        self.counts_ = np.bincount(train.items[recent], minlength=train.n_items).astype(np.int64)

    def _window(self, train: Dataset) -> BoolArray:
        """Return which interactions are recent, (n,)."""
        if self.fold is not None:
            return self._in_fold(train)
        if self.days is not None:
            if self.days <= 0:
                raise ConfigError(f"{self.name}: days must be above 0, not {self.days}.")
            if train.times is None:
                raise DataError(
                    f"{self.name}: days={self.days} needs timestamps, and {train.name} has none; use share."
                )
            latest: BoolArray = train.times > train.times.max() - self.days * DAY
            return latest
        if not 0 < self.share <= 1:
            raise ConfigError(f"{self.name}: share must lie above 0 and at most at 1, not {self.share}.")
        if train.times is not None:
            first = min(int(train.n * (1 - self.share)), train.n - 1)
            last_part: BoolArray = train.times >= np.partition(train.times, first)[first]
            return last_part
        # The small slack keeps 0.1 * 10 and its like from rounding up to one more.
        keep = np.ceil(self.share * train.lengths - 1e-9)
        from_end = np.repeat(train.indptr[1:], train.lengths) - np.arange(train.n)  # 1 = last
        recent: BoolArray = from_end <= np.repeat(keep, train.lengths)
        return recent

    def _in_fold(self, train: Dataset) -> BoolArray:
        if self.fold != "valid":
            raise ConfigError(f"{self.name}: fold must be 'valid' or None, not {self.fold!r}.")
        inside = np.zeros(train.n, dtype=bool) if train.folds is None else train.folds == VALID
        if not inside.any():
            raise DataError(
                f"{self.name}: fold='valid' counts training interactions of the publisher's validation "
                f"fold, and {train.name} has none. Fit on train and validation together, or use share."
            )
        return inside


class MaxId(Recommender):
    """The leak detector: recommend the ids that follow the largest id of the user's history.

    In data whose items are numbered by first appearance over whole histories this rule finds the
    test item (HR@1 0.0441 on the published Amazon Beauty files, above fine-tuned language models).
    It reads the *external* ids, so it still shows the leak although our codes are random. An item
    whose id is j above the largest scores 1/j, every other item 0.
    """

    name: ClassVar[str] = "max-id"
    numbers_: LongArray
    """The external item ids as integers, (n_items,)."""

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        self.numbers_ = _integers(train.item_ids, train.name)

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        order = np.argsort(self.numbers_, kind="stable")
        ascending = self.numbers_[order]
        scores = np.zeros((users.size, histories.n_items), dtype=np.float32)
        for row, user in enumerate(users):
            history = histories.history(int(user))
            if history.size:
                largest = self.numbers_[history].max()
                first = int(np.searchsorted(ascending, largest, side="right"))
                scores[row, order[first:]] = 1.0 / (ascending[first:] - largest)
        return scores

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"numbers": self.numbers_}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.numbers_ = state["numbers"]


def _integers(ids: NDArray[np.str_], name: str) -> LongArray:
    for item in ids.tolist():
        # Longer numbers are keys such as EAN codes or hashes, not a count of items.
        if not (item.isascii() and item.isdigit() and len(item) <= 15):
            raise DataError(
                f"max-id: item id {item!r} of {name} is not a whole number, so there is no next id to "
                f"recommend. This control is only for data with numbered items; leave it out here."
            )
    return ids.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the SplitMix64 hash of each value (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
