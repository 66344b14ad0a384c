"""Metrics of labelled rows (click or like, yes or no): AUC, user AUC and log loss.

An AUC needs both labels; where one is missing it is NaN, never 0 or 0.5. Ties count half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.types import DoubleArray, IntArray, LongArray

Weighting = Literal["rows", "users"]


@dataclass(frozen=True, kw_only=True)
class UserAuc:
    """AUC within each user."""

    users: IntArray
    """User codes, ascending, (n_users,)."""
    values: DoubleArray
    """AUC over the user's own rows, (n_users,); NaN where the user's labels are all alike."""
    rows: LongArray
    """Rows of the user, (n_users,)."""

    @property
    def n_undefined(self) -> int:
        """Users whose labels are all alike."""
        return int(np.isnan(self.values).sum())

    def mean(self, weighting: Weighting = "rows") -> float:
        """Return the mean over users for whom it is defined.

        Args:
            weighting: `rows` weighs a user by the number of rows (the usual "uAUC" or "GAUC"); `users`
                weighs all users alike.
        """
        if weighting not in ("rows", "users"):
            raise ConfigError(f"unknown weighting {weighting!r}; choose rows or users.")
        defined = np.isfinite(self.values)
        if not defined.any():
            return float("nan")
        weights = self.rows[defined] if weighting == "rows" else None
        return float(np.average(self.values[defined], weights=weights))


def auc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the share of (positive, negative) row pairs in the right order, ties as half.

    Args:
        scores: Scores, (n,), higher means more likely positive.
        labels: 1 or True for positive, 0 or False for negative, (n,).
    """
    return float(user_auc(scores, labels, np.zeros(np.size(scores), dtype=np.int32)).values.sum())


def user_auc(scores: NDArray[Any], labels: NDArray[Any], users: NDArray[Any]) -> UserAuc:
    """Return the AUC within each user.

    Args:
        scores: Scores, (n,); comparable within a user.
        labels: 1 or 0, (n,).
        users: User code of each row, (n,), in any order.
    """
    scores, positive = _checked(scores, labels)
    users = np.asarray(users)
    if users.shape != scores.shape:
        raise DataError(f"scores have shape {scores.shape} and users {users.shape}; give one user a row.")
    codes, group, sizes = np.unique(users, return_inverse=True, return_counts=True)
    order = np.lexsort((scores, group))
    group, values = group[order], scores[order]
    new = np.ones(values.size, dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (values[1:] != values[:-1])
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, values.size))
    run = np.cumsum(new) - 1
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    mid_ranks = (starts + (lengths + 1) / 2.0)[run] - first[group]  # 1 is the user's lowest score
    flags = positive[order].astype(np.float64)
    positives = np.bincount(group, weights=flags, minlength=codes.size)
    wins = np.bincount(group, weights=flags * mid_ranks, minlength=codes.size)
    above = wins.astype(np.float64) - positives * (positives + 1) / 2.0
    pairs = positives * (sizes - positives)
    result = np.divide(above, pairs, out=np.full(codes.size, np.nan), where=pairs > 0)
    return UserAuc(users=codes.astype(np.int32), values=result, rows=sizes.astype(np.int64))


def log_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean of -log(probability of the true label), in nats; NaN without rows.

    Probabilities are kept 1e-15 away from 0 and 1, so that one sure mistake does not make it infinite.
    """
    chances, positive = _checked(probabilities, labels)
    if chances.size and (chances.min() < 0 or chances.max() > 1):
        raise DataError(
            f"log_loss needs probabilities in 0..1; got {chances.min():g}..{chances.max():g}. "
            f"Turn scores into probabilities first."
        )
    if chances.size == 0:
        return float("nan")
    chances = np.clip(np.where(positive, chances, 1.0 - chances), 1e-15, 1.0)
    return float(-np.log(chances).mean())


def _checked(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[DoubleArray, NDArray[np.bool_]]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise DataError(f"scores {scores.shape} and labels {labels.shape} must both have shape (n,).")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; drop those rows.")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels must be 0 or 1; got {np.unique(labels)[:5].tolist()}. Binarise them first.")
    return scores, labels.astype(bool)
