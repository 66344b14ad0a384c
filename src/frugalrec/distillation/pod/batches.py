"""Batches of one task each, of rows about as long as each other, within a budget of tokens.

Mixed batches pad short prompts of one task to the long ones of another: with POD's three tasks, more than
half of the tokens would be padding. Tasks take turns as evenly as their numbers of batches allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.rng import generator

POOL = 32
"""Batches whose rows are sorted by length together: it saves nearly all padding, and keeps order random."""


def bucketed(
    lengths: NDArray[Any], *, max_tokens: int, max_rows: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Cut rows into batches in random order; each row is in one batch.

    Args:
        lengths: Tokens of each row, (n,).
        max_tokens: Rows times the longest row of a batch; a longer row makes a batch of its own.
        max_rows: Rows of a batch.
        rng: Draws the order.
    """
    order = rng.permutation(lengths.size)
    pool = POOL * max_rows
    cut: list[NDArray[np.int64]] = []
    for start in range(0, order.size, pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        at = 0
        while at < rows.size:
            fits = max(1, min(max_rows, max_tokens // max(1, int(lengths[rows[at]]))))
            cut.append(rows[at : at + fits])
            at += fits
    return [cut[number] for number in rng.permutation(len(cut))]


def alternated(counts: Mapping[str, int]) -> list[str]:
    """Return whose turn it is: every task's batches as evenly spread over an epoch as they get.

    >>> "".join(task[0] for task in alternated({"sequential": 4, "top-n": 2}))
    'stssts'
    """
    places = [
        ((turn + 0.5) / n, rank, task) for rank, (task, n) in enumerate(counts.items()) for turn in range(n)
    ]
    return [task for _, _, task in sorted(places)]


def epoch_batches(
    lengths: Mapping[str, NDArray[Any]], *, max_tokens: int, max_rows: int, seed: int, epoch: int
) -> list[tuple[str, NDArray[np.int64]]]:
    """Return the batches of an epoch in order: the task of each, and its rows.

    Args:
        lengths: Tokens of each task's rows.
        max_tokens: See `bucketed`.
        max_rows: See `bucketed`.
        seed: Seed of the order.
        epoch: Number of the epoch.
    """
    cut = {
        task: bucketed(
            np.asarray(rows),
            max_tokens=max_tokens,
            max_rows=max_rows,
            rng=generator(seed, "pod", "batches", task, epoch),
        )
        for task, rows in lengths.items()
    }
    turns = alternated({task: len(found) for task, found in cut.items()})
    queues = {task: iter(found) for task, found in cut.items()}
    return [(task, next(queues[task])) for task in turns]


def weighted_rows(n: int, weight: float, *, seed: int, task: str, epoch: int) -> NDArray[np.int64]:
    """Return which of n rows an epoch takes at a weight: all of them, a random share, or several passes.

    Returns:
        Rows, each ``weight`` times in the mean; numbers above n - 1 mean row ``number % n`` of another pass.
    """
    whole, share = int(weight), weight - int(weight)
    more = generator(seed, "pod", "share", task, epoch).permutation(n)[: round(share * n)]
    return np.concatenate([np.arange(whole * n), whole * n + np.sort(more)]).astype(np.int64)
