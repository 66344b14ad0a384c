"""The report as data: frozen records that every output format reads, and that JSON keeps.

A `Report` holds numbers, never formatted text, so that the page, the Markdown file and the JSON file
cannot disagree. A value that is undefined is NaN or ``None`` here, ``null`` in JSON and a dash on paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Self, get_args

from frugalrec.errors import DataError
from frugalrec.reporting.facts import (
    AllocationFacts,
    DatasetFacts,
    Finding,
    SelectionFacts,
    TuningFacts,
    WeightFacts,
)

__all__ = [
    "AllocationFacts",
    "Arm",
    "ArmCost",
    "DatasetFacts",
    "DecileTable",
    "Difference",
    "Finding",
    "Interval",
    "Kind",
    "Report",
    "SelectionFacts",
    "StageCost",
    "TuningFacts",
    "WarmthRow",
    "WeightFacts",
]

FORMAT = 1
"""Version of the JSON layout."""

Kind = Literal["cheap", "llm", "fusion", "control"]
"""What an arm is: a classic model, the LLM alone, both combined, or a control."""


@dataclass(frozen=True)
class Interval:
    """A mean over users with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether mean and both ends are finite numbers."""
        return all(math.isfinite(value) for value in (self.mean, self.low, self.high))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`; ``null`` becomes NaN."""
        return cls(**{k: math.nan if v is None else v for k, v in _checked(cls, values).items()})


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference to the reference arm over the same users."""

    p: float = math.nan
    """Two-sided p value of no difference; NaN where no test was made."""


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What an arm costs: once to fit, and then for each user it ranks for."""

    fit_s: float | None = None
    """Seconds to fit or tune everything this arm needs."""
    ms_per_user: float | None = None
    """Milliseconds per user at inference."""
    tokens_per_user: float | None = None
    """LLM tokens per user at inference, in and out."""
    money_per_1000_users: float | None = None
    """Money per 1,000 users, in the report's currency; ``None`` where no price table was given."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`."""
        return cls(**_checked(cls, values))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the comparison: a model, a combination or a control."""

    name: str
    label: str
    kind: Kind
    description: str = ""
    users: int
    metrics: dict[str, Interval]
    difference: dict[str, Difference] | None = None
    """Metric -> paired difference against the reference; ``None`` for the reference itself."""
    cost: ArmCost = field(default_factory=ArmCost)
    oracle: bool = False
    """Whether the arm peeks at the answers, as an upper bound that nobody can reach."""

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in get_args(Kind):
            raise DataError(
                f"arm {self.name!r} has kind {self.kind!r}; use one of {', '.join(get_args(Kind))}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`."""
        given = _checked(cls, values)
        given["metrics"] = {k: Interval.from_dict(v) for k, v in given["metrics"].items()}
        if given.get("difference") is not None:
            given["difference"] = {k: Difference.from_dict(v) for k, v in given["difference"].items()}
        if "cost" in given:
            given["cost"] = ArmCost.from_dict(given["cost"])
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class DecileTable:
    """A metric by how active the user is: group 1 holds the least active users."""

    metric: str
    labels: tuple[str, ...]
    """One label a group, such as ``"5 to 7"`` interactions."""
    users: tuple[int, ...]
    """Users in each group."""
    arms: dict[str, tuple[Interval, ...]]
    """Arm name -> one interval a group."""

    def __post_init__(self) -> None:
        """Check that every arm has one value a group."""
        wrong = [name for name, row in self.arms.items() if len(row) != len(self.labels)]
        if wrong or len(self.users) != len(self.labels):
            raise DataError(
                f"the decile table has {len(self.labels)} groups, but another number of values for "
                f"{', '.join(wrong) or 'users'}; give one value a group"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`."""
        given = _checked(cls, values)
        arms = {name: tuple(Interval.from_dict(v) for v in row) for name, row in given["arms"].items()}
        return cls(
            metric=given["metric"], labels=tuple(given["labels"]), users=tuple(given["users"]), arms=arms
        )


@dataclass(frozen=True, kw_only=True)
class WarmthRow:
    """The primary metric of one arm on cold and on warm targets."""

    arm: str
    cold: Interval | None
    """On targets that were not in the training data."""
    warm: Interval | None
    cold_targets: int
    warm_targets: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`."""
        given = _checked(cls, values)
        for key in ("cold", "warm"):
            given[key] = None if given[key] is None else Interval.from_dict(given[key])
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of the pipeline spent."""

    name: str
    wall_s: float
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_trained: int = 0
    llm_calls: int = 0
    money: float | None = None
    reused: bool = False
    """Whether an earlier run's result was used; the cost is then that of the earlier run."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `Report.to_dict`."""
        return cls(**_checked(cls, values))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a reader needs to judge a run, and to repeat it."""

    title: str
    created: str
    """ISO 8601 time of the run."""
    command: str
    dataset: DatasetFacts
    primary: str
    """The metric that decides, for example ``"ndcg@10"``; larger is better."""
    reference: str
    """Name of the arm that the others are compared with."""
    arms: tuple[Arm, ...]
    confidence: float = 0.95
    deciles: DecileTable | None = None
    warmth: tuple[WarmthRow, ...] = ()
    audit: tuple[Finding, ...] = ()
    stages: tuple[StageCost, ...] = ()
    currency: str | None = None
    prices_as_of: str | None = None
    selection: SelectionFacts | None = None
    tuning: TuningFacts | None = None
    weights: WeightFacts | None = None
    allocation: AllocationFacts | None = None
    verdict: tuple[str, ...] = ()
    """Plain sentences, headline first; when empty, `reporting.verdict` derives them."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    config_yaml: str = ""

    def __post_init__(self) -> None:
        """Check that arm names are unique and every mention names an arm."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            double = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"two arms share the name {double[0]!r}; give every arm its own name")
        mentioned = [
            self.reference,
            *(row.arm for row in self.warmth),
            *(self.deciles.arms if self.deciles else ()),
        ]
        unknown = [name for name in mentioned if name not in names]
        if unknown:
            raise DataError(f"the report mentions {unknown[0]!r}, which is no arm; arms: {', '.join(names)}")

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`.

        Raises:
            DataError: If there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise DataError(f"no arm is called {name!r}; arms: {', '.join(arm.name for arm in self.arms)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, strings and finite numbers, ready for JSON."""
        return {"format": FORMAT, **_plain(self, "report")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a report from `to_dict`.

        Raises:
            DataError: If keys are missing or unknown, or the layout has another version.
        """
        given = dict(values)
        version = given.pop("format", None)
        if version != FORMAT:
            raise DataError(
                f"this report has format {version!r}, but this version reads {FORMAT}; write it again"
            )
        given = _checked(cls, given)
        given["arms"] = tuple(Arm.from_dict(arm) for arm in given["arms"])
        if given.get("deciles") is not None:
            given["deciles"] = DecileTable.from_dict(given["deciles"])
        given["warmth"] = tuple(WarmthRow.from_dict(row) for row in given.get("warmth", ()))
        given["stages"] = tuple(StageCost.from_dict(stage) for stage in given.get("stages", ()))
        for key in ("audit", "verdict", "notes"):
            given[key] = tuple(given.get(key, ()))
        return cls(**given)


def _checked(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as keyword arguments of `cls`, or say which key is wrong."""
    required = _required(cls)
    missing = [name for name in required if name not in values]
    unknown = [name for name in values if name not in {f.name for f in fields(cls)}]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has the unknown key {unknown[0]!r}"
        raise DataError(f"the report's {cls.__name__} {what}; write the report again with this version")
    return dict(values)


def _required(cls: type[Any]) -> list[str]:
    """Return the names of the fields without a default."""
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]


def _plain(value: Any, where: str) -> Any:
    """Return `value` as JSON can hold it; numbers that are not finite become ``None``."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), where)
    raise DataError(
        f"{where} holds a {type(value).__name__}, which JSON cannot keep; convert it to text or numbers"
    )
