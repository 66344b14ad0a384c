"""The recommender seam: the public methods check and map, the private ones see integers only."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, NotFittedError, StorageError
from frugalrec.types import PAD, BoolArray, FloatArray, IntArray, Ranking

Seen = Literal["exclude", "include"]


class Recommender(ABC):
    """A model that scores every catalogue item for a user.

    An author writes `_fit` and `_score`, and `_state` / `_restore` if the model can be saved. The
    constructor only stores its (keyword-only) options, under the same attribute names.
    """

    name: ClassVar[str]
    """The name in the table of `frugalrec.recommenders`."""
    fitted_on: Dataset | None = None
    """The train data set; the vocabularies of every later call must be the same."""

    @abstractmethod
    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        """Learn from `train`; `valid` holds held-out interactions for early stopping."""

    @abstractmethod
    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        """Return scores, (len(users), n_items) float32, given what `histories` says of the users."""

    def fit(self, train: Dataset, valid: Dataset | None = None) -> Self:
        """Fit on `train`. A second call starts afresh.

        Args:
            train: Interactions to learn from.
            valid: Held-out interactions over the same vocabularies, for models that stop early.
        """
        if train.n == 0:
            raise DataError(f"{self.name}: the training data are empty; nothing can be learned.")
        if valid is not None:
            self._same_vocabularies(valid, train, "valid")
        self.fitted_on = train
        try:
            self._fit(train, valid)
        except BaseException:
            self.fitted_on = None  # a fit that failed must not leave an older one behind, half replaced
            raise
        return self

    def score(self, users: NDArray[Any], histories: Dataset | None = None) -> FloatArray:
        """Return the scores of all items, (len(users), n_items) float32.

        Args:
            users: User codes.
            histories: What is known of the users now; default: the training data. Sequence and
                neighbourhood models read the user's items from it, so a user without training
                interactions is served as long as `histories` knows something.
        """
        histories = self._checked(histories)
        codes = np.asarray(users, dtype=np.int32)
        if codes.size and (codes.min() < 0 or codes.max() >= histories.n_users):
            raise DataError(
                f"{self.name}: user codes must lie in 0..{histories.n_users - 1}; "
                f"got {int(codes.min())}..{int(codes.max())}."
            )
        scores = self._score(codes, histories)
        return np.ascontiguousarray(scores, dtype=np.float32)

    def recommend(
        self,
        users: NDArray[Any],
        k: int = 10,
        *,
        seen: Seen = "exclude",
        histories: Dataset | None = None,
        batch_size: int = 256,
    ) -> Ranking:
        """Return each user's best k items, ties in order of item code.

        Args:
            users: User codes.
            k: List length; lists shorter than k are padded with -1.
            seen: `exclude` leaves out the items that `histories` already holds for the user.
            histories: As in `score`.
            batch_size: Users scored at once; the result does not depend on it.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}.")
        histories = self._checked(histories)
        codes = np.asarray(users, dtype=np.int32)
        items = np.full((codes.size, k), PAD, dtype=np.int32)
        scores = np.full((codes.size, k), -np.inf, dtype=np.float32)
        known = histories.matrix() if seen == "exclude" else None
        for start in range(0, codes.size, batch_size):
            batch = codes[start : start + batch_size]
            block = self.score(batch, histories)
            allowed = np.ones(block.shape, dtype=bool)
            if known is not None:
                part = known[batch]
                allowed[np.repeat(np.arange(batch.size), np.diff(part.indptr)), part.indices] = False
            top, values = top_k(block, k, allowed)
            items[start : start + batch.size, : top.shape[1]] = top
            scores[start : start + batch.size, : top.shape[1]] = values
        return Ranking(users=codes, items=items, scores=scores)

    def save(self, folder: Path) -> None:
        """Write the fitted model to `folder` (npz or safetensors, never pickle)."""
        self._checked(None)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "model.npz", **self._state())  # type: ignore[arg-type]

    def load(self, folder: Path, train: Dataset) -> Self:
        """Restore what `save` wrote, for the same training data; options come from the constructor."""
        path = folder / "model.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                state = {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"{self.name}: {path} cannot be read ({error}); fit and save it again."
            ) from None
        self._restore(state)
        self.fitted_on = train
        return self

    def _state(self) -> dict[str, NDArray[Any]]:
        """Return everything `_score` needs, as arrays."""
        raise NotImplementedError(f"{self.name} cannot be saved yet")

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take back what `_state` returned."""
        raise NotImplementedError(f"{self.name} cannot be loaded yet")

    def _checked(self, histories: Dataset | None) -> Dataset:
        if self.fitted_on is None:
            raise NotFittedError(f"{self.name} is not fitted; call fit(train) first.")
        if histories is None:
            return self.fitted_on
        self._same_vocabularies(histories, self.fitted_on, "histories")
        return histories

    def _same_vocabularies(self, other: Dataset, train: Dataset, role: str) -> None:
        for kind, theirs, ours in (
            ("item", other.item_ids, train.item_ids),
            ("user", other.user_ids, train.user_ids),
        ):
            if theirs is not ours and not np.array_equal(theirs, ours):
                raise DataError(
                    f"{self.name}: {role} use another {kind} vocabulary than the training data. "
                    f"Cut both out of one Dataset (with split or where), so that codes mean the same."
                )


def history_matrix(histories: Dataset, users: NDArray[Any]) -> sp.csr_array[Any, tuple[int, int]]:
    """Return the binary rows of some users, (len(users), n_items) float32; repeats count once."""
    codes = np.asarray(users, dtype=np.int64)
    lengths = histories.lengths[codes]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.repeat(histories.indptr[codes] - indptr[:-1], lengths) + np.arange(indptr[-1])
    ones = np.ones(positions.size, dtype=np.float32)
    shape = (codes.size, histories.n_items)
    matrix = sp.csr_array((ones, histories.items[positions], indptr), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def last_items(histories: Dataset, users: NDArray[Any]) -> IntArray:
    """Return the latest item of some users, (len(users),); -1 for a user without history."""
    codes = np.asarray(users, dtype=np.int64)
    last = np.full(codes.size, PAD, dtype=np.int32)
    known = histories.lengths[codes] > 0
    last[known] = histories.items[histories.indptr[codes[known] + 1] - 1]
    return last


def top_k(scores: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[IntArray, FloatArray]:
    """Return (items, scores) of the k largest scores of each row, best first.

    Ties are broken by item code (codes are a random permutation, so this favours nobody). Items that
    are not `allowed` come out as -1 with score -inf.
    """
    masked = scores if allowed is None else np.where(allowed, scores, np.float32(-np.inf))
    k = min(k, masked.shape[1])
    # Partition on (score, then code): the k-th score may be tied, so take all above it and fill up
    # with the lowest codes among the tied.
    kth = np.partition(masked, masked.shape[1] - k, axis=1)[:, masked.shape[1] - k, None]
    above = masked > kth
    tied = masked == kth
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    items = np.nonzero(chosen)[1].reshape(masked.shape[0], k)
    values = np.take_along_axis(masked, items, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    items = np.take_along_axis(items, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    items[np.isneginf(values)] = PAD
    return items.astype(np.int32, copy=False), values.astype(np.float32, copy=False)
