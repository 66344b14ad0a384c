"""Metrics of labelled rows (click or like, yes or no): AUC, user AUC and log loss.

An AUC needs both labels; where one is missing it is NaN, never 0 or 0.5. Ties count half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.compare import Interval
from frugalrec.rng import generator
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


def auc_interval(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any] | None = None,
    *,
    minus: NDArray[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a pooled AUC with its bootstrap interval over users, or that of a difference of two AUCs.

    All rows of a user are drawn together: rows of one user are alike, and drawing them one by one
    would make the interval too narrow.

    Args:
        scores: Scores, (n,); or (n_runs, n), whose AUCs are averaged (several seeds of one arm).
        labels: 1 or 0, (n,).
        users: User of each row, (n,); default: every row is a user of its own.
        minus: Scores of another arm, in either form, paired with the first on the same draws.
        level: Coverage of the interval.
        resamples: Bootstrap resamples; those that hold one label only are left out.
        seed: Seed.
    """
    if np.size(labels) == 0:
        raise DataError("an interval of an AUC needs rows; there are none.")
    runs, others = np.atleast_2d(scores), None if minus is None else np.atleast_2d(minus)
    drawn = _drawn(np.asarray(labels), users, resamples, seed)
    mean, values = _mean_aucs(runs, labels, drawn)
    if others is not None:
        other, other_values = _mean_aucs(others, labels, drawn)
        mean, values = mean - other, values - other_values
    known = values[np.isfinite(values)]
    bounds = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if known.size else (np.nan, np.nan)
    n = int(np.size(labels) if users is None else np.unique(users).size)
    return Interval(mean=mean, low=float(bounds[0]), high=float(bounds[1]), level=level, n=n)


def user_auc_interval(
    scores: NDArray[Any],
    labels: NDArray[Any],
    users: NDArray[Any],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean AUC within users, weighted by their rows, with its bootstrap interval over users.

    Args:
        scores: Scores, (n,); or (n_runs, n), whose AUCs are averaged a user.
        labels: 1 or 0, (n,).
        users: User of each row, (n,). Users whose labels are all alike are left out.
        level: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: Seed.
    """
    runs = [user_auc(run, labels, users) for run in np.atleast_2d(scores)]
    values, rows = np.mean([run.values for run in runs], axis=0), runs[0].rows.astype(np.float64)
    known = np.isfinite(values)
    values, rows = values[known], rows[known]
    if not values.size:
        return Interval(mean=np.nan, low=np.nan, high=np.nan, level=level, n=0)
    rng = generator(seed, "evaluation", "user_auc_interval")
    drawn = rng.multinomial(values.size, np.full(values.size, 1 / values.size), size=resamples) * rows
    means = drawn @ values / drawn.sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.average(values, weights=rows))
    return Interval(mean=mean, low=float(low), high=float(high), level=level, n=values.size)


def _drawn(labels: NDArray[Any], users: NDArray[Any] | None, resamples: int, seed: int) -> DoubleArray:
    """Return how often each row is drawn, (resamples, n)."""
    if users is not None and np.shape(users) != labels.shape:
        raise DataError(f"{labels.size} labels need as many users, not {np.size(users)}.")
    codes = np.arange(labels.size) if users is None else np.unique(users, return_inverse=True)[1]
    n_users = int(codes.max(initial=-1)) + 1
    rng = generator(seed, "evaluation", "auc_interval")
    counts = rng.multinomial(n_users, np.full(n_users, 1 / max(n_users, 1)), size=resamples)
    drawn: DoubleArray = counts[:, codes].astype(np.float64)
    return drawn


def _mean_aucs(runs: NDArray[Any], labels: NDArray[Any], drawn: DoubleArray) -> tuple[float, DoubleArray]:
    """Return the mean AUC over runs, and that of each draw, (resamples,)."""
    weighted = np.mean([_weighted_aucs(run, labels, drawn) for run in runs], axis=0)
    return float(np.mean([auc(run, labels) for run in runs])), weighted


def _weighted_aucs(scores: NDArray[Any], labels: NDArray[Any], weights: DoubleArray) -> DoubleArray:
    """Return the AUC under each row of weights, (m,); NaN where a label has no weight."""
    scores, positive = _checked(scores, labels)
    order = np.argsort(scores, kind="stable")
    values = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    good = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    bad = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(bad, axis=1) - 0.5 * bad  # ties count half
    pairs = good.sum(axis=1) * bad.sum(axis=1)
    wins = (good * below).sum(axis=1)
    found: DoubleArray = np.divide(wins, pairs, out=np.full(wins.size, np.nan), where=pairs > 0)
    return found


def log_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean of -log(probability of the true label), in nats; NaN without rows.

    Probabilities are kept 1e-15 away from 0 and 1, so that one sure mistake does not make it infinite.
    """
    chances, positive = _checked(probabilities, labels)
    _check_probabilities(chances, "log_loss")
    if chances.size == 0:
        return float("nan")
    chances = np.clip(np.where(positive, chances, 1.0 - chances), 1e-15, 1.0)
    return float(-np.log(chances).mean())


def calibration_error(probabilities: NDArray[Any], labels: NDArray[Any], *, bins: int = 10) -> float:
    """Return the expected calibration error, from 0 to 1; NaN without rows.

    Probabilities are sorted into bins of equal width; the error is the mean over rows of the distance, in
    the row's bin, between the mean probability and the share of positives (Guo et al., ICML 2017).

    Args:
        probabilities: Of a positive label, (n,), between 0 and 1.
        labels: 1 or 0, (n,).
        bins: How many.
    """
    chances, positive = _checked(probabilities, labels)
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, not {bins}.")
    _check_probabilities(chances, "calibration_error")
    if chances.size == 0:
        return float("nan")
    bin_of = np.minimum((chances * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=chances - positive, minlength=bins)
    return float(np.abs(gaps).sum() / chances.size)


def _check_probabilities(chances: DoubleArray, name: str) -> None:
    if chances.size and (chances.min() < 0 or chances.max() > 1):
        raise DataError(
            f"{name} needs probabilities in 0..1; got {chances.min():g}..{chances.max():g}. "
            f"Turn scores into probabilities first."
        )


def _checked(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[DoubleArray, NDArray[np.bool_]]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise DataError(f"scores {scores.shape} and labels {labels.shape} must both have shape (n,).")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; drop those rows.")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels must be 0 or 1; got {np.unique(labels)[:5].tolist()}. Binarise them first.")
    return scores, labels.astype(bool)
