"""The kernels under ranks.py: distinct pairs, checked blocks, counting, and best items.

NumPy works a few rows at a time here: few enough to stay in a core's cache while every held-out item
is compared with them, and enough that threads seldom meet at the interpreter's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.types import PAD, BoolArray, IntArray, LongArray

CACHE_BYTES = 2 << 20
"""Scores and flags worked on at a time; a usual second-level cache."""
TOGETHER = 8
"""The most items of one user that are compared in one call."""


@dataclass(frozen=True)
class Pairs:
    """Distinct (row, item) pairs in CSR form, items ascending inside a row."""

    indptr: LongArray
    items: IntArray
    n_items: int

    @property
    def sizes(self) -> LongArray:
        """Return the number of items of each row."""
        return np.diff(self.indptr)

    @property
    def rows(self) -> LongArray:
        """Return the row of each pair."""
        return np.repeat(np.arange(self.indptr.size - 1), self.sizes)

    @property
    def keys(self) -> LongArray:
        """Return ``row * n_items + item`` of each pair, ascending."""
        return self.rows * self.n_items + self.items

    def positions(self, rows: LongArray) -> LongArray:
        """Return where the pairs of the given rows stand, row after row."""
        return spans(self.indptr[rows], self.sizes[rows])

    def take(self, rows: LongArray) -> Pairs:
        """Return the given rows, in the given order."""
        indptr = np.concatenate([[0], np.cumsum(self.sizes[rows])])
        return Pairs(indptr, self.items[self.positions(rows)], self.n_items)


def from_keys(keys: LongArray, n_rows: int, n_items: int) -> Pairs:
    """Return the pairs of sorted, distinct ``row * n_items + item`` keys."""
    rows, items = np.divmod(keys, n_items)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    return Pairs(indptr.astype(np.int64), items.astype(np.int32), n_items)


def distinct(keys: LongArray) -> LongArray:
    """Return the distinct keys, ascending: np.unique, which hashes integers, takes ten times as long."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if keys.size else keys


def among(keys: LongArray, known: LongArray) -> BoolArray:
    """Return which keys are among the known ones, which ascend."""
    if not known.size:
        return np.zeros(keys.size, dtype=bool)
    found: BoolArray = known[np.minimum(np.searchsorted(known, keys), known.size - 1)] == keys
    return found


def spans(starts: LongArray, lengths: LongArray) -> LongArray:
    """Return ``starts[0], starts[0] + 1, ...`` for each (start, length), one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def gather(dataset: Dataset, users: IntArray) -> LongArray:
    """Return the keys of the users' interactions, repeats included; rows are positions in `users`."""
    lengths = dataset.lengths[users]
    rows = np.repeat(np.arange(users.size, dtype=np.int64), lengths)
    return rows * dataset.n_items + dataset.items[spans(dataset.indptr[users], lengths)]


def pairs_of(dataset: Dataset | None, users: IntArray, n_items: int) -> Pairs:
    """Return the distinct (row, item) pairs of the users; none without a data set."""
    if dataset is None:
        return from_keys(np.zeros(0, dtype=np.int64), users.size, n_items)
    if dataset.n_items != n_items or (users.size and users.max() >= dataset.n_users):
        raise DataError(
            f"seen and targets use different vocabularies ({dataset.n_users} users x {dataset.n_items} "
            f"items against {n_items} items); take both from one split."
        )
    return from_keys(distinct(gather(dataset, users)), users.size, n_items)


def checked_block(block: NDArray[Any], users: IntArray, n_items: int) -> NDArray[Any]:
    """Return a block of scores as floats, or say what is wrong with its shape or values."""
    block = np.asarray(block)
    if block.shape != (users.size, n_items):
        raise DataError(f"scores have shape {block.shape}; expected ({users.size}, {n_items}).")
    if not np.issubdtype(block.dtype, np.floating):
        block = block.astype(np.float64)
    return block


def count(
    block: NDArray[Any], wanted: Pairs, known: Pairs, *, finite: bool = False
) -> tuple[LongArray, BoolArray]:
    """Count the rivals of each wanted pair among the items that are not known.

    Args:
        block: Scores, (rows, n_items).
        wanted: Pairs to count for; rows in order of falling number of pairs.
        known: Pairs that are no candidates.
        finite: Whether the scores are known to hold no NaN, which saves looking for it.

    Returns:
        (better, tied) of each pair, (2, pairs), and which rows hold NaN, (rows,).
    """
    n_rows, sizes = block.shape[0], wanted.sizes
    taken = np.arange(sizes[0])[None, :] < sizes[:, None]
    pivots = np.full(taken.shape, np.nan, dtype=block.dtype)  # nothing is above NaN, or equal to it
    pivots[taken] = block[wanted.rows, wanted.items]
    counts = np.zeros((2, *taken.shape), dtype=np.int64)
    broken = np.zeros(n_rows, dtype=bool)
    flags = _flags(block)
    start = 0
    while start < n_rows:
        widest = int(sizes[start])
        stop = start + _step(block, min(widest, TOGETHER))
        scores = block[start:stop]
        if not finite:
            broken[start:stop] = np.isnan(scores.max(axis=1))  # max() hands NaN on
        for first in range(0, widest, TOGETHER):
            last = min(first + TOGETHER, widest)
            counts[:, start:stop, first:last] = _rivals(scores, pivots[start:stop, first:last], flags)
        start = stop
    # Counting known items and taking them off is cheaper than masking, and the block stays as it is.
    rows = known.rows
    scores = block[rows, known.items]
    for j in range(taken.shape[1]):
        for kind, compare in enumerate((np.greater, np.equal)):
            counts[kind, :, j] -= np.bincount(rows[compare(scores, pivots[rows, j])], minlength=n_rows)
    counts[1] -= 1  # an item is no rival of itself
    return counts[:, taken], broken


def _flags(block: NDArray[Any]) -> BoolArray:
    """Return room for one flag per score and pivot of a few rows, the width a multiple of 2040 = 8 * 255."""
    pairs = max(_step(block, together) * together for together in range(1, TOGETHER + 1))
    return np.zeros((pairs, -(-block.shape[1] // 2040) * 2040), dtype=bool)


def _rivals(scores: NDArray[Any], pivots: NDArray[Any], flags: BoolArray) -> LongArray:
    """Return how many scores of a row are above and equal to each of its pivots, (2, rows, pivots).

    Eight flags are added at a time, as the bytes of one word: 255 words cannot overflow a byte. This
    is several times faster than summing booleans. The flags past the last item stay False.
    """
    flags = flags[: pivots.size].reshape(*pivots.shape, -1)
    counts = np.empty((2, *pivots.shape), dtype=np.int64)
    for kind, compare in enumerate((np.greater, np.equal)):
        compare(scores[:, None, :], pivots[:, :, None], out=flags[:, :, : scores.shape[1]])
        words = flags.view(np.uint64).reshape(*pivots.shape, -1, 255)
        counts[kind] = words.sum(axis=-1).view(np.uint8).sum(axis=-1, dtype=np.int64)
    return counts


def best(block: NDArray[Any], known: Pairs, k: int) -> IntArray:
    """Return each row's k best items that are not known, (rows, k), padded with -1.

    Ties stand in order of item code; an item scored -inf is never listed.
    """
    lists = np.full((block.shape[0], k), PAD, dtype=np.int32)
    step = _step(block, 1)
    for start in range(0, block.shape[0], step):
        scores = block[start : start + step].copy()
        part = known.take(np.arange(start, start + scores.shape[0]))
        scores[part.rows, part.items] = -np.inf
        bound = _lower_bounds(scores, k)[:, None]
        rows, items = np.divmod(np.flatnonzero(scores >= bound), known.n_items)
        values = scores[rows, items]
        order = np.lexsort((-values, rows))  # stable: ties stay in order of item code
        order = order[values[order] > -np.inf]
        rows, items = rows[order], items[order]
        place = np.arange(rows.size) - np.searchsorted(rows, rows)
        listed = place < k
        lists[start + rows[listed], place[listed]] = items[listed]
    return lists


def _lower_bounds(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """Return, per row, a value that at least k scores reach: cheap, and close to the k-th largest.

    It is the k-th largest of the maxima of `width` groups of 16 scores each.
    """
    n_rows, n_items = scores.shape
    width = n_items // 16
    if width < k:
        return np.partition(scores, n_items - k, axis=1)[:, n_items - k]
    maxima = scores[:, : 16 * width].reshape(n_rows, 16, width).max(axis=1)
    return np.partition(maxima, width - k, axis=1)[:, width - k]


def _step(block: NDArray[Any], pivots: int) -> int:
    """Return how many rows fit in the cache with one flag per score and pivot."""
    row_bytes = int(block.shape[1]) * (int(block.itemsize) + pivots)
    return max(1, CACHE_BYTES // max(1, row_bytes))
