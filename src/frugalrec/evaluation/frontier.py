"""Quality against cost: what each way of choosing users makes of every budget, with paired intervals.

A policy orders users. Spending rises along the order, and so does (or should) the mean quality, from the
cheap arm at 0 to the LLM arm at 1, where everybody is asked. The performance gap recovered at a share of the
cost is the part of the way from cheap to LLM; its mean over all shares is the APGR of RouteLLM (Ong et al.
2024): .5 for a random order, and above 1 for a policy that leaves out users whom the LLM harms.

Users with the same score stand in no order: they make one straight line, the mean over their orders. Where
the LLM arm gains nothing there is no gap to recover and the APGR is undefined; the area, the mean gain over
all shares of the cost, always is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.compare import Interval
from frugalrec.evaluation.cost_lines import Line, grid, measure, needed
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, Evaluation, IntArray


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Both arms and the costs of one seed."""

    users: IntArray
    """User codes, (n,)."""
    cheap: DoubleArray
    """The cheap arm's value of each user, (n,)."""
    llm: DoubleArray
    """The LLM arm's, (n,)."""
    costs: DoubleArray
    """What asking about each user costs, (n,), at least 0."""

    def __post_init__(self) -> None:
        """Check shapes and values."""
        arrays = (self.cheap, self.llm, self.costs)
        if any(array.shape != self.users.shape for array in arrays) or not self.users.size:
            raise DataError("a trial needs one value of either arm and one cost for each of its users.")
        if not all(np.isfinite(array).all() for array in arrays) or not (self.costs >= 0).all():
            raise DataError(
                "values and costs of a trial must be finite and costs at least 0; leave out undefined users."
            )
        if self.costs.sum() <= 0:
            raise DataError("all costs are 0; a curve against cost needs something that costs.")

    @classmethod
    def of(
        cls, cheap: Evaluation, llm: Evaluation, metric: str, costs: Mapping[int, float] | None = None
    ) -> Self:
        """Pair two arms over the users for whom both are defined.

        Args:
            cheap: The cheap arm.
            llm: The LLM arm, run for everybody who may be routed.
            metric: A metric of both.
            costs: User code -> cost; default: 1 each.
        """
        common, a, b = np.intersect1d(cheap.users, llm.users, assume_unique=True, return_indices=True)
        first, second = cheap.values[metric][a], llm.values[metric][b]
        known = ~(np.isnan(first) | np.isnan(second))
        users = common[known].astype(np.int32)
        prices = np.ones(users.size) if costs is None else np.array([costs[user] for user in users.tolist()])
        return cls(users=users, cheap=first[known], llm=second[known], costs=prices.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One policy's quality against cost, averaged over trials."""

    policy: str
    shares: DoubleArray
    """Budgets as shares of the cost of asking about everybody, (g,), from 0 to 1."""
    quality: DoubleArray
    """Mean quality at each, (g,)."""
    low: DoubleArray
    """Bootstrap interval over users of the *gain* over the cheap arm, plus the cheap mean, (g,)."""
    high: DoubleArray
    spent: float
    """The share of the all-LLM cost that the policy can spend; below 1 if it rules users out."""
    apgr: Interval
    """Area under the performance gap recovered; NaN where there is no gap."""
    area: Interval
    """Mean gain over the cheap arm over all shares; defined always."""
    needed: Mapping[float, float]
    """Part of the gap -> smallest share of the cost that recovers it; inf if none does, NaN without gap."""
    recovered: Mapping[float, Interval]
    """Share of the cost -> part of the gap recovered there."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The curves of several policies on the same users."""

    curves: Mapping[str, Curve]
    cheap: float
    """Mean of the cheap arm."""
    llm: float
    """Mean of the LLM arm."""
    gap: Interval
    """LLM less cheap."""
    n: int
    n_trials: int
    undefined: float
    """Share of resamples without a gap to recover."""
    samples: Mapping[str, DoubleArray]
    """Policy -> resampled areas, (resamples,), the same resamples for all; row by row with `gaps`."""
    gaps: DoubleArray
    """Resampled gaps, (resamples,)."""

    @property
    def defined(self) -> bool:
        """Return whether there is a gap to recover."""
        return self.gap.mean > 0

    def difference(self, a: str, b: str, measure: Literal["apgr", "area"] = "apgr") -> Interval:
        """Return how much larger `a` is than `b`, over the same resamples of users."""
        missing = [name for name in (a, b) if name not in self.curves]
        if missing:
            raise ConfigError(f"no curve of {missing[0]!r}; there are {', '.join(self.curves)}.")
        one, other = getattr(self.curves[a], measure), getattr(self.curves[b], measure)
        drawn = self.samples[a] - self.samples[b]
        mean = one.mean - other.mean
        if measure == "apgr":
            apgr = _ratio(1.0, drawn, self.gaps, self.gap)
            return replace(apgr, mean=mean)
        return _summary(mean, drawn, self.gap.level, self.gap.n)

    def __str__(self) -> str:
        """Say in words what there is to gain."""
        gap = self.gap
        figures = (
            f"{self.cheap:.4f} to {self.llm:.4f}, gap {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        )
        if not self.defined:
            return f"asking the LLM about everybody gains nothing ({figures}); the APGR is undefined."
        if gap.low <= 0:
            return f"the gap is not proven ({figures}); compare areas, for the APGR has no finite interval."
        return f"asking the LLM about everybody gains {figures}."


def frontier(
    trials: Sequence[Trial],
    scores: Mapping[str, Sequence[NDArray[Any]]],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Frontier:
    """Draw the curves of several policies.

    Args:
        trials: One entry a seed, all with the same users.
        scores: Policy -> for each trial the score of each user, (n,), in the trial's order; higher is asked
            about first, -inf never.
        level: Coverage of the intervals.
        resamples: Bootstrap resamples of users, common to all trials and policies.
        seed: Seed of the resamples.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(f"resamples={resamples} must be at least 1 and level={level} lie between 0 and 1.")
    runs = _by_user(trials)
    n = runs[0][0].users.size
    drawn = generator(seed, "frontier").multinomial(n, np.full(n, 1.0 / n), size=resamples)
    weights = np.concatenate([np.ones((1, n)), drawn])
    gaps = np.mean([weights @ (trial.llm - trial.cheap) / n for trial, _ in runs], axis=0)
    gap = _summary(float(gaps[0]), gaps[1:], level, n)
    cheap = float(np.mean([trial.cheap.mean() for trial, _ in runs]))
    curves, samples = {}, {}
    for name, given in scores.items():
        own = [
            Line(score, trial.llm - trial.cheap, trial.costs)
            for trial, score in zip(*_matched(name, runs, given), strict=True)
        ]
        areas, gains = measure(own, weights)
        samples[name] = areas[1:]
        curves[name] = _curve(name, own, cheap, areas, gains, gaps, gap)
    return Frontier(
        curves=curves,
        cheap=cheap,
        llm=cheap + gap.mean,
        gap=gap,
        n=n,
        n_trials=len(runs),
        undefined=float((gaps[1:] <= 0).mean()),
        samples=samples,
        gaps=gaps[1:],
    )


def _curve(
    name: str,
    own: Sequence[Line],
    cheap: float,
    areas: DoubleArray,
    gains: DoubleArray,
    gaps: DoubleArray,
    gap: Interval,
) -> Curve:
    edges = ((1 - gap.level) / 2, (1 + gap.level) / 2)
    low, high = np.quantile(gains[1:], edges, axis=0)
    everybody = np.ones((1, own[0].costs.size))
    lines = [line.corners(everybody) for line in own]
    return Curve(
        policy=name,
        shares=grid(),
        quality=cheap + gains[0],
        low=cheap + low,
        high=cheap + high,
        spent=float(np.mean([x[0, -1] for x, _ in lines])),
        apgr=_ratio(float(areas[0]), areas[1:], gaps[1:], gap),
        area=_summary(float(areas[0]), areas[1:], gap.level, gap.n),
        needed=needed(lines, gap.mean),
        recovered={
            round(float(share), 6): _ratio(float(gains[0, g]), gains[1:, g], gaps[1:], gap)
            for g, share in enumerate(grid())
        },
    )


def _ratio(value: float, drawn: DoubleArray, gaps: DoubleArray, gap: Interval) -> Interval:
    """Return value / gap; NaN without a gap, and without interval where too few resamples have one."""
    nan = float("nan")
    if not gap.mean > 0:
        return Interval(mean=nan, low=nan, high=nan, level=gap.level, n=gap.n)
    known = gaps > 0
    if (~known).mean() > (1 - gap.level) / 2:
        return Interval(mean=value / gap.mean, low=nan, high=nan, level=gap.level, n=gap.n)
    return _summary(value / gap.mean, drawn[known] / gaps[known], gap.level, gap.n)


def _summary(mean: float, drawn: DoubleArray, level: float, n: int) -> Interval:
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Interval(mean=mean, low=float(low), high=float(high), level=level, n=n)


def _by_user(trials: Sequence[Trial]) -> list[tuple[Trial, NDArray[np.int64]]]:
    """Return each trial in order of user code, with that order: the resamples then fit all trials."""
    if not trials:
        raise DataError("give at least one trial.")
    runs: list[tuple[Trial, NDArray[np.int64]]] = []
    for trial in trials:
        order = np.argsort(trial.users, kind="stable")
        users = trial.users[order]
        if (users[1:] == users[:-1]).any():
            raise DataError("a trial holds a user more than once; give each user once.")
        if runs and not np.array_equal(users, runs[0][0].users):
            raise DataError("all trials must hold the same users; keep those whom all seeds have.")
        sorted_trial = Trial(
            users=users, cheap=trial.cheap[order], llm=trial.llm[order], costs=trial.costs[order]
        )
        runs.append((sorted_trial, order))
    return runs


def _matched(
    name: str, runs: Sequence[tuple[Trial, NDArray[np.int64]]], given: Sequence[NDArray[Any]]
) -> tuple[list[Trial], list[DoubleArray]]:
    arrays = [np.asarray(score, dtype=np.float64) for score in given]
    shape = runs[0][0].users.shape
    if len(arrays) != len(runs) or any(array.shape != shape or np.isnan(array).any() for array in arrays):
        raise DataError(
            f"the policy {name!r} needs one score a user for each of {len(runs)} trials, none of them NaN."
        )
    return [trial for trial, _ in runs], [a[order] for a, (_, order) in zip(arrays, runs, strict=True)]
