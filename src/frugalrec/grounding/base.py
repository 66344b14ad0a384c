"""The grounder seam: from what a language model says of users to a ranking of real catalogue items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import Usage
from frugalrec.recommenders.base import Seen
from frugalrec.types import PAD, IntArray, Ranking

Progress = Callable[[int, int], None]
"""Called with (users done, users in all)."""
ItemValues = NDArray[Any] | Callable[[IntArray], NDArray[Any]]
"""A number for each item: (n_items,) for all users alike, or a function of users, (b,) -> (b, n_items)."""


class Grounder(ABC):
    """Turns what a language model says of users into lists of catalogue items.

    An author writes `_ground`. The constructor only stores its options.
    """

    name: ClassVar[str]

    @abstractmethod
    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        """Return lists of k catalogue items, none twice, padded with -1, and what they cost."""

    def ground(
        self,
        histories: Dataset,
        users: NDArray[Any],
        k: int = 20,
        *,
        seen: Seen = "exclude",
        progress: Progress | None = None,
    ) -> tuple[Ranking, Usage]:
        """Return each user's best k items, and what was spent.

        Args:
            histories: What is known of the users; the prompt takes the last items.
            users: User codes.
            k: List length; shorter lists are padded with -1.
            seen: `exclude` leaves out the items that `histories` already holds for the user.
            progress: Is told of the users.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}.")
        if seen not in ("exclude", "include"):
            raise ConfigError(f"seen must be exclude or include, not {seen!r}.")
        codes = checked_users(users, histories)
        return self._ground(histories, codes, k, seen, progress or (lambda done, n: None))


def filled(ranking: Ranking, other: Ranking) -> Ranking:
    """Fill the empty places of lists with another way's items, in their order, none twice.

    Args:
        ranking: Lists, padded with -1 where they were too short.
        other: Lists for the same users.

    Returns:
        Lists of the length of `ranking`; its own scores, and below them 1 less a place.
    """
    if not np.array_equal(ranking.users, other.users):
        raise DataError("lists can only be filled from lists for the same users in the same order.")
    items, scores = ranking.items.copy(), ranking.scores.copy()
    for row in np.flatnonzero((items == PAD).any(axis=1)):
        own = items[row][items[row] != PAD]
        more = other.items[row][(other.items[row] != PAD) & ~np.isin(other.items[row], own)]
        places = slice(own.size, min(own.size + more.size, ranking.k))
        n = places.stop - places.start
        items[row, places] = more[:n]
        scores[row, places] = (scores[row, own.size - 1] if own.size else 0.0) - np.arange(1, n + 1)
    return Ranking(users=ranking.users, items=items, scores=scores)


def item_values(name: str, values: ItemValues, users: IntArray, n_items: int) -> NDArray[Any]:
    """Return the number of each item for some users: (n_items,), or (n_users, n_items) from a function.

    An array a user is refused: which users are asked for at once is the grounder's affair, so its rows
    would meet the wrong ones.

    Raises:
        DataError: If the shape is another.
    """
    if callable(values):
        found, shape = np.asarray(values(users)), [users.size, n_items]
        remedy = f"its function was asked for {users.size} users and must return one row for each"
    else:
        found, shape = np.asarray(values), [n_items]
        remedy = f"where users differ, give a function of user codes, (b,) -> (b, {n_items})"
    if found.shape != tuple(shape):
        raise DataError(f"the {name} must be {tuple(shape)}, not {found.shape}; {remedy}.")
    return found


def checked_users(users: NDArray[Any], histories: Dataset) -> IntArray:
    """Return user codes as int32.

    Raises:
        DataError: If one is none of the data set's.
    """
    codes = np.asarray(users, dtype=np.int32)
    if codes.size and (codes.min() < 0 or codes.max() >= histories.n_users):
        raise DataError(
            f"user codes must lie in 0..{histories.n_users - 1}; got {int(codes.min())}..{int(codes.max())}."
        )
    return codes
