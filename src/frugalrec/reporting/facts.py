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


class PolicyFacts(TypedDict, total=False):
    """What one rule for routing would have been worth, on users whose lists are known from both sides."""

    name: str
    curve: list[list[float]]
    """Pairs of share of the cost and mean metric, from nobody to everybody."""
    area: list[float]
    """Mean gain over the cheap lists over all budgets from nobody to everybody, with its interval."""
    recovered: list[float]
    """Area under the share of the gain that is recovered, with its interval; .5 is a random order. Left out
    where no gain of asking everybody is proven."""
    share_95: float | None
    """Smallest share of the cost that recovers 95 % of the gain of asking for everybody."""
    oracle: bool
    """Whether the rule reads the answers."""


class GroupFacts(TypedDict, total=False):
    """One group of users by activity."""

    label: str
    users: int
    routed: int
    expected: float | None
    """Mean of the expected gain."""


class AllocationFacts(TypedDict, total=False):
    """Who gets the LLM, and on what evidence."""

    policy: str
    budget: str
    unit: str
    users: int
    routed: int
    spent: float
    """Estimated cost of those routed, in `unit`."""
    whole: float
    """Estimated cost of everybody."""
    decision: tuple[str, ...]
    """What was decided, and why, in sentences."""
    metric: str
    calibration_users: int
    effect: list[float]
    """Mean gain of the calibration users, with its interval."""
    headroom: list[float]
    """Metric of the cheap lists and of their candidates in the best order, on calibration users."""
    reachable: float
    """Share of calibration users with a right item among the candidates."""
    foresight: list[float]
    """Rank correlation of expected and measured gain, out of fold, with its interval."""
    signals: list[list[Any]]
    """Signal, its coefficient per standard deviation."""
    measured_users: int
    """Test users whose lists are known from both sides, drawn at random."""
    policies: list[PolicyFacts]
    groups: list[GroupFacts]
    places: list[float | None]
    """Listwise answers: for each place in the prompt, the mean place in the answer, from 0 (first) to 1."""
