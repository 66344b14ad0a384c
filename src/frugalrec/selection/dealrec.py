"""DEALRec: influence on a surrogate plus effort of the LLM.

Lin et al., SIGIR 2024 (arXiv 2401.17197), with three presets that differ where paper, published code
and sound practice differ. They share the two parts, whether a sample helps the recommendation task
(influence) and how hard it is for the LLM (effort), and differ in how these are computed and combined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError
from frugalrec.selection.base import Scorer, parse_budget
from frugalrec.selection.combination import Normalisation, combine
from frugalrec.selection.coverage import Bins
from frugalrec.selection.surrogates import Influence, chosen_by_strata
from frugalrec.types import FloatArray, LongArray, Selection

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One reading of the method."""

    influence: Mapping[str, Any] = field(default_factory=dict)
    effort: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Normalisation = "rank"
    weight: float = 0.3
    """lambda, the weight of effort; below 0, rows that are easy for the LLM come first."""
    pooled: bool = False
    """Whether effort is computed only for twice as many rows as are kept, the most influential ones."""
    groups: int | None = 50
    """Groups of the sum that share the budget, or None: the rows with the highest sums."""
    bins: Bins = "quantile"
    prune_top: float = 0.0
    prune_bottom: float = 0.0


PRESETS: dict[str, Preset] = {
    # Deterministic; the LLM reads only rows that influence has already put first. Among them, easy ones:
    # with few samples hard ones teach little (Sorscher et al., NeurIPS 2022). No groups: equal shares of
    # equal groups come close to a random choice.
    "frugal": Preset(weight=-1.0, pooled=True, groups=None),
    # The equations: all parameters, a curvature that is not drowned by its damping, raw sums.
    "paper": Preset(
        influence={
            "loss": "expected-bce",
            "target": "train",
            "curvature": "gauss-newton",
            "damping": 0.01,
        },
        normalisation="none",
        bins="width",
    ),
    # The published code: one random negative, one matrix of SASRec, no effective curvature (its damping
    # leaves q at a cosine of .9998 to v), one LoRA matrix, min-max, and the top tenth pruned.
    "reference": Preset(
        influence={"loss": "sampled-bce", "target": "train", "parameters": r"blocks\.1\.out\.weight"},
        effort={"parameters": "reference"},
        normalisation="minmax",
        bins="width",
        prune_top=0.1,
    ),
}
"""Name -> options. `reference` scores the transition that tuning will see; the published code scores
the user's transitions before it, and so gives users with one or two interactions a score of 0."""


UNKNOWN_BUDGET = 512
"""What the budget is taken for where a pool depends on it."""


class DEALRec(Scorer):
    """Influence plus `weight` times effort; the rows with the highest sums, or a draw over its strata.

    A row without either part is undefined and never kept. After scoring, `parts_` holds both parts.
    """

    name: ClassVar[str] = "dealrec"
    prefers: ClassVar[str] = "influence plus weighted effort, as the preset says"
    takes: ClassVar[frozenset[str]] = frozenset(
        {"seed", "valid", "progress", "llm", "dtype", "noun", "cache", "budget"}
    )

    def __init__(
        self,
        *,
        preset: str = "frugal",
        llm: LocalLM | str | Path = "smollm2-135m",
        dtype: str = "auto",
        noun: str = "item",
        weight: float | None = None,
        pool: int | None = None,
        budget: int | None = None,
        influence: Mapping[str, Any] | None = None,
        effort: Mapping[str, Any] | None = None,
        choice: Mapping[str, Any] | None = None,
        valid: Dataset | None = None,
        seed: int = 0,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Store the options.

        Args:
            preset: `frugal`, `paper` or `reference` (see `PRESETS`).
            llm: The LLM, or a smaller one in its place, whose gradients are the effort.
            dtype: The type that the LLM computes in, where it is loaded here.
            noun: What one item is called in the prompts of effort.
            weight: Weight of effort; default: the preset's.
            pool: How many rows, those with the highest influence, effort is computed for; the others are
                undefined. Default: twice the budget in `frugal`, all rows in the others.
            budget: How many rows will be kept, for that default; unknown, it is taken for 512.
            influence: Options of `Influence` over the preset's.
            effort: Options of `Effort` over the preset's.
            choice: `groups`, `bins`, `prune_top`, `prune_bottom` of `stratified` over the preset's; where
                `groups` is None, the highest sums are kept and the others must not be given.
            valid: The validation fold.
            seed: Seed of surrogate, LoRA matrices, pool and draws.
            cache: A folder from which a killed call goes on: checkpoints of the surrogates, and batches
                of effort.
            progress: Is told of (rows, rows in all), both parts counted.
        """
        self.preset, self.llm, self.dtype, self.noun = preset, llm, dtype, noun
        self.weight, self.pool, self.budget = weight, pool, budget
        self.influence, self.effort = dict(influence or {}), dict(effort or {})
        self.choice, self.valid, self.seed = dict(choice or {}), valid, seed
        self.cache, self.progress = cache, progress
        self.parts_: dict[str, FloatArray] = {}

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        from frugalrec.selection.effort import Effort

        preset = self._preset()
        shared = {"seed": self.seed, "cache": self.cache}
        influence = Influence(**shared | {"valid": self.valid} | dict(preset.influence) | self.influence)
        llm = {"llm": self.llm, "dtype": self.dtype, "noun": self.noun}
        effort = Effort(**shared | llm | dict(preset.effort) | self.effort)
        n, n_models = len(examples), len(influence.surrogates or ()) or influence.n_surrogates
        pool = self.scorable(n)
        if self.progress is not None:
            influence.progress = partial(_tell, self.progress, 0, pool)
            effort.progress = partial(_tell, self.progress, n * n_models, 0)
        helpful = influence.score(examples, dataset)
        rows = highest(helpful, pool)
        hard = np.full(n, np.nan, dtype=np.float32)
        hard[rows] = effort.score(examples.take(rows), dataset)
        self.parts_, self.costs_ = (
            {"influence": helpful, "effort": hard},
            {**influence.costs_, **effort.costs_},
        )
        weights = {"influence": 1.0, "effort": preset.weight if self.weight is None else self.weight}
        # Both parts over the same rows, or the ranks of one would span less than those of the other.
        seen = {"influence": np.where(np.isnan(hard), np.float32(np.nan), helpful), "effort": hard}
        return combine(seen, weights, preset.normalisation).astype("float32")

    def scorable(self, n: int) -> int:
        """Return how many of n rows can have a score: the pool."""
        usual = 2 * (self.budget or UNKNOWN_BUDGET) if self._preset().pooled else n
        pool = usual if self.pool is None else self.pool
        inner = self.effort.get("pool")
        if not isinstance(pool, int) or pool < 1:
            raise ConfigError(f"dealrec: pool={pool!r} must be a whole number of rows, at least 1.")
        return min(n, pool, n if inner is None else int(inner))

    def choose(self, scores: FloatArray, budget: int | float | str, *, seed: int = 0) -> Selection:
        """Return the rows with the highest scores, or a stratified choice where there are groups."""
        preset = self._preset()
        names = ("groups", "bins", "prune_top", "prune_bottom")
        unknown = sorted(set(self.choice) - set(names))
        if unknown:
            raise ConfigError(f"dealrec: unknown choice option {unknown[0]!r}; give {', '.join(names)}.")
        strata = {name: getattr(preset, name) for name in names} | self.choice
        if strata["groups"] is not None:
            return chosen_by_strata(self.name, scores, scores, budget, seed, **strata)
        idle = sorted(set(self.choice) - {"groups"})
        if idle:
            raise ConfigError(f"dealrec: the choice option {idle[0]} needs groups; give groups, too.")
        size, defined = parse_budget(budget, scores.size), int((~np.isnan(scores)).sum())
        if size > defined:
            raise ConfigError(
                f"the budget of {size} rows exceeds the {defined} rows that have a score (of "
                f"{scores.size}); lower the budget or raise the pool."
            )
        return super().choose(scores, budget, seed=seed)

    def _preset(self) -> Preset:
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown preset {self.preset!r}; choose one of {', '.join(PRESETS)}.")
        return PRESETS[self.preset]


def _tell(progress: Progress, before: int, after: int, done: int, total: int) -> None:
    """Tell of rows done in one part, with the rows of the parts before and after it."""
    progress(before + done, before + total + after)


def highest(scores: FloatArray, size: int) -> LongArray:
    """Return the `size` rows with the highest scores, ascending; undefined ones come last.

    >>> highest(np.array([3.0, np.nan, 5.0, 1.0]), 2).tolist()
    [0, 2]
    """
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
    return np.sort(order[:size])
