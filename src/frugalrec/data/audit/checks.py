"""Checks on interactions: copies, repeats, times that cannot be right, a skewed catalogue."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.audit.view import LARGE_SHARE, Finding, View, percent, share_of
from frugalrec.data.dataset import Dataset
from frugalrec.types import BoolArray

YEAR_2100 = 4_102_444_800
"""Unix seconds; a later "time" is nearly always milliseconds."""


def duplicate_interactions(view: View) -> Finding | None:
    """The same user, item and (where known) time, more than once."""
    data = view.dataset
    repeated = _repeats(data, with_time=True)
    if not repeated.any():
        return None
    count, share = int(repeated.sum()), share_of(int(repeated.sum()), data.n)
    known = "user and item" if data.times is None else "user, item and time"
    return Finding(
        name="duplicate-interactions",
        severity="warning",
        count=count,
        share=share,
        message=f"{count:,} of {data.n:,} interactions ({percent(share)}) repeat one of the same {known}.",
        examples=view.item_examples(data.items[repeated]),
        remedy="Drop the copies, unless a repeat is an event of its own.",
    )


def repeated_interactions(view: View) -> Finding | None:
    """The same user and item again at another time: re-consumption."""
    data = view.dataset
    if data.times is None:
        return None
    count = int(_repeats(data, with_time=False).sum() - _repeats(data, with_time=True).sum())
    if not count:
        return None
    share = share_of(count, data.n)
    return Finding(
        name="repeated-interactions",
        severity="info",
        count=count,
        share=share,
        message=f"{count:,} of {data.n:,} interactions ({percent(share)}) are a return to a known item.",
        remedy="Rank with seen items kept in the candidates where people do come back.",
    )


def popularity_skew(view: View) -> Finding | None:
    """Most interactions on a tenth of the catalogue."""
    counts = np.sort(view.dataset.item_counts)[::-1]
    top = max(1, counts.size // 10)
    share = share_of(int(counts[:top].sum()), view.dataset.n)
    if share < 0.5 or counts.size < 10:
        return None
    return Finding(
        name="popularity-skew",
        severity="info",
        count=int(counts[:top].sum()),
        share=share,
        message=f"the top {top:,} of {counts.size:,} items hold {percent(share)} of all interactions.",
        examples=view.item_examples(np.flatnonzero(view.dataset.item_counts == counts[0])),
        remedy="Popularity will be a strong control; always show it.",
    )


def implausible_times(view: View) -> Finding | None:
    """Times before 1970 or after 2100: usually milliseconds read as seconds."""
    times = view.dataset.times
    if times is None:
        return None
    odd = (times < 0) | (times >= YEAR_2100)
    if not odd.any():
        return None
    return Finding(
        name="implausible-times",
        severity="warning",
        count=int(odd.sum()),
        share=share_of(int(odd.sum()), times.size),
        message=f"{int(odd.sum()):,} times lie before 1970 or after 2100 when read as Unix seconds.",
        examples=tuple(str(t) for t in np.unique(times[odd])[:3].tolist()),
        remedy="Divide milliseconds by 1,000 before reading.",
    )


def tied_times(view: View) -> Finding | None:
    """Neighbouring interactions of a user at the same instant: their order is that of the file."""
    data = view.dataset
    if data.times is None or data.n < 2:
        return None
    neighbours = data.rows[1:] == data.rows[:-1]
    tied = neighbours & (data.times[1:] == data.times[:-1])
    count, share = int(tied.sum()), share_of(int(tied.sum()), int(neighbours.sum()))
    if share <= LARGE_SHARE:
        return None
    return Finding(
        name="tied-times",
        severity="warning",
        count=count,
        share=share,
        message=f"{count:,} of {int(neighbours.sum()):,} steps from one interaction of a user to the next "
        f"({percent(share)}) take no time: the order inside a tie is the order of the rows.",
        examples=view.user_examples(data.rows[1:][tied]),
        remedy="Do not read much into sequence models here; finer timestamps would help.",
    )


def _repeats(data: Dataset, *, with_time: bool) -> BoolArray:
    """Mark interactions equal to an earlier one in user, item and, if asked, time, (n,)."""
    keys: list[NDArray[Any]] = [data.items, data.rows]
    if with_time and data.times is not None:
        keys.insert(0, data.times)
    order = np.lexsort(keys)
    same = np.ones(max(data.n - 1, 0), dtype=np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeated = np.zeros(data.n, dtype=np.bool_)
    repeated[order[1:][same]] = True
    return repeated
