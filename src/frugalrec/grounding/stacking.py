"""Stacked scores: a small calibrated model over an LLM's log-odds and cheap signals.

L2-regularised logistic regression of the labels on standardised signals. It has one weight a signal, so a
few hundred validation rows decide it, and the sum of its terms is a log-odds again: what it says can be
read, and its probabilities are meant. How strong the regularisation is, cross-validation decides; rows of
one user stay together in it where users are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.pointwise import log_loss
from frugalrec.types import BoolArray, DoubleArray, LongArray

Signals = Mapping[str, NDArray[Any]]
"""Name -> one number a row, (n,), higher or lower means likelier; NaN where there is none."""

STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
MISSING = " is missing"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How signals become the columns of a regression; learned from the rows that it is fitted on."""

    names: tuple[str, ...]
    """Signals, in the order of the columns."""
    means: DoubleArray
    """Mean of each signal where it is known, (k,); a missing value counts as it."""
    deviations: DoubleArray
    """Standard deviation of each signal where it is known, (k,); 1 where the signal is constant."""
    with_indicator: tuple[str, ...]
    """Signals that were missing in some rows: each has a column of its own that says so."""

    @classmethod
    def learn(cls, names: Sequence[str], values: DoubleArray) -> Scale:
        """Return the scale of some rows, (n, k), with NaN where a value is missing."""
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        means = np.where(known, values, 0.0).sum(axis=0) / count
        centred = np.where(known, values - means, 0.0)
        deviations = np.sqrt((centred**2).sum(axis=0) / count)
        flat = deviations <= 1e-9 * np.abs(np.where(known, values, 0.0)).max(axis=0, initial=0.0)
        partly = known.any(axis=0) & ~known.all(axis=0)
        return cls(
            names=tuple(names),
            means=means,
            deviations=np.where(flat, 1.0, deviations),
            with_indicator=tuple(names[column] for column in np.flatnonzero(partly).tolist()),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the regression's columns."""
        return (*self.names, *(name + MISSING for name in self.with_indicator))

    def apply(self, values: DoubleArray) -> DoubleArray:
        """Return the columns of some rows, (n, columns)."""
        known = np.isfinite(values)
        scaled = np.where(known, (values - self.means) / self.deviations, 0.0)
        flags = [~known[:, [self.names.index(name)]] for name in self.with_indicator]
        return np.hstack([scaled, *flags]).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """A fitted stack, and the evidence for it."""

    scale: Scale
    weights: DoubleArray
    """Log-odds that one standard deviation of each column is worth, (columns,)."""
    intercept: float
    """Log-odds of a row with average signals."""
    l2: float
    """The strength of the regularisation that cross-validation chose."""
    losses: Mapping[float, float]
    """Strength -> cross-validated log loss, in nats."""
    held_out: DoubleArray
    """Log-odds of each row it was fitted on, from a fit without the row's fold, (n,)."""

    @property
    def coefficients(self) -> dict[str, float]:
        """Column -> log-odds for one standard deviation; an indicator's for the value's absence."""
        return dict(zip(self.scale.columns, self.weights.tolist(), strict=True))

    @property
    def log_loss(self) -> float:
        """Cross-validated log loss at the chosen strength, in nats."""
        return self.losses[self.l2]

    def score(self, signals: Signals) -> DoubleArray:
        """Return the log-odds of Yes of each row, (n,).

        Raises:
            DataError: If a signal that it was fitted on is not among them.
        """
        absent = [name for name in self.scale.names if name not in signals]
        if absent:
            raise DataError(
                f"the stack was fitted on {', '.join(self.scale.names)}; {absent[0]} is not given."
            )
        values = _matrix({name: signals[name] for name in self.scale.names})
        scores: DoubleArray = self.scale.apply(values) @ self.weights + self.intercept
        return scores


@dataclass(frozen=True, kw_only=True)
class Stacker:
    """Fits a stack."""

    strengths: Sequence[float] = STRENGTHS
    """Strengths to choose among: the penalty is half of it times the sum of the squared weights, against
    the *summed* log loss; the intercept goes free."""
    folds: int = 5
    """Folds of the cross-validation; no more than there are groups."""

    def fit(self, signals: Signals, labels: NDArray[Any], groups: NDArray[Any] | None = None) -> Stacked:
        """Choose the strength by cross-validation, then fit on all rows. Their order does not matter.

        Args:
            signals: The signals of each row.
            labels: True or 1 where the answer is Yes, (n,).
            groups: Whose each row is, (n,); a user's rows share a fold. Without it rows are dealt to
                folds by label and signals, so that folds are alike.

        Raises:
            ConfigError: If there are no strengths, one is not above 0, or there are fewer than two folds.
            DataError: If shapes or labels do not fit, or there is too little to cross-validate.
        """
        if not self.strengths or min(self.strengths) <= 0 or self.folds < 2:
            raise ConfigError(
                f"a stack needs strengths above 0 and at least 2 folds, not {tuple(self.strengths)} "
                f"and {self.folds}."
            )
        values, wanted = _matrix(signals), _labels(labels, signals)
        names = tuple(signals)
        fold = self._folds(values, wanted, groups)
        held_out = {l2: self._held_out(names, values, wanted, fold, l2) for l2 in self.strengths}
        losses = {l2: log_loss(_sigmoid(odds), wanted) for l2, odds in held_out.items()}
        chosen = min(losses, key=lambda l2: (losses[l2], -l2))
        scale = Scale.learn(names, values)
        weights, intercept = logistic_regression(scale.apply(values), wanted, chosen)
        return Stacked(
            scale=scale,
            weights=weights,
            intercept=intercept,
            l2=chosen,
            losses=losses,
            held_out=held_out[chosen],
        )

    def _folds(self, values: DoubleArray, labels: BoolArray, groups: NDArray[Any] | None) -> LongArray:
        """Return the fold of each row, (n,); every fold's other rows have both labels."""
        if groups is None:
            fold = _dealt(values, labels, self.folds)
        else:
            fold = _grouped(np.asarray(groups), labels.size, self.folds)
        numbers = np.unique(fold)
        if numbers.size < 2 or any(np.unique(labels[fold != number]).size < 2 for number in numbers):
            raise DataError(
                f"{labels.size} rows with {int(labels.sum())} Yes do not suffice for cross-validation in "
                f"{self.folds} folds{'' if groups is None else ' by user'}; give more rows or users."
            )
        return fold

    @staticmethod
    def _held_out(
        names: Sequence[str], values: DoubleArray, labels: BoolArray, fold: LongArray, l2: float
    ) -> DoubleArray:
        odds = np.empty(labels.size)
        for number in np.unique(fold):
            inside = fold == number
            scale = Scale.learn(names, values[~inside])
            weights, intercept = logistic_regression(scale.apply(values[~inside]), labels[~inside], l2)
            odds[inside] = scale.apply(values[inside]) @ weights + intercept
        return odds


def logistic_regression(
    columns: DoubleArray, labels: NDArray[Any], l2: float, *, tolerance: float = 1e-10, steps: int = 100
) -> tuple[DoubleArray, float]:
    """Return (weights, intercept) that minimise the summed log loss plus ``l2 / 2 * |weights|^2``.

    Newton's method with halved steps; the problem is strictly convex where both labels occur.

    Args:
        columns: (n, k), without missing values.
        labels: 0 or 1, (n,).
        l2: Strength, above 0.
        tolerance: Length of a step, in units of the weights, at which it ends.
        steps: The most Newton steps.
    """
    design = np.column_stack([columns, np.ones(len(columns))])
    signs = np.where(np.asarray(labels, dtype=bool), 1.0, -1.0)
    penalty = np.append(np.full(columns.shape[1], float(l2)), 0.0)

    def objective(at: DoubleArray) -> float:
        return float(np.logaddexp(0.0, -signs * (design @ at)).sum() + penalty @ at**2 / 2)

    found = np.zeros(design.shape[1])
    value = objective(found)
    for _ in range(steps):
        chances = _sigmoid(design @ found)
        gradient = design.T @ (chances - (signs > 0)) + penalty * found
        curvature = (design.T * (chances * (1 - chances))) @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        share = 1.0
        while objective(found - share * step) > value and share > 1e-6:
            share /= 2
        found = found - share * step
        value = objective(found)
        if np.abs(step).max() < tolerance:
            break
    return found[:-1], float(found[-1])


def _matrix(signals: Signals) -> DoubleArray:
    """Return signals as columns, (n, k), with NaN where a value is missing."""
    if not signals:
        raise DataError("a stack needs at least one signal.")
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in signals.items()}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"each signal needs one number a row; their shapes are {shapes}.")
    for name, column in columns.items():
        if np.isinf(column).any():
            raise DataError(f"the signal {name!r} is infinite in some rows; smooth it, or give NaN there.")
    return np.column_stack(list(columns.values()))


def _labels(labels: NDArray[Any], signals: Signals) -> BoolArray:
    values = np.asarray(labels)
    rows = len(next(iter(signals.values())))
    if values.shape != (rows,):
        raise DataError(f"labels have shape {values.shape}, but the signals have {rows} rows.")
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"labels must be 0 or 1, not {np.unique(values)[:5].tolist()}.")
    return values.astype(np.bool_)


def _grouped(groups: NDArray[Any], rows: int, folds: int) -> LongArray:
    """Deal groups to folds, largest first, each to the fold with the fewest rows so far."""
    if groups.shape != (rows,):
        raise DataError(f"groups have shape {groups.shape}, but the signals have {rows} rows.")
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    filled = np.zeros(min(folds, sizes.size), dtype=np.int64)
    home = np.empty(sizes.size, dtype=np.int64)
    for one in np.argsort(-sizes, kind="stable"):
        home[one] = int(np.argmin(filled))
        filled[home[one]] += sizes[one]
    return home[group.reshape(-1)]


def _dealt(values: DoubleArray, labels: BoolArray, folds: int) -> LongArray:
    """Deal rows to folds in order of label and size of the signals; sign and unit do not matter."""
    scale = Scale.learn([str(column) for column in range(values.shape[1])], values)
    sizes = np.abs(scale.apply(values)).round(9)
    order = np.lexsort((*sizes.T[::-1], labels))
    fold = np.empty(labels.size, dtype=np.int64)
    fold[order] = np.arange(labels.size) % folds
    return fold


def _sigmoid(odds: DoubleArray) -> DoubleArray:
    chances: DoubleArray = np.exp(-np.logaddexp(0.0, -odds))
    return chances
