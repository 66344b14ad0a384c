"""The promotion cap: no item of a re-ranked list stands far above its place in the cheap list.

Whoever writes a title can try to talk a language model into ranking it first. With a cap of P places, the
most that such a title, or any error of the model, can win is P places.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.types import PAD, LongArray, Ranking


def capped_order(order: NDArray[Any], cap: int) -> LongArray:
    """Return the order nearest to the wanted one in which no candidate rises more than `cap` places.

    Places are given from the first: each to the candidate wanted most among those whose cheap place is at
    most `cap` below it.

    >>> capped_order(np.array([3, 2, 0, 1]), 1).tolist()
    [0, 2, 3, 1]

    Args:
        order: Candidates as numbers of their cheap places, from 0, in the wanted order, (m,).
        cap: The most places that a candidate may rise; 0 gives the cheap order.
    """
    if cap < 0:
        raise ConfigError(f"the promotion cap must be at least 0 places, not {cap}.")
    m = len(order)
    rank = np.argsort(order, kind="stable").tolist()
    allowed: list[tuple[int, int]] = []
    found, entered = np.empty(m, dtype=np.int64), 0
    for place in range(m):
        while entered < m and entered - cap <= place:
            heapq.heappush(allowed, (rank[entered], entered))
            entered += 1
        found[place] = heapq.heappop(allowed)[1]
    return found


def cap_promotions(cheap: Ranking, reranked: Ranking, cap: int) -> Ranking:
    """Return re-ranked lists in which no item stands more than `cap` places above its cheap place.

    Use it behind `fusion.fuse`: a mixture of two orders can lift an item further than either does.

    Args:
        cheap: The cheap model's lists.
        reranked: The same items for the same users in another order.
        cap: The most places that an item may rise.

    Raises:
        DataError: If users or items differ.
    """
    same = np.array_equal(cheap.users, reranked.users) and cheap.items.shape == reranked.items.shape
    if not same or not np.array_equal(np.sort(cheap.items, axis=1), np.sort(reranked.items, axis=1)):
        raise DataError("a promotion cap needs the cheap lists of the same users, with the same items.")
    items = reranked.items.copy()
    for row in np.flatnonzero((cheap.items != reranked.items).any(axis=1)):
        known = cheap.items[row] != PAD
        listed = cheap.items[row, known]
        by_code = np.argsort(listed, kind="stable")
        wanted = by_code[np.searchsorted(listed[by_code], reranked.items[row, known])]
        items[row, known] = listed[capped_order(wanted, cap)]
    return Ranking(users=cheap.users, items=items, scores=reranked.scores)
