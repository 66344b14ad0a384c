"""Cost accounting: seconds, memory, tokens and money, stage by stage.

`Usage` is a sum type of everything a stage can spend; `Ledger` collects one `Usage` a stage, from
the first surrogate epoch to the last served token. Money comes only from a dated price table that
the user supplies: an unknown price is an error, never 0.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from frugalrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one stage spent. Adds up field by field; peak memory takes the larger."""

    wall_s: float = 0.0
    """Wall-clock seconds."""
    cpu_s: float = 0.0
    """CPU seconds of this process, user and system."""
    peak_memory_bytes: int = 0
    """Peak resident memory of the process up to the end of the stage."""
    accelerator_s: float = 0.0
    """Seconds in which the stage held an accelerator."""
    tokens_in: int = 0
    """Prompt tokens that the LLM computed."""
    tokens_out: int = 0
    """Tokens that the LLM generated."""
    tokens_cached: int = 0
    """Prompt tokens that were asked for but answered from a shared prefix or a cache."""
    tokens_trained: int = 0
    """Prompt and answer tokens passed through forward and backward in tuning."""
    llm_calls: int = 0
    """Prompts sent to the LLM."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of both."""
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        summed["peak_memory_bytes"] = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Usage(**summed)

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a `Usage` from `to_dict`."""
        return cls(**values)


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """Collects what happens inside one measured block; read `usage` after the block."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, usage: Usage) -> None:
        """Add tokens, calls or accelerator seconds reported by a model."""
        self.usage = self.usage + usage

    def add_tokens(self, *, trained: int) -> None:
        """Add tokens that passed through training."""
        self.add(Usage(tokens_trained=trained))


@contextmanager
def measure() -> Iterator[Meter]:
    """Measure wall and CPU seconds and peak memory of a block.

    The block may `Meter.add` token counts; wall and CPU seconds are always those of the block, so
    that seconds a model reports about itself are not counted twice.
    """
    meter = Meter()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield meter
    finally:
        meter.usage = replace(
            meter.usage,
            wall_s=time.perf_counter() - wall,
            cpu_s=time.process_time() - cpu,
            peak_memory_bytes=peak_memory_bytes(),
        )


@dataclass(frozen=True, kw_only=True)
class Prices:
    """A dated price table for one model or machine, supplied by the user.

    Prices are in `currency`. A price that is ``None`` is unknown: money that would need it cannot
    be computed.
    """

    as_of: str
    """The date of the prices, ``YYYY-MM-DD``; printed beside every amount."""
    currency: str = "USD"
    per_million_tokens_in: float | None = None
    per_million_tokens_out: float | None = None
    per_million_tokens_cached: float | None = None
    per_machine_hour: float | None = None
    """What an hour of the machine costs; multiplied by wall seconds."""

    def money(self, usage: Usage) -> float:
        """Return what `usage` costs, in `currency`.

        Raises:
            ConfigError: If a price that `usage` needs is unknown.
        """
        parts: list[tuple[str, float, float]] = [
            ("per_million_tokens_in", usage.tokens_in, 1e6),
            ("per_million_tokens_out", usage.tokens_out, 1e6),
            ("per_million_tokens_cached", usage.tokens_cached, 1e6),
        ]
        if self.per_machine_hour is not None:
            # An owned or rented machine: tokens carry no price of their own unless one is given.
            parts = [part for part in parts if getattr(self, part[0]) is not None]
            parts.append(("per_machine_hour", usage.wall_s, 3600.0))
        total = 0.0
        for name, amount, unit in parts:
            price = getattr(self, name)
            if amount and price is None:
                raise ConfigError(
                    f"the price table of {self.as_of} has no {name}, but {amount} units were used. "
                    f"Add {name} to the price table; an unknown price is never taken as 0."
                )
            total += amount / unit * (price or 0.0)
        return total


@dataclass
class Ledger:
    """One `Usage` a stage, in the order in which the stages ran."""

    stages: dict[str, Usage] = field(default_factory=dict)

    def record(self, stage: str, usage: Usage) -> None:
        """Add `usage` to what `stage` has spent so far."""
        self.stages[stage] = self.stages.get(stage, Usage()) + usage

    @property
    def total(self) -> Usage:
        """Return the sum over all stages."""
        return sum(self.stages.values(), Usage())

    def to_dict(self) -> dict[str, dict[str, float | int]]:
        """Return stage -> fields, ready for JSON."""
        return {name: usage.to_dict() for name, usage in self.stages.items()}

    @classmethod
    def from_dict(cls, stages: Mapping[str, Mapping[str, Any]]) -> Self:
        """Rebuild a ledger from `to_dict`."""
        return cls({name: Usage.from_dict(values) for name, values in stages.items()})
