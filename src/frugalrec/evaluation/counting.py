"""The kernels under ranks.py: distinct pairs, checked blocks, counting, and best items of one user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.types import DoubleArray, IntArray, LongArray


@dataclass(frozen=True)
class Pairs:
    """Distinct (row, item) pairs, sorted, in CSR form."""

    keys: LongArray  # row * n_items + item
    indptr: LongArray
    items: IntArray
    n_items: int

    def of(self, row: int) -> IntArray:
        """Return the items of one row."""
        return self.items[self.indptr[row] : self.indptr[row + 1]]


def from_keys(keys: LongArray, n_rows: int, n_items: int) -> Pairs:
    """Return the pairs of sorted, distinct ``row * n_items + item`` keys."""
    rows, items = np.divmod(keys, n_items)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))]).astype(np.int64)
    return Pairs(keys, indptr, items.astype(np.int32), n_items)


def gather(dataset: Dataset, users: IntArray) -> LongArray:
    """Return the keys of the users' interactions, repeats included; rows are positions in `users`."""
    lengths = dataset.lengths[users]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    positions = np.repeat(dataset.indptr[users] - (ends - lengths), lengths) + np.arange(total)
    rows = np.repeat(np.arange(users.size, dtype=np.int64), lengths)
    return rows * dataset.n_items + dataset.items[positions]


def pairs_of(dataset: Dataset | None, users: IntArray, n_items: int) -> Pairs:
    """Return the distinct (row, item) pairs of the users; none without a data set."""
    if dataset is None:
        return from_keys(np.zeros(0, dtype=np.int64), users.size, n_items)
    if dataset.n_items != n_items or (users.size and users.max() >= dataset.n_users):
        raise DataError(
            f"seen and targets use different vocabularies ({dataset.n_users} users x {dataset.n_items} "
            f"items against {n_items} items); take both from one split."
        )
    return from_keys(np.unique(gather(dataset, users)), users.size, n_items)


def checked_block(block: NDArray[Any], users: IntArray, n_items: int) -> NDArray[Any]:
    """Return a block of scores as floats, or say what is wrong with its shape or values."""
    block = np.asarray(block)
    if block.shape != (users.size, n_items):
        raise DataError(f"scores have shape {block.shape}; expected ({users.size}, {n_items}).")
    if not np.issubdtype(block.dtype, np.floating):
        block = block.astype(np.float64)
    bad = np.isnan(block.max(axis=1))  # max() hands NaN on, and costs less than isnan of every score
    if bad.any():
        raise DataError(
            f"the scores of user {int(users[bad][0])} hold NaN, which has no rank "
            f"({int(bad.sum())} of {users.size} users in this batch). Mend the model, or give such "
            f"items -inf."
        )
    return block


def count(scores: NDArray[Any], targets: IntArray, seen: IntArray) -> DoubleArray:
    """Return (better, tied), (2, len(targets)), among the items that are not `seen`."""
    values = scores[targets]
    counts = np.empty((2, targets.size))
    flags = np.empty(scores.size, dtype=bool)
    for i, value in enumerate(values):
        counts[0, i] = np.count_nonzero(np.greater(scores, value, out=flags))
        counts[1, i] = np.count_nonzero(np.equal(scores, value, out=flags)) - 1
    if seen.size and targets.size:
        known = np.sort(scores[seen])
        left, right = np.searchsorted(known, values, "left"), np.searchsorted(known, values, "right")
        counts[0] -= known.size - right
        counts[1] -= right - left
    return counts


def best(scores: NDArray[Any], seen: IntArray, k: int) -> IntArray:
    """Return the k best items that are not `seen`, ties in order of item code; -inf is never listed."""
    allowed = scores.copy()
    allowed[seen] = -np.inf
    bound = _lower_bound(allowed, k)
    chosen = np.flatnonzero(allowed >= bound if bound > -np.inf else allowed > -np.inf)
    order = np.argsort(-allowed[chosen], kind="stable")[:k]
    return chosen[order].astype(np.int32)


def _lower_bound(scores: NDArray[Any], k: int) -> float:
    """Return a value that at least k scores reach: the k-th largest of the maxima of 16 strided parts."""
    width = scores.size // 16
    if width < k:
        return float(np.partition(scores, scores.size - k)[scores.size - k])
    maxima = scores[: 16 * width].reshape(16, width).max(axis=0)
    return float(np.partition(maxima, width - k)[width - k])
