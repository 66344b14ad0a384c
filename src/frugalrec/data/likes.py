"""Like-rates of titles, counted over yes/no rows: each rating once, however often windows repeat it.

Rows cut from one user's history overlap: the next row holds the same titles, less the oldest and with the
last target added. Counting every row would count a rating up to eleven times, in proportion to how many
windows it happens to fall into. A row that continues the one before it adds its own target alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from frugalrec.data.readers.tallrec import PointwiseRows
from frugalrec.errors import ConfigError
from frugalrec.types import BoolArray, DoubleArray, LongArray


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Who liked what, each rating once."""

    raters: LongArray
    """Number of the chain of rows that a rating comes from, (n,): about a user."""
    titles: tuple[str, ...]
    """What was rated, (n,)."""
    likes: BoolArray
    """Whether it was liked, (n,)."""

    def __len__(self) -> int:
        """Return the number of ratings."""
        return len(self.titles)


def ratings(rows: PointwiseRows) -> Ratings:
    """Return the ratings in histories and targets of some rows; rows keep the order of their file."""
    found = list(_ratings(rows))
    return Ratings(
        raters=np.array([rater for rater, _, _ in found], dtype=np.int64),
        titles=tuple(title for _, title, _ in found),
        likes=np.array([like for _, _, like in found], dtype=np.bool_),
    )


def chains(rows: PointwiseRows) -> LongArray:
    """Return the number of each row's chain, (n,), from 0: overlapping windows of one history.

    Args:
        rows: Rows in the order of their file; a chain ends where a row does not continue the one before.
    """
    starts = [row == 0 or not _continues(rows, row) for row in range(len(rows))]
    numbers: LongArray = np.cumsum(starts, dtype=np.int64) - 1
    return numbers


def item_like_rate(train: PointwiseRows, rows: PointwiseRows, *, pseudo_count: float = 5.0) -> DoubleArray:
    """Return how often each row's target was liked in `train`, (n,), between 0 and 1.

    Args:
        train: Rows whose histories and labels are counted.
        rows: The rows to score; their labels are not looked at.
        pseudo_count: Ratings at the overall rate that are added to each title's, so that one or two
            say little. A title without ratings has the overall rate.

    Raises:
        ConfigError: If `pseudo_count` is not above 0.
    """
    if not pseudo_count > 0:
        raise ConfigError(f"pseudo_count must be above 0, not {pseudo_count}.")
    likes, counts = item_counts(train, rows)
    known = ratings(train).likes
    overall = float(known.mean()) if known.size else 0.5
    rate: DoubleArray = (likes + pseudo_count * overall) / (counts + pseudo_count)
    return rate


def item_counts(train: PointwiseRows, rows: PointwiseRows) -> tuple[LongArray, LongArray]:
    """Return (likes, ratings) of each row's target in `train`, each (n,)."""
    known = ratings(train)
    liked: dict[str, int] = {}
    rated: dict[str, int] = {}
    for title, like in zip(known.titles, known.likes.tolist(), strict=True):
        liked[title] = liked.get(title, 0) + like
        rated[title] = rated.get(title, 0) + 1
    likes = np.array([liked.get(title, 0) for title in rows.targets], dtype=np.int64)
    return likes, np.array([rated.get(title, 0) for title in rows.targets], dtype=np.int64)


def _ratings(rows: PointwiseRows) -> Iterator[tuple[int, str, bool]]:
    before = -1
    for row, rater in enumerate(chains(rows).tolist()):
        if rater != before:
            yield from ((rater, title, True) for title in rows.liked[row])
            yield from ((rater, title, False) for title in rows.disliked[row])
        yield rater, rows.targets[row], bool(rows.labels[row])
        before = rater


def _continues(rows: PointwiseRows, row: int) -> bool:
    """Say whether a row's history is that of the row before, its target added, at most one title less."""
    target, like = (rows.targets[row - 1],), bool(rows.labels[row - 1])
    liked = rows.liked[row - 1] + (target if like else ())
    disliked = rows.disliked[row - 1] + (() if like else target)
    now = rows.liked[row], rows.disliked[row]
    return now in ((liked, disliked), (liked[1:], disliked), (liked, disliked[1:]))
