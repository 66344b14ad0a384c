"""Checks on external ids: do the numbers of items or users give the held-out item away?

Several published data sets number items in order of first appearance over full sequences, test
items included. Then "largest id in the history + 1" is a recommender: it finds the last item of
4.4 % of the users of the Amazon Beauty files that P5 and POD were measured on, more than POD
itself (HR@1 2.4 %). Codes inside frugalrec are a random permutation, so its own models never see
this; a tokenizer that reads the ids does. Each rule is compared with itself after the items were
relabelled at random, which is its exact chance level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.audit.view import Finding, View, percent, share_of
from frugalrec.data.dataset import NUMBER, Dataset
from frugalrec.rng import generator
from frugalrec.types import BoolArray, LongArray

MAX_HIT_RATE = 0.005
"""A rule that knows only ids may find the last item of at most this share of the users."""
MAX_SORTED_SHARE = 0.05
"""At most this share of longer sequences may be sorted by item id."""
FRONTIER = 12
"""Window of the id-frontier rule, in ids above the largest one seen so far."""
LONG = 5
"""A sequence of this many distinct items is sorted by chance in 1 of 60 cases."""
RELABELLINGS = 5


def id_numbers(ids: NDArray[np.str_]) -> LongArray | None:
    """Return the rank of each id among the numbers, (n,), or None unless all ids are numbered.

    Ids are numbered when each is an integer, possibly after one common text prefix ("item_12").
    """
    parts = pl.Series(ids).str.extract_groups(r"^(.*?)([0-9]{1,18})$").struct.unnest()
    prefix, number = parts.to_series(0), parts.to_series(1)
    if ids.size == 0 or number.null_count() or prefix.n_unique() > 1:
        return None
    return np.unique(number.cast(pl.Int64).to_numpy(), return_inverse=True)[1].astype(np.int64)


def last_and_newest(data: Dataset, ranks: LongArray) -> tuple[LongArray, LongArray, LongArray]:
    """Return users with a history, the rank of their last item and the largest rank before it."""
    nonempty = np.flatnonzero(data.lengths > 0)
    if not nonempty.size:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    last = data.indptr[nonempty + 1] - 1
    of_items = ranks[data.items]
    before = of_items.copy()
    before[last] = -1
    newest = np.maximum.reduceat(before, data.indptr[nonempty])
    enough = data.lengths[nonempty] >= 2
    return nonempty[enough], of_items[last][enough], newest[enough]


def next_id_hits(data: Dataset, ranks: LongArray) -> BoolArray:
    """Whether the item numbered next after the largest in the history is the last one, per user."""
    _, last, newest = last_and_newest(data, ranks)
    hits: BoolArray = last == newest + 1
    return hits


def frontier_hits(data: Dataset, ranks: LongArray, user_ranks: LongArray) -> BoolArray:
    """Whether the last item is at most 12 ids above all that users numbered up to this one had."""
    users, last, newest = last_and_newest(data, ranks)
    order = np.argsort(user_ranks[users], kind="stable")
    ahead = last[order] - np.maximum.accumulate(newest[order])
    hits = np.zeros(users.size, dtype=np.bool_)
    hits[order] = (ahead >= 1) & (ahead <= FRONTIER)
    return hits


def popular_hits(data: Dataset, ranks: LongArray) -> BoolArray:
    """Whether the last item is among the 12 most popular of all histories, per user."""
    users, last, _ = last_and_newest(data, ranks)
    counts = np.bincount(ranks[data.items], minlength=data.n_items) - np.bincount(
        last, minlength=data.n_items
    )
    top = np.zeros(counts.size, dtype=np.bool_)
    top[np.argsort(-counts, kind="stable")[:FRONTIER]] = True
    return top[last]


def sorted_hits(data: Dataset, ranks: LongArray) -> BoolArray:
    """Whether a user's items only go up, or only down, per user with at least 5 distinct items."""
    nonempty = np.flatnonzero(data.lengths > 0)
    if not nonempty.size:
        return np.zeros(0, dtype=np.bool_)
    starts = data.indptr[nonempty]
    of_items = ranks[data.items]
    step = np.diff(of_items, prepend=of_items[:1])
    step[starts] = 0
    up = np.logical_and.reduceat(step >= 0, starts)
    down = np.logical_and.reduceat(step <= 0, starts)
    distinct = np.diff(data.matrix().indptr)[nonempty]
    return (up | down)[distinct >= LONG]


def chance(rule: Callable[[LongArray], BoolArray], n_items: int) -> float:
    """Return the mean number of hits of a rule after random relabellings of the items."""
    hits = [rule(generator(0, "audit", i).permutation(n_items)).sum() for i in range(RELABELLINGS)]
    return float(np.mean(hits))


def above(hits: int, expected: float) -> bool:
    """Whether a count is far above its chance level (four Poisson deviations)."""
    return hits > expected + 4 * math.sqrt(expected + 1)


def id_order(view: View) -> Finding | None:
    """Item ids, or the numbers published beside them, in order of first appearance, targets included."""
    numbered = [("item id", id_numbers(view.dataset.item_ids))]
    if NUMBER in view.dataset.item_text.columns:
        numbers = view.dataset.item_text[NUMBER].cast(pl.String).fill_null("")
        numbered.append(("published item number", id_numbers(numbers.to_numpy().astype(np.str_))))
    found = [_order(view, what, ranks) for what, ranks in numbered if ranks is not None]
    return next((finding for finding in found if finding is not None), None)


def _order(view: View, what: str, ranks: LongArray) -> Finding | None:
    data = view.dataset
    users, last, newest = last_and_newest(data, ranks)
    hits = next_id_hits(data, ranks)
    count, rate = int(hits.sum()), share_of(int(hits.sum()), hits.size)
    expected = chance(lambda labels: next_id_hits(data, labels[ranks]), data.n_items)
    by_rule = rate > MAX_HIT_RATE and above(count, expected)
    by_frontier, frontier = _frontier(data, ranks)
    if not (by_rule or by_frontier):
        return None
    return Finding(
        name="id-order",
        severity="error",
        count=count,
        share=rate,
        message=f'the rule "largest {what} in the history + 1" finds the last item of {count:,} of '
        f"{hits.size:,} users: HR@1 {rate:.4f}, against {share_of(1, hits.size) * expected:.4f} after random "
        f"relabelling.{frontier} Most likely items are numbered by first appearance, targets included.",
        examples=view.user_examples(users[hits]),
        remedy="Renumber the items at random before any prompt, tokenizer or model reads an id (codes inside "
        "frugalrec already are), and do not compare with results of models that read these ids.",
    )


def _frontier(data: Dataset, ranks: LongArray) -> tuple[bool, str]:
    """Whether user numbers leak too, and the sentence that says how much."""
    user_ranks = id_numbers(data.user_ids)
    if user_ranks is None:
        return False, ""
    hits = frontier_hits(data, ranks, user_ranks)
    count, rate = int(hits.sum()), share_of(int(hits.sum()), hits.size)
    popular = share_of(int(popular_hits(data, ranks).sum()), hits.size)
    expected = chance(lambda labels: frontier_hits(data, labels[ranks], user_ranks), data.n_items)
    leaks = rate > max(MAX_HIT_RATE, popular) and above(count, expected)
    text = (
        f" The id-frontier rule (the {FRONTIER} ids above the largest that users numbered up to this one "
        f"had) has HR@{FRONTIER} {rate:.4f}, popularity {popular:.4f}."
    )
    return leaks, text


def sorted_sequences(view: View) -> Finding | None:
    """Sequences sorted by item id: the order of events is not real."""
    data = view.dataset
    ranks = id_numbers(data.item_ids)
    by_text = np.unique(data.item_ids, return_inverse=True)[1].astype(np.int64)
    labels = by_text if ranks is None else ranks
    hits = sorted_hits(data, labels)
    count, share = int(hits.sum()), share_of(int(hits.sum()), hits.size)
    if share <= MAX_SORTED_SHARE:
        return None
    expected = chance(lambda relabel: sorted_hits(data, relabel[labels]), data.n_items)
    if not above(count, expected):
        return None
    distinct = np.diff(data.matrix().indptr)
    return Finding(
        name="sorted-sequences",
        severity="error",
        count=count,
        share=share,
        message=f"{count:,} of {hits.size:,} users with at least {LONG} items ({percent(share)}) have them "
        f"sorted by item id, against {percent(share_of(1, hits.size) * expected)} after random relabelling: "
        f"the order of the rows is not the order of events.",
        examples=view.user_examples(np.flatnonzero(distinct >= LONG)[hits]),
        remedy="Give a time column, or files whose rows are in the order of events.",
    )
