"""What some requests would cost before anything is spent, and what a file says was spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frugalrec.errors import StorageError
from frugalrec.ledger import Usage
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.spending import SCALE, Size, Spending, money, most, total

if TYPE_CHECKING:
    from frugalrec.llm.http.endpoint import CallPolicy


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What it would cost to answer some requests."""

    requests: int
    cached: int
    """Requests that are answered already, or equal to another one; they cost nothing."""
    likely: Usage
    """One attempt each, prompts estimated, answers as long as they may be."""
    most: Usage
    """All attempts of all requests at their bounds; no run can cost more."""
    likely_money: float | None = None
    """None without a price table."""
    most_money: float | None = None
    currency: str | None = None
    prices_as_of: str | None = None
    left: float | None = None
    """What the cap leaves, in its unit; None without a cap."""
    unit: str | None = None

    @property
    def fits(self) -> bool:
        """Whether every request can be answered for sure, even if all but the last attempts fail."""
        if self.left is None:
            return True
        needed = {
            "calls": self.most.llm_calls,
            "tokens": self.most.tokens_in + self.most.tokens_out,
            "seconds": self.most.wall_s,
            "money": self.most_money,
        }
        amount = needed[str(self.unit)]
        return amount is not None and amount <= self.left


def plan(
    sizes: Sequence[Size], n_requests: int, spending: Spending, policy: CallPolicy, journal: Journal
) -> DryRun:
    """Return the cost of requests of these sizes; `n_requests` counts those that are answered as well.

    Raises:
        ConfigError: If a price table is given but lacks a price.
    """
    spending.check()
    bounds = [most(size, policy.timeout_s) for size in sizes]
    one = sum(bounds, Usage())
    likely = Usage(
        tokens_in=sum(size.likely_in for size in sizes), tokens_out=one.tokens_out, llm_calls=len(sizes)
    )
    every = Usage(
        tokens_in=one.tokens_in * policy.attempts,
        tokens_out=one.tokens_out * policy.attempts,
        llm_calls=len(sizes) * policy.attempts,
        wall_s=min(one.wall_s * policy.attempts, len(sizes) * policy.deadline_s),
    )
    prices, cap = spending.prices, spending.cap
    return DryRun(
        requests=n_requests,
        cached=n_requests - len(sizes),
        likely=likely,
        most=every,
        likely_money=None if prices is None else money(prices, likely),
        most_money=None if prices is None else money(prices, every),
        currency=None if prices is None else prices.currency,
        prices_as_of=None if prices is None else prices.as_of,
        left=journal.run(spending.left),
        unit=None if cap is None else cap.unit,
    )


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What all attempts in a file have cost. What an endpoint did not say counts at its upper bound."""

    calls: int
    tokens: int
    seconds: float
    """Of all requests together; they overlap."""
    money: float | None
    """None if any attempt had no price."""
    currency: str | None
    open_attempts: int
    """Attempts whose outcome is unknown, since a run was killed; they count in full."""
    tokens_in: int
    """Prompt tokens as reports show them: what the endpoint said, else the own estimate."""
    tokens_out: int
    estimated_in: int
    """Own estimate of the prompts' tokens, over all attempts..."""
    estimated_out: int
    reported_in: int
    """...beside what the endpoint said, where it did."""
    reported_out: int
    unreported: int
    """Attempts that may have been computed, and for which it did not say."""


def spent(file: Path) -> Spent:
    """Read what was spent out of the SQLite file of an endpoint.

    Raises:
        StorageError: If there is no such file.
    """
    if not file.exists():
        raise StorageError(f"there is no file of answers and spending at {file}; nothing was spent there.")
    with Journal(file) as journal:
        return journal.run(_read)


def _read(connection: sqlite3.Connection) -> Spent:
    sums = connection.execute(
        "SELECT ifnull(sum(estimated_in), 0), ifnull(sum(estimated_out), 0), ifnull(sum(reported_in), 0),"
        " ifnull(sum(reported_out), 0), ifnull(sum(reported_in IS NULL OR reported_out IS NULL), 0),"
        " ifnull(sum(outcome = 'open'), 0), ifnull(sum(ifnull(reported_in, estimated_in)), 0),"
        " ifnull(sum(ifnull(reported_out, estimated_out)), 0) FROM chat_attempts"
    ).fetchone()
    fact = connection.execute("SELECT value FROM chat_facts WHERE name = 'currency'").fetchone()
    unpriced = total(connection, "unpriced") > 0
    return Spent(
        calls=total(connection, "calls"),
        tokens=total(connection, "tokens"),
        seconds=total(connection, "seconds") / SCALE["seconds"],
        money=None if unpriced else total(connection, "money") / SCALE["money"],
        currency=None if fact is None else str(fact[0]),
        estimated_in=sums[0],
        estimated_out=sums[1],
        reported_in=sums[2],
        reported_out=sums[3],
        unreported=sums[4],
        open_attempts=sums[5],
        tokens_in=sums[6],
        tokens_out=sums[7],
    )
