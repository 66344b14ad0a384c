"""Splits: global time (default), each user's own last part or last item, or the publisher's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset, concatenate
from frugalrec.errors import ConfigError, DataError
from frugalrec.types import IntArray

SplitMethod = Literal["auto", "time", "user-time", "leave-last-out", "given"]
Fold = Literal["valid", "test"]
TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Split:
    """Three folds of one data set, over the same vocabularies."""

    method: str
    train: Dataset
    valid: Dataset
    test: Dataset

    def history(self, fold: Fold) -> Dataset:
        """Return what is known before `fold`: train for valid, train and valid for test."""
        if fold == "valid":
            return self.train
        return concatenate(self.train, self.valid, name=f"{self.train.name}+valid")

    def targets(self, fold: Fold) -> Dataset:
        """Return the held-out interactions of `fold`."""
        return self.valid if fold == "valid" else self.test

    def users(self, fold: Fold) -> IntArray:
        """Return the users with at least one held-out interaction and one known one."""
        known = self.history(fold).lengths > 0
        return np.flatnonzero((self.targets(fold).lengths > 0) & known).astype(np.int32)


def split(
    dataset: Dataset,
    method: SplitMethod = "auto",
    *,
    valid: float = 0.1,
    test: float = 0.1,
) -> Split:
    """Split a data set into train, valid and test.

    Args:
        dataset: The data set.
        method: `time` cuts all interactions at two instants; `user-time` cuts each user's own, in
            their order; `leave-last-out` takes each user's last item for test and the one before for
            validation; `given` takes `dataset.folds`; `auto` is `given` where folds exist, else
            `time` where times exist, else `leave-last-out`. All but `time` show a model what others
            did later. Where users are cut one by one, those with fewer than three interactions keep
            all in train, and the others have at least one in each fold.
        valid: Share of interactions in validation (`time` and `user-time`).
        test: Share of interactions in test (`time` and `user-time`).

    Raises:
        ConfigError: If a share is out of range.
        DataError: If the data lack what the method needs, or a fold comes out empty.
    """
    if method == "auto":
        timed: SplitMethod = "leave-last-out" if dataset.times is None else "time"
        method = timed if dataset.folds is None else "given"
    if method == "given":
        if dataset.folds is None:
            raise DataError(
                f"{dataset.name}: a given split was asked for, but the data carry no folds. "
                f"Use --split time or --split leave-last-out."
            )
        folds = dataset.folds
    elif method == "time":
        folds = _by_time(dataset, valid, test)
    elif method == "user-time":
        folds = _by_user(dataset, *_checked(valid, test))
    elif method == "leave-last-out":
        folds = _by_user(dataset, 0.0, 0.0)
    else:
        raise ConfigError(f"unknown split {method!r}; choose auto, time, user-time, leave-last-out or given.")
    parts = [dataset.where(folds == fold, name=dataset.name) for fold in (TRAIN, VALID, TEST)]
    for part, label in zip(parts, ("train", "valid", "test"), strict=True):
        if part.n == 0:
            raise DataError(f"{dataset.name}: the {method} split leaves the {label} fold empty.")
    return Split(method=method, train=parts[0], valid=parts[1], test=parts[2])


def _by_time(dataset: Dataset, valid: float, test: float) -> NDArray[np.int8]:
    if dataset.times is None:
        raise DataError(
            f"{dataset.name}: a time split needs timestamps, and the data have none. "
            f"Map a time column, or use --split leave-last-out."
        )
    _checked(valid, test)
    ordered = np.sort(dataset.times)
    # Interactions at the same instant stay together: the cut falls before the first of them.
    first_valid = ordered[int(dataset.n * (1 - valid - test))]
    first_test = ordered[int(dataset.n * (1 - test))]
    folds = np.full(dataset.n, TRAIN, dtype=np.int8)
    folds[dataset.times >= first_valid] = VALID
    folds[dataset.times >= first_test] = TEST
    return folds


def _by_user(dataset: Dataset, valid: float, test: float) -> NDArray[np.int8]:
    """Return the folds that cut each user's interactions, at least one a fold where there are three."""
    lengths = dataset.lengths
    n_test = np.maximum(1, np.floor(lengths * test + 0.5).astype(np.int64))
    n_valid = np.maximum(1, np.floor(lengths * valid + 0.5).astype(np.int64))
    n_valid = np.minimum(n_valid, np.maximum(1, lengths - n_test - 1))
    n_test = np.minimum(n_test, np.maximum(1, lengths - n_valid - 1))
    from_end = np.repeat(dataset.indptr[1:], lengths) - np.arange(dataset.n)  # 1 = last
    folds = np.full(dataset.n, TRAIN, dtype=np.int8)
    folds[from_end <= np.repeat(n_test + n_valid, lengths)] = VALID
    folds[from_end <= np.repeat(n_test, lengths)] = TEST
    folds[np.repeat(lengths < 3, lengths)] = TRAIN
    return folds


def _checked(valid: float, test: float) -> tuple[float, float]:
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise ConfigError(f"valid={valid} and test={test} must be above 0 and sum to less than 1.")
    return valid, test
