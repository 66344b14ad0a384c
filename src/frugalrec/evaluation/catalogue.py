"""What the lists do to the catalogue: coverage, novelty and concentration of what is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError
from frugalrec.types import PAD, DoubleArray, IntArray, LongArray


def shown_counts(lists: IntArray, n_items: int) -> LongArray:
    """Return how many lists show each item, (n_items,); `lists` is (n_users, k), padded with -1."""
    shown = lists[lists != PAD]
    if shown.size and (shown.min() < 0 or shown.max() >= n_items):
        raise DataError(f"listed items must lie in 0..{n_items - 1}; got {shown.min()}..{shown.max()}.")
    return np.bincount(shown, minlength=n_items).astype(np.int64)


def coverage(lists: IntArray, n_items: int) -> float:
    """Return the share of the catalogue that is on at least one list; NaN without lists."""
    counts = shown_counts(lists, n_items)
    return float((counts > 0).mean()) if counts.sum() else float("nan")


def gini(lists: IntArray, n_items: int) -> float:
    """Return how unevenly the catalogue is shown: 0 all items alike, towards 1 a single one.

    Items never shown count. With counts c ascending, G = sum((2 i - n - 1) c_i) / (n sum(c)).
    """
    counts = np.sort(shown_counts(lists, n_items))
    if counts.sum() == 0:
        return float("nan")
    weights = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    return float((weights * counts).sum() / (n_items * counts.sum()))


def novelty(lists: IntArray, takers: NDArray[Any], n_users: int) -> DoubleArray:
    """Return the mean self-information of each list in bits, (n_lists,); NaN for an empty list.

    An item known to a share p of users carries -log2(p) bits; an item that nobody took counts as
    taken once, so that it is finite. Source: Zhou et al. 2010 (PNAS 107).

    Args:
        lists: Item codes, (n_lists, k), padded with -1.
        takers: Distinct users who took each item before, (n_items,).
        n_users: Users that the shares refer to.
    """
    bits = -np.log2(np.maximum(takers, 1) / max(n_users, 1))
    listed = lists != PAD
    total = np.where(listed, bits[lists], 0.0).sum(axis=1)
    sizes = listed.sum(axis=1)
    result = np.full(sizes.size, np.nan)
    np.divide(total, sizes, out=result, where=sizes > 0)
    return result
