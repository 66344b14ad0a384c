"""What POD trains on: for each epoch, task and user a sample drawn from training interactions alone.

A draw is a function of (seed, task, epoch, user): neither batches nor the other tasks change it. Held-out
items are nowhere in it: not as targets, not in histories, and, other than in the published samples, they
are not kept out of the negatives either, which would tell them apart from all other items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.distillation.pod.templates import EXPLANATION, SEQUENTIAL, TOP_N, draw_templates
from frugalrec.errors import ConfigError, DataError
from frugalrec.rng import generator
from frugalrec.types import IntArray, LongArray

if TYPE_CHECKING:
    from frugalrec.data.readers.p5 import Explanations
    from frugalrec.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The samples of one task in one pass; row by row."""

    task: str
    users: IntArray
    """User of each sample, (n,)."""
    templates: LongArray
    """Template of each sample, (n,)."""
    indptr: LongArray
    """Row pointers into `items`, (n + 1,)."""
    items: IntArray
    """What each prompt shows: a history, oldest first; candidates; or the explained item."""
    targets: IntArray
    """The item to be written; of an explanation, the number of its text; (n,)."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.users.size)

    def shown(self, row: int) -> IntArray:
        """Return the items that a sample's prompt shows."""
        return self.items[self.indptr[row] : self.indptr[row + 1]]

    def take(self, rows: NDArray[Any]) -> Draw:
        """Return some samples, in the given order."""
        indptr, items = _gathered(self.items, self.indptr[rows], self.indptr[np.asarray(rows) + 1])
        return replace(
            self,
            users=self.users[rows],
            templates=self.templates[rows],
            indptr=indptr,
            items=items,
            targets=self.targets[rows],
        )


def sequential_draw(train: Dataset, *, window: int, seed: int, epoch: int, worded: bool = False) -> Draw:
    """Return one random segment of each user's sequence, its last item to be predicted.

    The segment begins at U[0, n - 2] and ends at U[start + 1, n - 1] of a user's n training items; of a
    longer history than `window` the last items are shown. Users with fewer than two items have none.
    `worded` leaves the bare template out.
    """
    rng = generator(seed, "pod", SEQUENTIAL, epoch)
    first, last = rng.random(train.n_users), rng.random(train.n_users)
    templates = draw_templates(SEQUENTIAL, train.n_users, seed, epoch, worded=worded)
    n = train.lengths
    start = np.minimum((first * (n - 1)).astype(np.int64), np.maximum(n - 2, 0))
    end = start + 1 + np.minimum((last * (n - 1 - start)).astype(np.int64), np.maximum(n - 2 - start, 0))
    users = np.flatnonzero(n >= 2).astype(np.int32)
    start, end, base = start[users], end[users], train.indptr[users]
    indptr, items = _gathered(train.items, base + np.maximum(start, end - window), base + end)
    return Draw(
        task=SEQUENTIAL,
        users=users,
        templates=templates[users],
        indptr=indptr,
        items=items,
        targets=train.items[base + end],
    )


def top_n_draw(
    train: Dataset,
    *,
    negatives: int,
    seed: int,
    epoch: int,
    met: Dataset | None = None,
    worded: bool = False,
) -> Draw:
    """Return one training item of each user among `negatives` items not met, all in random order.

    Args:
        train: What positive items are drawn from.
        negatives: Other items shown.
        seed: Seed.
        epoch: Number of the pass.
        met: What no negative is drawn from, by user; default: `train`.
        worded: Leave the bare template out.

    Raises:
        ConfigError: If a user has fewer items not met.
    """
    rng = generator(seed, "pod", TOP_N, epoch)
    chosen = np.minimum((rng.random(train.n_users) * train.lengths).astype(np.int64), train.lengths - 1)
    places = rng.random((train.n_users, negatives + 1), dtype=np.float32).argsort(axis=1, kind="stable")
    templates = draw_templates(TOP_N, train.n_users, seed, epoch, worded=worded)
    users = np.flatnonzero(train.lengths > 0).astype(np.int32)
    targets = train.items[train.indptr[users] + chosen[users]]
    stream = ("pod", TOP_N, "negatives", epoch)
    unmet = unmet_items(train if met is None else met, negatives, seed=seed, stream=stream)[users]
    rows = np.concatenate([targets[:, None], unmet], axis=1)
    rows = np.take_along_axis(rows, places[users], axis=1)
    return Draw(
        task=TOP_N,
        users=users,
        templates=templates[users],
        indptr=np.arange(users.size + 1, dtype=np.int64) * (negatives + 1),
        items=rows.ravel().astype(np.int32),
        targets=targets,
    )


def unmet_items(known: Dataset, n: int, *, seed: int, stream: Sequence[str | int]) -> IntArray:
    """Return n different items for each user that are not among the user's known ones, (n_users, n).

    Args:
        known: What the users have met.
        n: Items a user.
        seed: Seed.
        stream: Name of the stream.

    Raises:
        ConfigError: If a user has met so many items that fewer are left.
    """
    pairs = np.unique(known.rows.astype(np.int64) * known.n_items + known.items)
    met = np.bincount(pairs // known.n_items, minlength=known.n_users).max(initial=0)
    if n > known.n_items - met:
        raise ConfigError(
            f"{n} negatives were asked for, but of {known.n_items} items a user has met {met}; ask for at "
            f"most {known.n_items - met}."
        )
    rng = generator(seed, *stream)
    found = rng.integers(0, known.n_items, (known.n_users, n), dtype=np.int32)
    wrong = np.arange(known.n_users)
    while wrong.size:
        rows = found[wrong]
        order = rows.argsort(axis=1, kind="stable")
        ranked = np.take_along_axis(rows, order, axis=1)
        twice = np.zeros_like(rows, dtype=bool)
        np.put_along_axis(twice[:, :], order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
        keys = wrong[:, None] * np.int64(known.n_items) + rows
        place = np.searchsorted(pairs, keys).clip(max=max(pairs.size - 1, 0))
        bad = twice | (pairs[place] == keys) if pairs.size else twice
        # Drawn for all users in every round, so that a user's items do not depend on those of others.
        fresh = rng.integers(0, known.n_items, found.shape, dtype=np.int32)
        found[wrong] = np.where(bad, fresh[wrong], rows)
        wrong = wrong[bad.any(axis=1)]
    return found


def explanation_draw(explanations: Explanations, *, seed: int, epoch: int, worded: bool = False) -> Draw:
    """Return every explanation once; targets are the numbers of the texts; `worded`: no bare template."""
    n = len(explanations)
    return Draw(
        task=EXPLANATION,
        users=explanations.users,
        templates=draw_templates(EXPLANATION, n, seed, epoch, worded=worded),
        indptr=np.arange(n + 1, dtype=np.int64),
        items=explanations.items,
        targets=np.arange(n, dtype=np.int32),
    )


def train_explanations(explanations: Explanations, split: Split) -> Explanations:
    """Return the explanations of pairs that the split does not hold out; the sentences tell of them.

    Raises:
        DataError: If none is left.
    """
    held = [part.rows.astype(np.int64) * part.n_items + part.items for part in (split.valid, split.test)]
    pairs = explanations.users.astype(np.int64) * split.train.n_items + explanations.items
    kept = np.flatnonzero(~np.isin(pairs, np.concatenate(held)))
    if not kept.size:
        raise DataError(
            f"none of {len(explanations)} explanations is of a training pair; leave the task out."
        )
    return replace(
        explanations,
        users=explanations.users[kept],
        items=explanations.items[kept],
        texts=tuple(explanations.texts[row] for row in kept),
        features=tuple(explanations.features[row] for row in kept),
        dropped=explanations.dropped + len(explanations) - kept.size,
    )


def next_items(
    history: Dataset, targets: Dataset, users: NDArray[Any], *, window: int, template: int
) -> Draw:
    """Return each user's last known items, and the first held-out one as the target: validation rows.

    Args:
        history: What is known of the users.
        targets: What is held out.
        users: User codes, each with at least one item in both.
        window: Items shown.
        template: Number of the template.
    """
    users = np.asarray(users, dtype=np.int32)
    stop = history.indptr[users + 1]
    indptr, items = _gathered(history.items, np.maximum(history.indptr[users], stop - window), stop)
    return Draw(
        task=SEQUENTIAL,
        users=users,
        templates=np.full(users.size, template, dtype=np.int64),
        indptr=indptr,
        items=items,
        targets=targets.items[targets.indptr[users]],
    )


def _gathered(flat: IntArray, start: LongArray, stop: LongArray) -> tuple[LongArray, IntArray]:
    """Return the spans of a flat array as rows: row pointers, and values."""
    sizes = stop - start
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], sizes)
    return indptr, flat[at]
