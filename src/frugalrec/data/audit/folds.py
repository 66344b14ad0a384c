"""Checks on folds: what leaks into training, and who cannot be evaluated.

Each check is one function from a `View` to a `Finding`, or to None where it has nothing to say. The
table of all checks is `frugalrec.data.audit.CHECKS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from frugalrec.data.audit.view import FOLDS, LARGE_SHARE, Finding, View, percent, share_of
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import TEST, VALID, Fold
from frugalrec.types import BoolArray, IntArray, LongArray

FEW_USERS = 100
"""Fewer test users than this give intervals too wide to tell two models apart."""


def future_training(view: View) -> Finding | None:
    """Held-out interactions older than a training interaction of the same user."""
    late, total, users = 0, 0, []
    for known_rows, known_clock, held_rows, held_clock in _clocks(view):
        newest = np.full(view.dataset.n_users, np.iinfo(np.int64).min)
        np.maximum.at(newest, known_rows, known_clock)
        older = held_clock < newest[held_rows]
        late, total = late + int(older.sum()), total + older.size
        users.append(held_rows[older])
    if not late:
        return None
    who = np.unique(np.concatenate(users))
    share = share_of(late, total)
    return Finding(
        name="future-training",
        severity="error",
        count=late,
        share=share,
        message=f"{late:,} of {total:,} held-out interactions ({percent(share)}), of {who.size:,} users, are "
        f"older than an interaction of the same user that is known to the model.",
        examples=view.user_examples(who),
        remedy="Cut by time: --split time, or --split leave-last-out.",
    )


def not_global_time(view: View) -> Finding | None:
    """Held-out interactions older than the newest training interaction of anybody."""
    late, total = 0, 0
    for _, known_clock, _, held_clock in _clocks(view, positions=False):
        if known_clock.size and held_clock.size:
            late, total = late + int((held_clock < known_clock.max()).sum()), total + held_clock.size
    if not late:
        return None
    share = share_of(late, total)
    return Finding(
        name="not-global-time",
        severity="warning",
        count=late,
        share=share,
        message=f"{late:,} of {total:,} held-out interactions ({percent(share)}) are older than the newest "
        f"training interaction: the training data hold other users' future, as in any leave-last-out split.",
        remedy="Use --split time for numbers that should hold in production.",
    )


def repeated_targets(view: View) -> Finding | None:
    """Held-out pairs of user and item that are also known to the model."""
    count, total, items = 0, 0, []
    for known, held in view.folds.values():
        seen = np.isin(_pairs(held), _pairs(known))
        count, total = count + int(seen.sum()), total + held.n
        items.append(held.items[seen])
    if not count:
        return None
    share = share_of(count, total)
    return Finding(
        name="repeated-targets",
        severity="warning",
        count=count,
        share=share,
        message=f"{count:,} of {total:,} held-out interactions ({percent(share)}) are of an item that the "
        f"same user already has in the training data.",
        examples=view.item_examples(np.concatenate(items)),
        remedy="Drop them to measure discovery; where re-consumption counts, keep seen items in the ranking.",
    )


def cold_items(view: View) -> Finding | None:
    """Held-out interactions with an item that never occurs in the training fold."""
    if view.split is None:
        return None
    warm = view.split.train.item_counts > 0
    colds = {fold: ~warm[held.items] for fold, (_, held) in view.folds.items()}
    return _per_fold(
        name="cold-items",
        masks=colds,
        what="held-out interactions with items that never occur in training",
        examples=view.item_examples(view.split.test.items[colds["test"]]),
        remedy="An id-based model cannot rank them; report cold and warm items apart.",
    )


def cold_users(view: View) -> Finding | None:
    """Held-out users of whom nothing is known before."""
    if view.split is None:
        return None
    users = {fold: np.flatnonzero(held.lengths > 0) for fold, (_, held) in view.folds.items()}
    colds = {fold: known.lengths[users[fold]] == 0 for fold, (known, _) in view.folds.items()}
    return _per_fold(
        name="cold-users",
        masks=colds,
        what="held-out users without an earlier interaction",
        examples=view.user_examples(users["test"][colds["test"]]),
        remedy="They are left out of the evaluation, for want of a history; say so beside the numbers.",
    )


def single_event_users(view: View) -> Finding | None:
    """Users with one interaction in all: the target itself where the fold is held out."""
    lengths = view.dataset.lengths
    active = lengths > 0
    single = lengths == 1
    if view.split is not None:
        held = (view.split.valid.lengths > 0) | (view.split.test.lengths > 0)
        single, active = single & held, held
    count, share = int(single.sum()), share_of(int(single.sum()), int(active.sum()))
    if not count:
        return None
    where = "held-out users have" if view.split is not None else "users have"
    return Finding(
        name="single-event-users",
        severity="warning" if share > LARGE_SHARE else "info",
        count=count,
        share=share,
        message=f"{count:,} of {int(active.sum()):,} {where} a single interaction in all ({percent(share)}).",
        examples=view.user_examples(np.flatnonzero(single)),
        remedy="They can be neither trained on nor evaluated; count them apart.",
    )


def tiny_fold(view: View) -> Finding | None:
    """Too few users in a held-out fold for intervals that tell models apart."""
    if view.split is None:
        return None
    sizes = {
        fold: int(((known.lengths > 0) & (held.lengths > 0)).sum())
        for fold, (known, held) in view.folds.items()
    }
    small = {fold: size for fold, size in sizes.items() if size < FEW_USERS}
    if not small:
        return None
    return Finding(
        name="tiny-fold",
        severity="warning",
        count=min(small.values()),
        share=None,
        message=" and ".join(
            f"the {fold} fold has {size:,} users with a history" for fold, size in small.items()
        )
        + f", fewer than {FEW_USERS}: intervals will be wide.",
        remedy="Hold out a larger share, or read differences as undecided.",
    )


def _clocks(
    view: View, *, positions: bool = True
) -> Iterator[tuple[IntArray, LongArray, IntArray, LongArray]]:
    """Yield, per held-out fold, users and clock of the known and of the held-out interactions.

    The clock is the time, or where there is none the position in a publisher's order of rows.
    """
    data = view.dataset
    if view.split is None:
        return
    if data.times is not None:
        for known, held in view.folds.values():
            if known.times is not None and held.times is not None:
                yield known.rows, known.times, held.rows, held.times
    elif positions and view.split.method == "given" and data.folds is not None:
        clock = np.arange(data.n, dtype=np.int64)
        for fold in (VALID, TEST):
            known_mask, held_mask = data.folds < fold, data.folds == fold
            yield data.rows[known_mask], clock[known_mask], data.rows[held_mask], clock[held_mask]


def _pairs(data: Dataset) -> LongArray:
    return data.rows.astype(np.int64) * data.n_items + data.items


def _per_fold(
    *, name: str, masks: Mapping[Fold, BoolArray], what: str, examples: tuple[str, ...], remedy: str
) -> Finding | None:
    if not any(mask.any() for mask in masks.values()):
        return None
    counts = {fold: int(mask.sum()) for fold, mask in masks.items()}
    shares = {fold: share_of(counts[fold], mask.size) for fold, mask in masks.items()}
    parts = [
        f"{fold} {counts[fold]:,} of {masks[fold].size:,} ({percent(shares[fold])})"
        for fold in reversed(FOLDS)
    ]
    return Finding(
        name=name,
        severity="warning" if max(shares.values()) > LARGE_SHARE else "info",
        count=counts["test"],
        share=shares["test"],
        message=f"{what}: {', '.join(parts)}.",
        examples=examples,
        remedy=remedy,
    )
