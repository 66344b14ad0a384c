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


class SelectionFacts(TypedDict, total=False):
    """How the training samples were chosen."""

    scorer: str
    budget: int
    candidates: int
    kept: int
    seed: int
    examples: list[dict[str, Any]]
    """Some kept rows; the keys become columns."""
    lengths: Lengths


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
