"""What ways of grounding cost: tokens, seconds and floating-point operations a user, and wasted texts.

Several ways are measured in turn, user by user, so that a busy machine is busy for all of them. Wall-clock
time is what a user waits; CPU time hardly changes when other programs run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError, require
from frugalrec.grounding.base import Grounder, checked_users
from frugalrec.ledger import Usage
from frugalrec.types import IntArray, Ranking


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one way of grounding costs a user; means unless a quantile is named."""

    users: int
    """Users that were measured."""
    tokens_in: float
    """Tokens that the model read, copies included."""
    tokens_out: float
    """Tokens that it appended to prompts and read again: of each text all but the last."""
    p50_ms: float
    """Milliseconds of a call for one user, median."""
    p95_ms: float
    cpu_p50_ms: float
    """CPU milliseconds of a call for one user, all threads, median."""
    cpu_p95_ms: float
    batch_ms: float
    """Milliseconds a user in one call for all users."""
    batch_cpu_ms: float
    gflops: float | None
    """Billions of floating-point operations in matrix products and attention, 2 a multiply-add; None where
    they were not counted."""
    texts: float
    """Texts that were written freely; 0 where every text is an item's by construction."""
    invalid_rate: float
    """Share of these texts that are no item's."""
    duplicate_rate: float
    """Share of these texts that name an item once more."""
    listed: float
    """Items in the list."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        return asdict(self)


@dataclass
class _Record:
    """What is noted of one way while it is measured."""

    usage: Usage = field(default_factory=Usage)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    outputs: list[tuple[int, int, int]] = field(default_factory=list)
    listed: int = 0
    batch: tuple[float, float] = (0.0, 0.0)


def measure_grounders(
    grounders: Mapping[str, Grounder],
    histories: Dataset,
    users: NDArray[Any],
    k: int = 20,
    *,
    repeats: int = 1,
    flop_users: int = 2,
) -> dict[str, Cost]:
    """Return what each way of grounding costs on the same users.

    Each first serves one user unmeasured, for what is done once a model or catalogue.

    Args:
        grounders: Name -> way.
        histories: What is known of the users.
        users: User codes.
        k: List length.
        repeats: How often each user is served; the fastest counts, by wall clock and by CPU.
        flop_users: How many users' operations are counted, in calls that are not timed.
    """
    codes = checked_users(users, histories)
    if not codes.size or repeats < 1:
        raise DataError(f"costs need at least one user and one repeat, not {codes.size} and {repeats}.")
    records = {name: _Record() for name in grounders}
    for grounder in grounders.values():
        grounder.ground(histories, codes[:1], k)
    for user in codes:
        for name, grounder in grounders.items():
            _serve(grounder, histories, np.array([user], dtype=np.int32), k, repeats, records[name])
    for name, grounder in grounders.items():
        started = time.perf_counter(), time.process_time()
        grounder.ground(histories, codes, k)
        records[name].batch = time.perf_counter() - started[0], time.process_time() - started[1]
        for user in codes[:flop_users]:
            with counted_flops() as total:
                grounder.ground(histories, np.array([user], dtype=np.int32), k)
            records[name].flops.append(total())
    return {name: _cost(record, codes.size) for name, record in records.items()}


def _serve(
    grounder: Grounder, histories: Dataset, user: IntArray, k: int, repeats: int, record: _Record
) -> None:
    """Serve one user, and note what it took."""
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        ranking, usage = grounder.ground(histories, user, k)
        found.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    record.wall.append(min(wall for wall, _ in found))
    record.cpu.append(min(cpu for _, cpu in found))
    record.usage = record.usage + usage
    record.listed += _n_listed(ranking)
    outputs = getattr(grounder, "outputs", None)
    if outputs is not None:
        counts = (outputs.written, outputs.invalid, outputs.duplicate)
        record.outputs.append((int(counts[0].sum()), int(counts[1].sum()), int(counts[2].sum())))


def _cost(record: _Record, n: int) -> Cost:
    wall, cpu = 1e3 * np.array(record.wall), 1e3 * np.array(record.cpu)
    texts, invalid, duplicate = (sum(column) for column in zip((0, 0, 0), *record.outputs, strict=True))
    return Cost(
        users=n,
        tokens_in=record.usage.tokens_in / n,
        tokens_out=record.usage.tokens_out / n,
        p50_ms=float(np.quantile(wall, 0.5)),
        p95_ms=float(np.quantile(wall, 0.95)),
        cpu_p50_ms=float(np.quantile(cpu, 0.5)),
        cpu_p95_ms=float(np.quantile(cpu, 0.95)),
        batch_ms=1e3 * record.batch[0] / n,
        batch_cpu_ms=1e3 * record.batch[1] / n,
        gflops=float(np.mean(record.flops)) / 1e9 if record.flops else None,
        texts=texts / n,
        invalid_rate=invalid / max(1, texts),
        duplicate_rate=duplicate / max(1, texts),
        listed=record.listed / n,
    )


def _n_listed(ranking: Ranking) -> int:
    return int((ranking.items >= 0).sum())


@contextmanager
def counted_flops() -> Iterator[Any]:
    """Count the operations of a block's matrix products and attention; yields a function that tells them.

    Attention on a CPU, which torch's own counter passes over, is counted too.
    """
    torch = require("torch", "llm")
    from torch.utils.flop_counter import FlopCounterMode

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    with counter:
        yield counter.get_total_flops


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention, of shapes (b, heads, q or k, width)."""
    rows, heads, queries, width = query
    return int(2 * rows * heads * queries * key[2] * (width + value[3]))
