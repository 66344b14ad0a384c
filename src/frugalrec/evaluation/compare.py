"""Intervals and paired differences over users, by the bootstrap (Efron 1979; percentile intervals).

Users are drawn with replacement. A resampled mean depends only on how often each *distinct* value is
drawn, and per-user metrics take few values (most are 0), so counts of distinct values are drawn
from a multinomial and multiplied with the values: the same distribution as drawing users, but fast,
and independent of the order of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from frugalrec.errors import ConfigError, DataError
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, Evaluation

CHUNK_CELLS = 4_000_000
"""Drawn counts held at once (32 MB)."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float
    level: float
    n: int
    """Users for whom the value is defined."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better `a` is than `b` on the users for whom both are defined."""

    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    mean: float
    """Mean of a - b."""
    low: float
    high: float
    level: float
    p_value: float
    """Two-sided bootstrap p-value of "no difference", by inverting the percentile interval; at least
    1 / (resamples + 1)."""
    wins: float
    """Share of users for whom a is better; `losses` likewise; the rest tie."""
    losses: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def interval(values: DoubleArray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of per-user values with its bootstrap interval.

    Args:
        values: Per-user values, (n,); NaN are left out.
        level: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: Seed; the result does not depend on the order of users.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    means = _resampled_means(values, resamples, seed)
    low, high = _bounds(means, level)
    mean = float(values.mean()) if values.size else float("nan")
    return Interval(mean=mean, low=low, high=high, level=level, n=values.size)


def difference(
    a: Evaluation,
    b: Evaluation,
    metric: str,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two arms, paired over their common users.

    Args:
        a: The arm in question.
        b: The arm it is compared with, usually a control.
        metric: A metric that both hold.
        level: Coverage of the interval.
        resamples: Bootstrap resamples.
        seed: Seed.

    Raises:
        DataError: If an arm lacks the metric, or no user has a defined value in both.
    """
    first, second = paired(a, b, metric)
    gaps = first - second
    means = _resampled_means(gaps, resamples, seed)
    low, high = _bounds(means, level)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Difference(
        metric=metric,
        a=a.arm,
        b=b.arm,
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        mean=float(gaps.mean()),
        low=low,
        high=high,
        level=level,
        p_value=min(1.0, 2.0 * (tail + 1) / (resamples + 1)),
        wins=float((gaps > 0).mean()),
        losses=float((gaps < 0).mean()),
        n=gaps.size,
    )


def paired(a: Evaluation, b: Evaluation, metric: str) -> tuple[DoubleArray, DoubleArray]:
    """Return both arms' values of the users who have one in each, in order of user code."""
    for arm in (a, b):
        if metric not in arm.values:
            raise DataError(f"arm {arm.arm!r} has no {metric!r}; it has {', '.join(arm.values)}.")
    _, left, right = np.intersect1d(a.users, b.users, assume_unique=True, return_indices=True)
    first, second = a.values[metric][left], b.values[metric][right]
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        raise DataError(
            f"{a.arm!r} and {b.arm!r} share no user with a defined {metric}; evaluate both on the same users."
        )
    return first[both], second[both]


def average_seeds(runs: Sequence[Evaluation]) -> Evaluation:
    """Average several seeds of one arm, user by user, so that the bootstrap over users applies.

    Users and metrics that all runs share are kept. `details` tells the number of seeds, each seed's
    mean and their standard deviation, which the interval over users does not contain.

    Raises:
        DataError: If there is no run, or the runs are of different arms.
    """
    if not runs or len({run.arm for run in runs}) > 1:
        raise DataError(f"give runs of one arm, not {sorted({run.arm for run in runs})}.")
    users = runs[0].users
    for run in runs[1:]:
        users = np.intersect1d(users, run.users)
    users = np.sort(users)
    names = [name for name in runs[0].values if all(name in run.values for run in runs)]
    values: dict[str, DoubleArray] = {}
    for name in names:
        rows = [run.values[name][np.argsort(run.users)][np.isin(np.sort(run.users), users)] for run in runs]
        values[name] = np.mean(rows, axis=0)
    by_seed = {name: [run.mean(name) for run in runs] for name in names}
    spread = {
        name: float(np.std(means, ddof=1)) if len(runs) > 1 else None for name, means in by_seed.items()
    }
    details = {**runs[0].details, "n_seeds": len(runs), "seed_means": by_seed, "seed_sd": spread}
    return Evaluation(arm=runs[0].arm, users=users, values=values, details=details)


def _resampled_means(values: DoubleArray, resamples: int, seed: int) -> DoubleArray:
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, not {resamples}.")
    if values.size == 0:
        return np.full(resamples, np.nan)
    distinct, counts = np.unique(values, return_counts=True)
    rng = generator(seed, "bootstrap")
    means = np.empty(resamples)
    chunk = max(1, CHUNK_CELLS // distinct.size)
    for start in range(0, resamples, chunk):
        part = means[start : start + chunk]
        drawn = rng.multinomial(values.size, counts / values.size, size=part.size)
        part[:] = drawn @ distinct / values.size
    return means


def _bounds(means: DoubleArray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, for example 0.95; got {level}.")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
