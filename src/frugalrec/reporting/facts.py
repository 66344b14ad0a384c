"""The report's loose facts: plain dictionaries whose keys are all optional, named here once."""

from __future__ import annotations

from typing import Any, TypedDict


class DatasetFacts(TypedDict, total=False):
    """What the data set is; every key may be left out."""

    name: str
    users: int
    items: int
    interactions: int
    density: float
    split: str
    train: int
    valid: int
    test: int
    span: str
    """First to last day, as text."""


class Finding(TypedDict, total=False):
    """One finding of the audit; `share` is a fraction of 1."""

    name: str
    severity: str
    """``"error"``, ``"warning"`` or ``"info"``."""
    count: int
    share: float | None
    message: str
    examples: list[Any]
    remedy: str


class Lengths(TypedDict):
    """Histogram of history lengths: `edges` has one entry more than the counts."""

    edges: list[float]
    all: list[int]
    kept: list[int]


class PartCost(TypedDict):
    """What one part of choosing and tuning took."""

    name: str
    """A part of the scorer (`surrogate`, `influence`, `effort`), `rest` of its stage, or `tuning`."""
    wall_s: float
    tokens: float
    """Tokens that the LLM computed or was trained on."""


class SelectionCost(TypedDict, total=False):
    """What choosing and tuning cost, against an estimate of tuning on all candidate rows."""

    parts: list[PartCost]
    together: PartCost
    further: PartCost
    """What tuning takes for one more sample, as measured in this run."""
    full: PartCost
    """The estimate: what tuning took, and as much as `further` for each row that was left out."""
    time_ratio: float
    """Seconds together, as a fraction of the estimate."""
    token_ratio: float


class SelectionFacts(TypedDict, total=False):
    """How the training samples were chosen."""

    scorer: str
    prefers: str
    """What a high score means, in words; empty where it means nothing."""
    options: dict[str, Any]
    """Options of the scorer, but for the defaults."""
    budget: int
    candidates: int
    kept: int
    seed: int
    undefined: int
    """Candidates without a score."""
    kept_undefined: int
    negative_influence_kept: float
    """Share of the kept rows whose influence is negative, of those that have one."""
    negative_influence_all: float
    deciles: list[float]
    """Share of the kept rows in each tenth of the scores, lowest first."""
    examples: list[dict[str, Any]]
    """Some kept rows; the keys become columns."""
    left_out: list[dict[str, Any]]
    """Some rows that were not kept, with the same keys."""
    lengths: Lengths
    cost: SelectionCost


class TuningFacts(TypedDict, total=False):
    """How the LLM was tuned."""

    base: str
    samples: int
    epochs: float
    samples_per_s: float
    adapter_sha256: str
    loss: list[list[float]]
    """Pairs of step and training loss."""


class WeightFacts(TypedDict, total=False):
    """How the fusion weight was chosen, on validation users."""

    name: str
    metric: str
    chosen: float
    grid: list[list[float]]
    """Pairs of weight and validation metric."""
