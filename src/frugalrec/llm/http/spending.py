"""A cap that nothing passes: every attempt reserves the most it can cost, and settles to what it did.

Amounts are kept in one SQLite file and as whole numbers, so that workers, processes and killed runs
share one sum that neither drifts nor forgets. An attempt of unknown outcome counts in full.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from frugalrec.errors import ConfigError
from frugalrec.ledger import Prices, Usage
from frugalrec.llm.http.replies import Reply

Unit = Literal["calls", "tokens", "seconds", "money"]
SCALE: Mapping[Unit, int] = {"calls": 1, "tokens": 1, "seconds": 10**9, "money": 10**9}
"""Whole numbers a unit: seconds and money are kept in billionths, rounded up."""
BYTES_PER_TOKEN = 4
"""Of English text, about; for estimates."""
FRAME_TOKENS = 256
"""More than chat templates add to a prompt; for bounds."""


@dataclass(frozen=True, kw_only=True)
class SpendCap:
    """What all attempts recorded in a file may cost together, earlier runs included."""

    limit: float
    unit: Unit
    """`calls` (attempts), `tokens` (in and out), `seconds` (of every request; they overlap) or `money`."""

    def __post_init__(self) -> None:
        """Check the limit."""
        if self.unit not in get_args(Unit):
            raise ConfigError(f"a cap is in {', '.join(get_args(Unit))}, not in {self.unit!r}.")
        if not 0 <= self.limit < math.inf:
            raise ConfigError(f"a cap must be a number of {self.unit} from 0 on, not {self.limit}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How many tokens a request takes, as far as can be said before it is sent."""

    likely_in: int
    """Estimate of the prompt's tokens."""
    most_in: int
    """No tokenizer makes more of the prompt: a token holds at least one byte."""
    most_out: int
    """The answer's limit."""


def size_of(
    texts: Sequence[str],
    max_tokens: int,
    schema: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Size:
    """Return the size of a prompt made of some messages.

    Args:
        texts: The messages.
        max_tokens: The answer's limit.
        schema: Is perhaps shown to the model.
        extra: Further fields of the body; some, such as ``tools``, are part of the prompt.
    """
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    shown = 0 if schema is None else len(json.dumps(schema))
    # Chat templates write tools out with blanks before each line.
    shown += len(json.dumps(dict(extra), indent=4)) if extra else 0
    likely = likely_tokens(n_bytes) + 4 * len(texts) + 3
    return Size(likely_in=likely, most_in=n_bytes + shown + FRAME_TOKENS, most_out=max_tokens)


def likely_tokens(n_bytes: int) -> int:
    """Return about how many tokens a text of so many bytes has."""
    return -(-n_bytes // BYTES_PER_TOKEN)


def most(size: Size, seconds: float) -> Usage:
    """Return the most that one attempt can spend."""
    return Usage(tokens_in=size.most_in, tokens_out=size.most_out, wall_s=seconds, llm_calls=1)


def counted(size: Size, reply: Reply | None, seconds: float) -> Usage:
    """Return what counts against the cap: what the endpoint says, and the bound for what it does not say."""
    reply = reply or Reply()
    tokens_in = size.most_in if reply.tokens_in is None else reply.tokens_in
    return Usage(
        tokens_in=tokens_in - reply.tokens_cached,
        tokens_cached=reply.tokens_cached,
        tokens_out=size.most_out if reply.tokens_out is None else reply.tokens_out,
        wall_s=seconds,
        llm_calls=1,
    )


def reported(size: Size, reply: Reply | None, seconds: float) -> Usage:
    """Return what reports show: what the endpoint says, and an estimate of what it does not say."""
    reply = reply or Reply()
    tokens_in = size.likely_in if reply.tokens_in is None else reply.tokens_in
    return Usage(
        tokens_in=tokens_in - reply.tokens_cached,
        tokens_cached=reply.tokens_cached,
        tokens_out=estimated_out(size, reply) if reply.tokens_out is None else reply.tokens_out,
        wall_s=seconds,
        llm_calls=1,
    )


def estimated_out(size: Size, reply: Reply | None) -> int:
    """Return the own estimate of an answer's tokens: from its text, else as many as it may have."""
    if reply is None or reply.text is None:
        return size.most_out
    return min(size.most_out, likely_tokens(len(reply.text.encode("utf-8", "replace"))))


def money(prices: Prices, usage: Usage) -> float:
    """Return what usage costs; cached tokens count in full where they have no price of their own."""
    if prices.per_million_tokens_cached is None:
        whole = usage.tokens_in + usage.tokens_cached
        usage = Usage(tokens_in=whole, tokens_out=usage.tokens_out, wall_s=usage.wall_s)
    return prices.money(usage)


@dataclass(frozen=True, kw_only=True)
class Spending:
    """The account of one endpoint in a journal; its methods are operations of the journal."""

    prices: Prices | None = None
    cap: SpendCap | None = None

    def check(self) -> None:
        """Refuse a cap in money, or a price table, that could not price an attempt.

        Raises:
            ConfigError: Before anything is spent.
        """
        if self.prices is not None:
            money(self.prices, Usage(tokens_in=1, tokens_out=1, wall_s=1.0))
        elif self.cap is not None and self.cap.unit == "money":
            raise ConfigError(
                "a cap in money needs a price table. Add prices, or set the cap in tokens, calls or seconds."
            )

    def amounts(self, usage: Usage) -> dict[str, int | None]:
        """Return usage in every unit, as whole numbers rounded up; money is None where unknown."""
        cost = None if self.prices is None else money(self.prices, usage)
        return {
            "calls": usage.llm_calls,
            "tokens": usage.tokens_in + usage.tokens_out + usage.tokens_cached,
            "seconds": math.ceil(usage.wall_s * SCALE["seconds"]),
            "money": None if cost is None else math.ceil(cost * SCALE["money"]),
        }

    def reserve(
        self, connection: sqlite3.Connection, *, key: str, size: Size, seconds: float, now: float
    ) -> int | None:
        """Open an attempt at the most it can cost; return its number, or None if the cap has no room."""
        most_it_costs = self.amounts(most(size, seconds))
        left = self._left(connection)
        if self.cap is not None and left is not None and left < (most_it_costs[self.cap.unit] or 0):
            return None
        row = (key, now, *most_it_costs.values(), size.likely_in, size.most_out)
        done = connection.execute(
            "INSERT INTO chat_attempts (key, started, outcome, calls, tokens, nanoseconds, nanomoney,"
            " estimated_in, estimated_out) VALUES (?, ?, 'open', ?, ?, ?, ?, ?, ?)",
            row,
        )
        _add(connection, {**most_it_costs, "unpriced": int(most_it_costs["money"] is None)})
        return done.lastrowid

    def settle(
        self,
        connection: sqlite3.Connection,
        number: int,
        *,
        usage: Usage,
        outcome: str,
        estimated: int,
        reply: Reply | None,
    ) -> bool:
        """Close an attempt at what it cost; return whether its tokens were within those reserved."""
        columns = "calls, tokens, nanoseconds, nanomoney"
        query = f"SELECT {columns} FROM chat_attempts WHERE id = ?"
        before = connection.execute(query, (number,)).fetchone()
        after = self.amounts(usage)
        reply = reply or Reply()
        said = (reply.tokens_in, reply.tokens_out, reply.tokens_cached)
        connection.execute(
            "UPDATE chat_attempts SET calls = ?, tokens = ?, nanoseconds = ?, nanomoney = ?, outcome = ?,"
            " estimated_out = ?, reported_in = ?, reported_out = ?, reported_cached = ? WHERE id = ?",
            (*after.values(), outcome, estimated, *said, number),
        )
        change: dict[str, int | None] = {
            u: (a or 0) - (b or 0) for (u, a), b in zip(after.items(), before, strict=True)
        }
        never_sent = after["money"] is None and not after["calls"]
        _add(connection, {**change, "unpriced": -int(never_sent)})
        return (change["tokens"] or 0) <= 0

    def record(
        self, connection: sqlite3.Connection, *, key: str, size: Size, reply: Reply, outcome: str, now: float
    ) -> None:
        """Write down an attempt that was made elsewhere, whatever the cap says."""
        number = replace(self, cap=None).reserve(connection, key=key, size=size, seconds=0.0, now=now)
        if number is not None:
            usage, estimated = counted(size, reply, 0.0), estimated_out(size, reply)
            self.settle(connection, number, usage=usage, outcome=outcome, estimated=estimated, reply=reply)

    def left(self, connection: sqlite3.Connection) -> float | None:
        """Return what the cap leaves, in its unit; None without a cap."""
        left = self._left(connection)
        return None if left is None or self.cap is None else left / SCALE[self.cap.unit]

    def _left(self, connection: sqlite3.Connection) -> int | None:
        if self.prices is not None:
            _check_currency(connection, self.prices.currency)
        if self.cap is None:
            return None
        unpriced = total(connection, "unpriced")
        if self.cap.unit == "money" and unpriced:
            raise ConfigError(
                f"the file holds {unpriced} attempts without a price, so what is left of a cap in money is "
                f"unknown. Take a new file, or set the cap in tokens."
            )
        return math.floor(self.cap.limit * SCALE[self.cap.unit]) - total(connection, self.cap.unit)


def total(connection: sqlite3.Connection, unit: Unit | Literal["unpriced"]) -> int:
    """Return the sum over all attempts, as a whole number; `unpriced` counts those of unknown price."""
    found = connection.execute("SELECT amount FROM chat_totals WHERE unit = ?", (unit,)).fetchone()
    return 0 if found is None else int(found[0])


def _add(connection: sqlite3.Connection, amounts: Mapping[str, int | None]) -> None:
    query = (
        "INSERT INTO chat_totals VALUES (?, ?)"
        " ON CONFLICT (unit) DO UPDATE SET amount = amount + excluded.amount"
    )
    connection.executemany(query, [(unit, amount or 0) for unit, amount in amounts.items()])


def _check_currency(connection: sqlite3.Connection, currency: str) -> None:
    connection.execute("INSERT OR IGNORE INTO chat_facts VALUES ('currency', ?)", (currency,))
    (held,) = connection.execute("SELECT value FROM chat_facts WHERE name = 'currency'").fetchone()
    if held != currency:
        raise ConfigError(f"the file counts in {held}, the price table in {currency}. Take a new file.")
