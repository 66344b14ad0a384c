"""How far a label of weak users holds on another fold, and what a treatment changes beside chance.

Two illusions make weak users look curable. A label read off few held-out items hardly repeats itself on
others, and whoever was picked for a bad result has a better one next time, whatever was done (regression
to the mean). So the first report compares two folds, and a count of weak users before and after can be
had only together with that of a random order of the same candidates for the same users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.weakness import Weakness
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.controls import random_permutation
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import ranks_from_ranking
from frugalrec.rng import derive_seed, generator
from frugalrec.types import BoolArray, DoubleArray, Ranking

CHANCE_LIFT = 1.2
"""A lift below this is called "about 1" even where many users make it surely more."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """One label on two folds."""

    n: int
    """Users looked at: in both folds, and inactive in the first."""
    correlation: float
    """Pearson correlation of their performance on the two folds, over those defined on both."""
    base_rate: float
    """Share of them who are weak on the second fold."""
    conditional: float
    """The same among those weak on the first fold."""
    lift: float
    """`conditional` over `base_rate`; 1 if the label says nothing."""
    low: float
    high: float
    """Bootstrap interval of the lift over users."""
    level: float

    @property
    def informative(self) -> bool:
        """Return whether the lift is surely above 1, and by more than a fifth."""
        return bool(self.low > 1 and self.lift >= CHANCE_LIFT)

    def __str__(self) -> str:
        """Say in words what the label on one fold tells about the other."""
        if not np.isfinite(self.lift):
            return f"too few weak users among {self.n} to say whether the label repeats itself."
        figures = (
            f"of {self.n} inactive users, {self.base_rate:.0%} are weak on the second fold, and of those "
            f"weak on the first {self.conditional:.0%}: a lift of {self.lift:.2f} ({self.low:.2f} to "
            f"{self.high:.2f}); correlation of the values {self.correlation:.2f}."
        )
        if self.informative:
            return f"the label repeats itself: {figures}"
        if self.lift < CHANCE_LIFT:
            return (
                f"the lift is about 1: being weak on one fold says next to nothing about another, so the "
                f"label cannot decide who gets the LLM: {figures}"
            )
        return (
            f"the lift cannot be told from 1 with so few users; until it can, do not let the label decide "
            f"who gets the LLM: {figures}"
        )


def stability(
    first: Weakness, second: Weakness, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Stability:
    """Compare one label on two folds, among users who are inactive in the first.

    Activity hardly changes from fold to fold, so that it would pass for stability of the label.

    Args:
        first: The label to decide by, from the calibration fold.
        second: The same rule on another fold.
        level: Coverage of the interval of the lift.
        resamples: Bootstrap resamples over users.
        seed: Seed.
    """
    if first.metric != second.metric:
        raise ConfigError(f"both labels must be by one metric, not {first.metric} and {second.metric}.")
    _, a, b = np.intersect1d(first.users, second.users, assume_unique=True, return_indices=True)
    kept = first.inactive[a]
    a, b = a[kept], b[kept]
    if a.size < 2:
        raise DataError(f"the labels share {a.size} inactive user(s); a stability report needs more.")
    cells = 2 * first.weak[a] + second.weak[b]
    counts = np.bincount(cells, minlength=4)
    lifts = _lift(generator(seed, "stability").multinomial(a.size, counts / a.size, size=resamples))
    lifts = lifts[np.isfinite(lifts)]
    edges = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(lifts, edges) if lifts.size else (np.nan, np.nan)
    weak = counts[2] + counts[3]
    return Stability(
        n=int(a.size),
        correlation=_correlation(first.performance[a], second.performance[b]),
        base_rate=float((counts[1] + counts[3]) / a.size),
        conditional=float(counts[3] / weak) if weak else float("nan"),
        lift=float(_lift(counts[None, :])[0]),
        low=float(low),
        high=float(high),
        level=level,
    )


@dataclass(frozen=True, kw_only=True)
class WeakCounts:
    """Weak users before and after a treatment, never without its control."""

    arm: str
    metric: str
    before: int
    after: int
    control: float
    """Weak users left after a random order of the same candidates for the same users, mean over draws."""
    control_sd: float
    control_min: int
    """The fewest that any draw left; an arm that leaves no fewer has shown nothing."""
    treated: int
    """Users whose list the arm was allowed to change."""
    draws: int

    def __str__(self) -> str:
        """Return both counts in one sentence."""
        verdict = "" if self.after < self.control_min else ", and some random order does as well"
        return (
            f"weak users {self.before} -> {self.after} with {self.arm} "
            f"({_change(self.after, self.before)}); a random order of the same candidates for the same "
            f"{self.treated} users: {self.before} -> {self.control:.0f} "
            f"({_change(self.control, self.before)}){verdict}"
        )


def count_weak(
    arm: str,
    before: Ranking,
    after: Ranking,
    label: Weakness,
    treated: NDArray[np.bool_],
    targets: Dataset,
    *,
    seen: Dataset | None,
    m: int,
    metric: str = "ndcg@10",
    threshold: float | None = None,
    draws: int = 20,
    seed: int = 0,
) -> WeakCounts:
    """Count inactive users at or below a threshold before and after, with the random control made here.

    Args:
        arm: Name of the treatment.
        before: The cheap model's lists.
        after: The arm's lists for the same users; only rows of `treated` users count.
        label: Who is inactive. Take it from another fold than `targets`: a label read off the same fold
            makes every treatment look good, the control as well.
        treated: Users whose lists the arm may change, (n,).
        targets: Held-out interactions of the fold to report on.
        seen: As in `frugalrec.evaluation.evaluate.evaluate_ranking`.
        m: Places that the arm could reorder; the control shuffles the same.
        metric: Metric of the lists; ``auc`` needs lists of the whole catalogue.
        threshold: A user at or below it is weak; default: the lowest fifth before treatment.
        draws: Random orders of the control.
        seed: Seed of the control.
    """
    if draws < 1:
        raise ConfigError(f"the control needs at least 1 random order, not {draws}.")
    rows = np.asarray(treated, dtype=bool)
    if not np.array_equal(before.users, after.users) or rows.shape != before.users.shape:
        raise DataError("before, after and treated must hold the same users in the same order.")
    inactive = label.inactive[label.at(before.users)]
    chosen = parse_metric(metric)

    def values(ranking: Ranking) -> DoubleArray:
        return chosen(ranks_from_ranking(ranking, targets, seen=seen))

    first = values(before)
    cut = float(np.nanquantile(first, 0.2)) if threshold is None else threshold

    def weak(own: DoubleArray) -> int:
        return int((inactive & (np.where(rows, own, first) <= cut)).sum())

    seeds = [derive_seed(seed, "weak-control", draw) for draw in range(draws)]
    control = [weak(values(random_permutation(before, m, one))) for one in seeds]
    return WeakCounts(
        arm=arm,
        metric=metric,
        before=weak(first),
        after=weak(values(after)),
        control=float(np.mean(control)),
        control_sd=float(np.std(control, ddof=1)) if draws > 1 else float("nan"),
        control_min=min(control),
        treated=int(rows.sum()),
        draws=draws,
    )


def _lift(counts: NDArray[Any]) -> DoubleArray:
    """Return P(weak on both) / (P(weak on the first) P(weak on the second)) of (b, 4) tables."""
    n = counts.sum(axis=1).astype(np.float64)
    product = (counts[:, 2] + counts[:, 3]) * (counts[:, 1] + counts[:, 3]).astype(np.float64)
    lifts: DoubleArray = np.divide(n * counts[:, 3], product, out=np.full(n.size, np.nan), where=product > 0)
    return lifts


def _correlation(a: DoubleArray, b: DoubleArray) -> float:
    both: BoolArray = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 3 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])


def _change(after: float, before: float) -> str:
    return "no change to measure" if before == 0 else f"{round(100 * (after - before) / before):+d} %"
