"""The scorer seam: a method scores every training row, and one function turns scores into a choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import Usage
from frugalrec.rng import generator
from frugalrec.types import FloatArray, Selection


class Scorer(ABC):
    """Says how much each training row is worth; higher is kept first.

    An author writes `_score`. The constructor only stores its (keyword-only) options.
    """

    name: ClassVar[str]
    """The name in the table of `frugalrec.selection`."""
    prefers: ClassVar[str] = "rows with a high score"
    """Which rows score high, in a few words that go on from "prefers"; empty where a score means nothing."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Which of these the constructor accepts: `seed`, `valid` (the validation fold), `llm` (the run's
    language model), `noun` (what one item is called), `cache` (a folder for what a killed call had done)
    and `progress`."""

    costs_: Mapping[str, Usage] = MappingProxyType({})
    """What the last scores cost, by part: the seconds of this call, and the tokens also of killed ones
    whose batches lay in the cache. Empty where scoring is free."""

    @abstractmethod
    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        """Return one score per row, (n,); NaN where the score is undefined."""

    def score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        """Return one score per row, (n,) float32; NaN where the score is undefined.

        Args:
            examples: The candidate rows.
            dataset: The train fold from which the rows were cut.

        Raises:
            DataError: If there are no rows, or the scorer returns another number of scores.
        """
        if len(examples) == 0:
            raise DataError(f"{self.name}: there are no training rows to choose from; lower min_history.")
        scores = np.asarray(self._score(examples, dataset), dtype=np.float32)
        if scores.shape != (len(examples),):
            raise DataError(f"{self.name}: expected {len(examples)} scores, one a row; got {scores.shape}.")
        return scores

    def scorable(self, n: int) -> int:
        """Return the most rows, of n, that can have a score: what a budget must not exceed."""
        return n

    def choose(self, scores: FloatArray, budget: int | float | str, *, seed: int = 0) -> Selection:
        """Return which rows to keep, given their scores: the highest, unless a method says otherwise."""
        return select(scores, budget, scorer=self.name, seed=seed)


def parse_budget(budget: int | float | str, n: int) -> int:
    """Return how many of `n` rows a budget allows, 1 to n.

    Args:
        budget: A number of rows (1024), a share (0.02) or a percentage ("2%"). Shares round half up.
        n: Rows to choose from.

    Raises:
        ConfigError: If the budget is no such thing, or exceeds the rows there are.

    >>> parse_budget("2%", 1000), parse_budget(0.02, 1000), parse_budget("64", 1000)
    (20, 20, 64)
    """
    remedy = 'give a number of rows such as 1024, a share such as 0.02, or "2%".'
    if isinstance(budget, bool):
        raise ConfigError(f"the budget {budget!r} is not a number; {remedy}")
    value: float
    if isinstance(budget, str):
        text = budget.strip()
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            raise ConfigError(f"the budget {budget!r} is not a number; {remedy}") from None
        share = text.endswith("%") or ("." in text and value <= 1)
        value = value / 100 if text.endswith("%") else value
    else:
        share, value = isinstance(budget, float) and budget <= 1, float(budget)
    if not np.isfinite(value) or value <= 0 or (share and value > 1):
        raise ConfigError(f"the budget {budget!r} is out of range; {remedy}")
    if not share and value != int(value):
        raise ConfigError(f"the budget {budget!r} is neither a whole number of rows nor a share; {remedy}")
    if share:
        return max(int(np.floor(value * n + 0.5)), 1)
    if value > n:
        raise ConfigError(
            f'the budget of {int(value)} rows exceeds the {n} rows to choose from; lower it, or give "100%".'
        )
    return int(value)


def select(scores: FloatArray, budget: int | float | str, *, scorer: str, seed: int = 0) -> Selection:
    """Keep the rows with the highest scores: exactly as many as the budget says.

    Rows with an undefined (NaN) score go last. Ties, among undefined rows too, are broken by a
    seeded random order, so that row numbers carry no weight.

    Args:
        scores: One score per row, (n,).
        budget: As in `parse_budget`.
        scorer: Name of the method that made the scores.
        seed: Seed of the tie-break.

    Raises:
        ConfigError: If the budget makes no sense or exceeds the rows.
        DataError: If there are no rows, or none has a score.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 1 or scores.size == 0:
        raise DataError(f"scores must be one value per row and at least one row; got shape {scores.shape}.")
    undefined = np.isnan(scores)
    if undefined.all():
        raise DataError(
            f"{scorer}: none of the {scores.size} rows has a score, so there is nothing to choose by; "
            f"take another scorer, or random."
        )
    size = parse_budget(budget, scores.size)
    tie_break = generator(seed, "selection", "ties").permutation(scores.size)
    order = np.lexsort((tie_break, -np.where(undefined, 0, scores), undefined))
    kept = np.sort(order[:size]).astype(np.int64)
    return Selection(kept=kept, scores=scores, scorer=scorer, budget=size, seed=seed)
