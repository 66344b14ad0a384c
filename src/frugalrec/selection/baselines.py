"""Baselines of selection: what a method must beat before its cost is worth anything."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.rng import generator
from frugalrec.selection.base import Scorer
from frugalrec.types import FloatArray


class Random(Scorer):
    """A uniformly random choice, the strongest simple baseline of data pruning."""

    name: ClassVar[str] = "random"
    prefers: ClassVar[str] = ""
    takes: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        return generator(self.seed, "selection", "random").random(len(examples), dtype=np.float32)


class Longest(Scorer):
    """Rows with the longest history window, then of the users with the most interactions."""

    name: ClassVar[str] = "longest"
    prefers: ClassVar[str] = "long histories"

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        window = np.diff(examples.indptr)
        # A fraction below 1 orders rows whose windows are equally long, and moves none past another.
        total = dataset.lengths[examples.users] / (1.0 + dataset.lengths.max())
        scores: FloatArray = (window + total).astype(np.float32)
        return scores


class Recent(Scorer):
    """Rows with the latest targets; undefined where the data have no times."""

    name: ClassVar[str] = "recent"
    prefers: ClassVar[str] = "late targets"

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        if examples.times is None:
            return np.full(len(examples), np.nan, dtype=np.float32)
        # float32 cannot hold Unix seconds exactly; ranks up to 2^24 rows it can.
        _, rank = np.unique(examples.times, return_inverse=True)
        return rank.astype(np.float32)
