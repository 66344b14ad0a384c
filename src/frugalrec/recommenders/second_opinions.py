"""Cheap lists in another order, or from another cheap model: the rivals of every LLM arm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.types import PAD, LongArray, Ranking


def hits(ranking: Ranking, targets: Dataset) -> LongArray:
    """Return 1 where a candidate is among the user's targets, else 0, (n_users, m)."""
    n_items = np.int64(targets.n_items)
    pairs = ranking.users.astype(np.int64)[:, None] * n_items + ranking.items
    held = np.isin(pairs, targets.rows.astype(np.int64) * n_items + targets.items)
    found: LongArray = (held & (ranking.items != PAD)).astype(np.int64)
    return found


def reordered(ranking: Ranking, scores: NDArray[Any]) -> Ranking:
    """Return lists in the order of other scores, (n_users, up to k); ties and unknown ones as they were.

    Scores stay with the places, as a list's scores must not rise.
    """
    if scores.shape[0] != ranking.users.size or not 1 <= scores.shape[1] <= ranking.k:
        raise DataError(
            f"scores of shape {scores.shape} do not fit {ranking.users.size} lists of {ranking.k}."
        )
    m = scores.shape[1]
    head = ranking.items[:, :m]
    keys = np.where(np.isfinite(scores), -scores.astype(np.float64), np.inf)
    order = np.lexsort((keys, head == PAD), axis=1)
    items = np.concatenate([np.take_along_axis(head, order, axis=1), ranking.items[:, m:]], axis=1)
    return Ranking(users=ranking.users, items=items, scores=ranking.scores)


def second_opinion(first: Ranking, second: Ranking, routed: NDArray[np.bool_]) -> Ranking:
    """Return the first model's lists, but the second's for routed users: what another cheap model is worth.

    Args:
        first: Lists of the model that serves everybody.
        second: Lists of another cheap model, of the same length, for the same users in the same order.
        routed: True for users who get the second list, (n_users,).
    """
    if not np.array_equal(first.users, second.users) or first.items.shape != second.items.shape:
        raise DataError("both models need lists of one length for the same users, in the same order.")
    if routed.shape != first.users.shape:
        raise DataError(f"routed has shape {routed.shape}; give one value a user, {first.users.shape}.")
    chosen = routed.astype(bool)[:, None]
    return Ranking(
        users=first.users,
        items=np.where(chosen, second.items, first.items),
        scores=np.where(chosen, second.scores, first.scores),
    )
