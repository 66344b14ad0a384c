"""The nouns that stages hand to each other: frozen results that carry their evidence.

A `Dataset` (data/dataset.py) goes in; `Ranking`, `Selection`, `Adapter`, `Allocation` and
`Evaluation` come out. Users and items are dense integer codes here; only readers and reports see
the user's own ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PAD = -1
"""The item code that fills a ranking shorter than k."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The top k items of some users, best first."""

    users: IntArray
    """User codes, (n_users,)."""
    items: IntArray
    """Item codes, (n_users, k), padded at the end with -1."""
    scores: FloatArray
    """Scores, (n_users, k), not increasing along a row; -inf where `items` is -1."""

    def __post_init__(self) -> None:
        """Check shapes."""
        if self.items.shape != self.scores.shape or self.items.shape[:1] != self.users.shape:
            raise DataError(
                f"a ranking needs users (n,), items (n, k) and scores (n, k); "
                f"got {self.users.shape}, {self.items.shape}, {self.scores.shape}"
            )

    @property
    def k(self) -> int:
        """The length of each list."""
        return int(self.items.shape[1])

    def take(self, rows: NDArray[Any]) -> Ranking:
        """Return the ranking of the given rows (positions, not user codes)."""
        return Ranking(users=self.users[rows], items=self.items[rows], scores=self.scores[rows])


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows of an `Examples` were kept for tuning, and why."""

    kept: LongArray
    """Row numbers that were kept, ascending."""
    scores: FloatArray
    """One score per candidate row, (n,); NaN where the score is undefined."""
    scorer: str
    """Name of the scorer."""
    budget: int
    """Rows asked for."""
    seed: int

    @property
    def n_dropped(self) -> int:
        """How many candidate rows were left out."""
        return int(self.scores.size - self.kept.size)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A tuned adapter on disk, tied to its base model by hash."""

    path: Path
    """Folder with the adapter's safetensors and configuration."""
    base: str
    """Name of the base model."""
    sha256: str
    """Hash of the adapter's weights; travels with every number made with it."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Loss curve, samples, seconds, samples per second, configuration."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Which users get the LLM, under a budget."""

    users: IntArray
    """All candidate users, (n,)."""
    routed: BoolArray
    """True for users who get the LLM, (n,)."""
    scores: FloatArray
    """The policy's score, (n,); higher is routed first, -inf never."""
    policy: str
    budget_users: int
    costs: DoubleArray | None = None
    """What asking about each user costs, (n,), in the budget's unit; None stands for 1 each."""
    limit: float = float("inf")
    """The budget in the unit of `costs`; `spent` never passes it."""
    budget: str = ""
    """The budget in words, such as ``2.50 USD``."""
    reasons: NDArray[np.str_] | None = None
    """Why each user was routed or not, (n,)."""
    evaluation_only: bool = False
    """True if the choice looked at the outcomes that are reported: a ceiling, not to be deployed."""

    @property
    def spent(self) -> float:
        """Return the cost of the routed users."""
        if self.costs is None:
            return float(self.routed.sum())
        return math.fsum(self.costs[self.routed].tolist())


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Per-user metric values of one arm; means are derived, never stored alone."""

    arm: str
    """Name of the arm (model, control or combination)."""
    users: IntArray
    """Evaluated user codes, (n,)."""
    values: Mapping[str, DoubleArray]
    """Metric name -> per-user values, (n,); NaN where the metric is undefined for a user."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Catalogue-level figures (coverage, novelty, Gini), dialects, number of candidates, seed."""

    def mean(self, metric: str) -> float:
        """Return the mean over users for whom `metric` is defined."""
        values = self.values[metric]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    @property
    def means(self) -> dict[str, float]:
        """Return every metric's mean."""
        return {name: self.mean(name) for name in self.values}
