"""Predict what the LLM gains a user, from a calibration slice on which both arms were run.

Not "who is served badly?" but "for whom is the LLM better?": the difference of the two arms on the users of
a uniform slice, regressed on signals that every user has. Spending follows the lower confidence bound of
the prediction, so that a gain nobody has measured buys nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.alignment import positions
from frugalrec.allocation.learners import Learned, fit_ridge, fit_trees
from frugalrec.allocation.signals import Signals, Standardiser
from frugalrec.data.splits import Fold
from frugalrec.errors import ConfigError, DataError, LeakError, NotFittedError
from frugalrec.evaluation.compare import Interval, interval
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, Evaluation, IntArray

FEWEST = 20
"""Calibration users below which no model is fitted."""


def calibration_slice(users: NDArray[Any], lengths: NDArray[Any], n: int = 400, seed: int = 0) -> IntArray:
    """Draw users on whom both arms are run: every user equally likely, all levels of activity alike.

    A systematic sample along the order of activity (users of one length in random order): each user is drawn
    with probability n / len(users), and any run of the order gives its share to within one user. So the slice
    also estimates the mean effect without bias.

    Args:
        users: User codes to draw from, (N,). Leave out those on whom the result will be judged.
        lengths: Their known interactions, (N,).
        n: Users to draw; all where there are fewer.
        seed: Seed; the draw does not depend on the order of `users`.

    Returns:
        User codes, ascending.
    """
    if n < 1:
        raise ConfigError(f"a calibration slice needs at least 1 user, not {n}.")
    codes, known = np.asarray(users, dtype=np.int32), np.asarray(lengths)
    if known.shape != codes.shape:
        raise DataError(f"the slice needs one length per user; got {codes.shape} and {known.shape}.")
    by_code = np.argsort(codes)
    codes, known = codes[by_code], known[by_code]
    if codes.size <= n:
        return codes
    rng = generator(seed, "allocation", "calibration")
    order = np.lexsort((rng.random(codes.size), known))
    step = codes.size / n
    at = np.floor(rng.random() * step + step * np.arange(n)).astype(np.int64)
    return np.sort(codes[order[np.minimum(at, codes.size - 1)]])


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What the LLM arm gained each user over the cheap arm."""

    users: IntArray
    """User codes, (n,), for whom both arms have a value."""
    values: DoubleArray
    """(n,)."""
    metric: str
    fold: Fold

    @classmethod
    def between(cls, llm: Evaluation, cheap: Evaluation, metric: str, fold: Fold) -> Self:
        """Subtract the cheap arm from the LLM arm, user by user; undefined users are left out."""
        common, a, b = np.intersect1d(llm.users, cheap.users, assume_unique=True, return_indices=True)
        for arm in (llm, cheap):
            if metric not in arm.values:
                raise DataError(f"arm {arm.arm!r} has no {metric!r}; it has {', '.join(arm.values)}.")
        values = llm.values[metric][a] - cheap.values[metric][b]
        known = ~np.isnan(values)
        return cls(users=common[known].astype(np.int32), values=values[known], metric=metric, fold=fold)

    def at(self, users: NDArray[Any]) -> DoubleArray:
        """Return the gains of some users, (n,); an unknown user is an error."""
        return self.values[positions(self.users, users, "the table of gains")]


@dataclass(frozen=True, kw_only=True)
class GainEstimate:
    """Predicted gains with their uncertainty."""

    users: IntArray
    """User codes, (n,)."""
    mean: DoubleArray
    """Predicted gain, (n,)."""
    se: DoubleArray
    """Standard error of the expected gain, (n,)."""
    z: float
    """Standard errors that the lower bound lies below the prediction."""

    @property
    def lower(self) -> DoubleArray:
        """Return the lower confidence bound, (n,)."""
        return self.mean - self.z * self.se

    def at(self, users: NDArray[Any]) -> GainEstimate:
        """Return the estimates of some users, in their order; an unknown user is an error."""
        rows = positions(self.users, users, "the table of predicted gains")
        return GainEstimate(users=self.users[rows], mean=self.mean[rows], se=self.se[rows], z=self.z)


@dataclass(frozen=True, kw_only=True)
class GainEvidence:
    """What the calibration slice says about the gain and about its prediction."""

    metric: str
    n: int
    effect: Interval
    """Mean gain of the slice: an unbiased estimate of giving the LLM to everybody."""
    out_of_fold: DoubleArray
    """Prediction for each calibration user by a model that did not see the user, (n,), as given to `fit`."""
    r2: Interval
    """Share of the variance of gains that predictions explain out of fold; below 0 is worse than the mean."""
    rank_correlation: Interval
    """Spearman correlation of out-of-fold predictions and gains."""

    @property
    def predictable(self) -> bool:
        """Return whether predictions surely order users better than chance."""
        return bool(self.rank_correlation.low > 0)

    def __str__(self) -> str:
        """Say in words what is known."""
        effect, rank = self.effect, self.rank_correlation
        if effect.low > 0:
            mean = "the LLM helps on average"
        elif effect.high < 0:
            mean = "the LLM harms on average"
        else:
            mean = "no average effect is proven"
        who = "for whom can be predicted" if self.predictable else "for whom cannot be told from the signals"
        return (
            f"{self.n} calibration users: {mean} ({self.metric} {effect.mean:+.4f}, {effect.low:+.4f} to "
            f"{effect.high:+.4f}); {who} (rank correlation out of fold {rank.mean:.2f}, {rank.low:.2f} to "
            f"{rank.high:.2f}; R2 {self.r2.mean:.3f})."
        )


class GainModel:
    """Predicts a user's gain from signals; ridge by default, boosted trees on request."""

    evidence: GainEvidence
    standardiser: Standardiser
    learned: Learned

    def __init__(
        self, *, method: Literal["ridge", "trees"] = "ridge", z: float = 1.0, folds: int = 10, seed: int = 0
    ) -> None:
        """Store the options.

        Args:
            method: `ridge`, or `trees` (LightGBM, extra ``rank``).
            z: Standard errors that the lower bound lies below the prediction; 1 is a one-sided 84 %.
            folds: Folds of the out-of-fold predictions.
            seed: Seed of folds, trees and intervals.
        """
        self.method = method
        self.z = z
        self.folds = folds
        self.seed = seed

    def fit(self, signals: Signals, gains: Gains, *, test_users: NDArray[Any]) -> Self:
        """Learn from the calibration slice.

        Args:
            signals: Signals of at least the users of `gains`.
            gains: Outcomes of both arms on calibration labels.
            test_users: Users on whom the result will be judged; none of them may have a gain here. Pass an
                empty array where the same users are judged on a later fold.

        Raises:
            LeakError: If gains come from the test fold, or from users of the test set.
            DataError: If there are too few users, or one has no signals.
        """
        if self.method not in ("ridge", "trees"):
            raise ConfigError(f"unknown method {self.method!r} of the gain model; choose ridge or trees.")
        _refuse_leaks(gains, test_users)
        if gains.users.size < FEWEST or not 2 <= self.folds <= gains.users.size:
            raise DataError(
                f"{gains.users.size} calibration users in {self.folds} folds are too few for a gain model; "
                f"give at least {FEWEST} users and from 2 folds to as many as users."
            )
        # In order of user code, so that folds and results do not depend on the order of the table.
        order = np.argsort(gains.users)
        table, y = signals.at(gains.users[order]), gains.values[order]
        self.evidence = self._evidence(table, y, gains.metric, np.argsort(order))
        self.standardiser, self.learned = self._learn(table, y)
        return self

    def predict(self, signals: Signals) -> GainEstimate:
        """Return predicted gains and standard errors of any users with signals."""
        if not hasattr(self, "learned"):
            raise NotFittedError(
                "the gain model is not fitted; call fit(signals, gains, test_users=...) first."
            )
        mean, se = self.learned(self.standardiser(signals))
        return GainEstimate(users=signals.users, mean=mean, se=se, z=self.z)

    def _learn(self, signals: Signals, y: DoubleArray) -> tuple[Standardiser, Learned]:
        standardiser = Standardiser.fit(signals)
        x = standardiser(signals)
        return standardiser, fit_ridge(x, y) if self.method == "ridge" else fit_trees(x, y, seed=self.seed)

    def _evidence(
        self, signals: Signals, y: DoubleArray, metric: str, given: NDArray[np.int64]
    ) -> GainEvidence:
        """Return the evidence of users in order of code; `given` leads back to the order they came in."""
        fold = generator(self.seed, "gain", "folds").permutation(y.size) % self.folds
        guess, base = np.empty(y.size), np.empty(y.size)
        for number in range(self.folds):
            inside = fold == number
            standardiser, learned = self._learn(_rows(signals, ~inside), y[~inside])
            guess[inside] = learned(standardiser(_rows(signals, inside)))[0]
            base[inside] = y[~inside].mean()
        r2, rank = _skill(y, guess, base, self.seed)
        return GainEvidence(
            metric=metric,
            n=y.size,
            effect=interval(y, seed=self.seed),
            out_of_fold=guess[given],
            r2=r2,
            rank_correlation=rank,
        )


def _refuse_leaks(gains: Gains, test_users: NDArray[Any]) -> None:
    if gains.fold == "test":
        raise LeakError(
            "these gains come from the test fold, on which the result is reported; calibrate on valid."
        )
    both = np.intersect1d(gains.users, np.asarray(test_users, dtype=np.int64))
    if both.size:
        raise LeakError(
            f"{both.size} calibration user(s), the first with code {int(both[0])}, are test users too; "
            f"draw the slice with calibration_slice from users outside the test set."
        )


def _rows(signals: Signals, mask: NDArray[np.bool_]) -> Signals:
    return Signals(users=signals.users[mask], names=signals.names, values=signals.values[mask])


def _skill(
    y: DoubleArray,
    guess: DoubleArray,
    base: DoubleArray,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Interval, Interval]:
    """Return R2 against the other folds' mean and the Spearman correlation, with intervals over users.

    The correlation is of what a prediction adds to the other folds' mean: that mean is lower where a fold's
    own outcomes are high, and alone would make the correlation negative.
    """
    drawn = generator(seed, "gain", "skill").multinomial(y.size, np.full(y.size, 1 / y.size), size=resamples)
    weights = np.concatenate([np.ones((1, y.size)), drawn])
    total, rest = weights @ (y - base) ** 2, weights @ (y - guess) ** 2
    r2 = 1.0 - np.divide(rest, total, out=np.full(total.size, np.nan), where=total > 0)
    rank = _correlations(weights, _mid_ranks(y), _mid_ranks(np.round(guess - base, 12)))
    edges = ((1 - level) / 2, (1 + level) / 2)

    def summary(values: DoubleArray) -> Interval:
        known = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(known, edges) if known.size else (np.nan, np.nan)
        return Interval(mean=float(values[0]), low=float(low), high=float(high), level=level, n=y.size)

    return summary(r2), summary(rank)


def _correlations(weights: DoubleArray, a: DoubleArray, b: DoubleArray) -> DoubleArray:
    """Return the correlation of a and b under each row of weights, (r,); 0 where either is constant."""
    a, b = a - a.mean(), b - b.mean()
    mass = weights.sum(axis=1)
    first, second = weights @ a / mass, weights @ b / mass
    together = weights @ (a * b) / mass - first * second
    spread = (weights @ a**2 / mass - first**2) * (weights @ b**2 / mass - second**2)
    safe = spread > 1e-9
    return np.where(safe, together / np.sqrt(np.where(safe, spread, 1.0)), 0.0)


def _mid_ranks(values: DoubleArray) -> DoubleArray:
    ordered = np.sort(values)
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(both / 2.0)
