"""Weak users: inactive users whom the cheap model serves badly, measured on the calibration fold.

A user's performance is a metric of the held-out against the unseen items (AUC after Rendle et al. 2009, or
NDCG), with ties as half and NaN where nothing is known. Few held-out items make it noisy, so it is shrunk
towards the mean of users of like activity:

    shrunk = (n * value + kappa * group mean) / (n + kappa)        (n: held-out items of the user)

The label is a description, not a reason to spend: whether the LLM helps a user is another question
(`frugalrec.allocation.gain`), and how far the label holds on another fold is to be looked at first
(`frugalrec.allocation.stability`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.alignment import positions
from frugalrec.data.splits import Fold
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import Ranks
from frugalrec.evaluation.segments import activity_groups
from frugalrec.types import BoolArray, DoubleArray, IntArray, LongArray

LARGEST_KAPPA = 1e6
"""A shrinkage so strong that nothing is left of the user's own value."""


@dataclass(frozen=True)
class Threshold:
    """Where to cut: at the mean, at a quantile, or at a value."""

    kind: Literal["mean", "quantile", "value"]
    amount: float = float("nan")

    def __post_init__(self) -> None:
        """Check the amount."""
        if self.kind == "quantile" and not 0 <= self.amount <= 1:
            raise ConfigError(f"a quantile lies between 0 and 1; got {self.amount}.")
        if self.kind == "value" and not np.isfinite(self.amount):
            raise ConfigError(f"a threshold must be a number; got {self.amount}.")

    @classmethod
    def mean(cls) -> Self:
        """Return the cut at the mean, as published for the sparsity index."""
        return cls("mean")

    @classmethod
    def quantile(cls, share: float) -> Self:
        """Return the cut below which `share` of the values lie."""
        return cls("quantile", share)

    @classmethod
    def value(cls, amount: float) -> Self:
        """Return the cut at a fixed value."""
        return cls("value", amount)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``mean``, a quantile such as ``20%``, or a number such as ``0.5``.

        >>> Threshold.parse("20%")
        Threshold(kind='quantile', amount=0.2)
        """
        word = text.strip()
        if word == "mean":
            return cls.mean()
        if re.fullmatch(r"\d+(\.\d+)?%", word):
            return cls.quantile(float(word[:-1]) / 100)
        try:
            return cls.value(float(word))
        except ValueError:
            raise ConfigError(
                f"cannot read the threshold {text!r}; write mean, a quantile such as 20%, or a number."
            ) from None

    def of(self, values: NDArray[Any]) -> float:
        """Return the cut among `values`; NaN are left out."""
        known = values[~np.isnan(values)]
        if self.kind == "value":
            return self.amount
        if known.size == 0:
            return float("nan")
        return float(known.mean() if self.kind == "mean" else np.quantile(known, self.amount))


@dataclass(frozen=True, kw_only=True)
class Weakness:
    """Who is weak, and all that the label was made from."""

    users: IntArray
    """User codes, (n,)."""
    metric: str
    fold: Fold
    """The fold that the performance was measured on. A label from `test` may describe, never decide."""
    performance: DoubleArray
    """The cheap model's value of each user, (n,); NaN where it is undefined."""
    shrunk: DoubleArray
    """The same, shrunk towards users of like activity, (n,); the group's mean where undefined."""
    undefined: BoolArray
    """Users for whom the metric is undefined, (n,): never called weak."""
    sparsity: DoubleArray
    """1 - n_train / N, (n,): near 1 for users of whom little is known."""
    inactive: BoolArray
    """Sparsity above `t_s`, (n,)."""
    low: BoolArray
    """Shrunk performance at most `t_p`, (n,)."""
    t_s: float
    t_p: float
    kappa: float
    """Held-out items that the group's mean counts as much as."""
    kappa_from: str
    """`likelihood`, `given`, or why it could not be estimated."""

    @property
    def weak(self) -> BoolArray:
        """Return who is inactive, served badly, and measured at all, (n,)."""
        return self.inactive & self.low

    @property
    def n_undefined(self) -> int:
        """Return how many users the metric is undefined for."""
        return int(self.undefined.sum())

    def at(self, users: NDArray[Any]) -> NDArray[np.int64]:
        """Return the positions of some users; an unknown one is an error."""
        return positions(self.users, users, "the weakness label")

    def __str__(self) -> str:
        """Return the counts in one sentence."""
        return (
            f"{int(self.weak.sum())} of {self.users.size} users are weak by {self.metric} on the {self.fold} "
            f"fold ({int(self.inactive.sum())} inactive: sparsity above {self.t_s:.4f}; "
            f"{int(self.low.sum())} low: at most {self.t_p:.3f}); {self.n_undefined} undefined users are "
            f"left out"
        )


def weak_users(
    ranks: Ranks,
    lengths: NDArray[Any],
    *,
    fold: Fold = "valid",
    metric: str = "auc",
    t_s: Threshold | None = None,
    t_p: Threshold | None = None,
    kappa: float | None = None,
    groups: int = 10,
) -> Weakness:
    """Label users as weak from the places of their held-out items.

    Args:
        ranks: The cheap model's ranks, ``fold_ranks(score, split, "valid")``.
        lengths: Training interactions of every user code, (n_users,), such as ``split.train.lengths``.
        fold: The fold of `ranks`.
        metric: ``auc`` or another name of `frugalrec.evaluation.metrics`. Both are worth a look: inactive
            users may have the better AUC and the worse NDCG.
        t_s: The sparsity above which a user is inactive; default: the median. The published mean marks
            nearly two thirds of a long-tailed data set.
        t_p: The performance up to which a user is served badly; default: the lowest fifth of those defined.
        kappa: Strength of the shrinkage; default: by maximum likelihood.
        groups: Activity groups whose means values are shrunk to.
    """
    own = np.asarray(lengths)[ranks.users].astype(np.int64)
    values = parse_metric(metric)(ranks)
    undefined = np.isnan(values)
    if undefined.all():
        raise DataError(f"{metric} is undefined for all {values.size} users; check the {fold} fold.")
    shrunk, strength, source = shrink(values, ranks.n_relevant, activity_groups(own, groups), kappa)
    sparsity = 1.0 - own / ranks.n_items
    cut_s = (t_s or Threshold.quantile(0.5)).of(sparsity)
    cut_p = (t_p or Threshold.quantile(0.2)).of(np.where(undefined, np.nan, shrunk))
    return Weakness(
        users=ranks.users,
        metric=metric,
        fold=fold,
        performance=values,
        shrunk=shrunk,
        undefined=undefined,
        sparsity=sparsity,
        inactive=sparsity > cut_s,
        low=~undefined & (shrunk <= cut_p),
        t_s=cut_s,
        t_p=cut_p,
        kappa=strength,
        kappa_from=source,
    )


def shrink(
    values: DoubleArray, counts: NDArray[Any], groups: LongArray, kappa: float | None = None
) -> tuple[DoubleArray, float, str]:
    """Shrink noisy values towards their group's mean: (shrunk (n,), kappa, where kappa came from).

    Under ``value ~ N(truth, s2 / count)`` and ``truth ~ N(group mean, t2)`` the best guess of the truth is
    the weighted mean in the module's first lines with kappa = s2 / t2, fitted by maximum likelihood. Where
    all counts are equal, the data cannot tell noise from truth: kappa is then that count (half of each).

    Args:
        values: (n,), NaN where undefined.
        counts: Observations behind each value, (n,).
        groups: Group of each value, (n,), from 0.
        kappa: Use this strength instead.
    """
    if kappa is not None and not kappa >= 0:
        raise ConfigError(f"kappa must be at least 0, not {kappa}.")
    n = np.asarray(counts, dtype=np.float64)
    known = ~np.isnan(values) & (n > 0)
    source = "given"
    if kappa is None:
        kappa, source = _likeliest_kappa(values[known], n[known], groups[known])
    middle = _group_means(np.where(known, values, 0.0), np.where(known, n, 0.0), groups, kappa)[groups]
    own = np.where(known, n, 0.0)
    total = own + kappa
    shrunk = np.divide(
        own * np.where(known, values, 0.0) + kappa * middle, total, out=middle, where=total > 0
    )
    return shrunk, float(kappa), source


def _likeliest_kappa(values: DoubleArray, n: DoubleArray, groups: LongArray) -> tuple[float, str]:
    if np.unique(n).size < 2:
        count = float(n[0]) if n.size else 1.0
        return count, "not identified: all users have the same number of held-out items"
    from scipy.optimize import minimize_scalar

    def cost(log_kappa: float) -> float:
        kappa = np.exp(log_kappa)
        middle = _group_means(values, n, groups, kappa)[groups]
        spread = 1.0 + kappa / n
        variance = float(np.mean((values - middle) ** 2 / spread))
        return float(np.log(max(variance, 1e-300)) + np.mean(np.log(spread)))

    grid = np.linspace(np.log(1e-3), np.log(LARGEST_KAPPA), 43)
    best = int(np.argmin([cost(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    kappa = float(np.exp(found.x))
    if kappa > LARGEST_KAPPA / 10:
        return kappa, "likelihood, at its end: values tell nothing beyond their group's mean"
    return kappa, "likelihood"


def _group_means(values: DoubleArray, n: DoubleArray, groups: LongArray, kappa: float) -> DoubleArray:
    """Return each group's mean, weighted by how much a value tells; the overall mean for an empty group."""
    weights = np.divide(n, n + kappa, out=np.zeros_like(n), where=n + kappa > 0)
    size = int(groups.max(initial=0)) + 1
    mass = np.bincount(groups, weights=weights, minlength=size)
    total = np.bincount(groups, weights=weights * values, minlength=size)
    overall = total.sum() / mass.sum() if mass.sum() else float("nan")
    means: DoubleArray = np.divide(total, mass, out=np.full(size, overall), where=mass > 0)
    return means
