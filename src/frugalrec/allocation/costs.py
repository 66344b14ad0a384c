"""What asking the LLM about each user would cost, and budgets in the same units.

A user's cost is replicas * (tokens in * price + tokens out * price) * batch factor in money, or the plain
sum in tokens, calls or seconds. Prices come from a dated table (`frugalrec.ledger.Prices`); an unknown
price is an error, never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.alignment import positions
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import Prices, Usage
from frugalrec.types import DoubleArray, IntArray

Unit = Literal["users", "money", "tokens", "calls", "seconds"]
ROUNDING = 1e-12
"""Sums of floating-point costs may pass a budget by this share of it, and by no more."""

_SECONDS = {"s": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0}
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([kMB](?=\s))?\s*(%|[A-Za-z]+)")
"""A number, perhaps with a scale (1M tokens), and a unit; a currency may begin with M or B too."""


@dataclass(frozen=True, kw_only=True)
class UserCosts:
    """The price of each user in one unit."""

    users: IntArray
    """User codes, (n,)."""
    values: DoubleArray
    """(n,), finite and at least 0."""
    unit: Unit
    currency: str = ""
    """The currency of `money`."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.values.shape != self.users.shape:
            raise DataError(f"costs need one value a user, {self.users.shape}, not {self.values.shape}.")
        bad = ~(np.isfinite(self.values) & (self.values >= 0))
        if bad.any():
            raise DataError(
                f"the cost of user {int(self.users[bad][0])} is {self.values[bad][0]}; costs must be finite "
                f"numbers of at least 0."
            )

    @property
    def total(self) -> float:
        """Return what asking about everybody would cost."""
        return float(self.values.sum())

    def at(self, users: NDArray[Any]) -> UserCosts:
        """Return the costs of some users, in their order; an unknown user is an error."""
        rows = positions(self.users, users, "the table of costs")
        return UserCosts(
            users=self.users[rows], values=self.values[rows], unit=self.unit, currency=self.currency
        )


def one_each(users: NDArray[Any]) -> UserCosts:
    """Return costs of one a user, for budgets that count users."""
    codes = np.asarray(users, dtype=np.int32)
    return UserCosts(users=codes, values=np.ones(codes.size), unit="users")


def user_costs(
    users: NDArray[Any],
    unit: Unit,
    *,
    tokens_in: NDArray[Any] | float = 0,
    tokens_out: NDArray[Any] | float = 0,
    tokens_cached: NDArray[Any] | float = 0,
    calls: NDArray[Any] | float = 1,
    seconds: NDArray[Any] | float = 0,
    replicas: int = 1,
    prices: Prices | None = None,
    batch_factor: float = 1.0,
) -> UserCosts:
    """Return the cost of asking about each user.

    Args:
        users: User codes, (n,).
        unit: What to count.
        tokens_in: Prompt tokens of one replica, (n,) or the same for everybody.
        tokens_out: Answer tokens, likewise. For a hard cap give the most that a request may return.
        tokens_cached: Prompt tokens answered from a shared prefix, beside `tokens_in`.
        calls: Requests of one replica (a sliding window needs several).
        seconds: Seconds of one replica on the machine.
        replicas: Permutations asked for and merged.
        prices: Dated prices; needed for money, and for nothing else.
        batch_factor: Share of the price that batch processing costs, such as 0.5; money only.
    """
    if replicas < 1 or not 0 < batch_factor <= 1:
        raise ConfigError(
            f"replicas={replicas} must be at least 1 and batch_factor={batch_factor} above 0 and at most 1."
        )
    codes = np.asarray(users, dtype=np.int32)
    amounts = {
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_cached": tokens_cached,
        "llm_calls": calls,
        "wall_s": seconds,
    }
    each = {
        name: np.broadcast_to(np.asarray(value, dtype=np.float64), codes.shape)
        for name, value in amounts.items()
    }
    if unit == "money":
        if prices is None:
            raise ConfigError("a cost in money needs a dated price table; give prices, or count tokens.")
        one = sum((_rate(prices, name, value) * value for name, value in each.items()), np.zeros(codes.size))
        one = one * batch_factor
    elif unit in ("tokens", "calls", "seconds", "users"):
        parts = {
            "tokens": ("tokens_in", "tokens_out"),
            "calls": ("llm_calls",),
            "seconds": ("wall_s",),
            "users": (),
        }[unit]
        one = sum((each[name] for name in parts), np.zeros(codes.size))
    else:
        raise ConfigError(f"unknown unit {unit!r}; choose money, tokens, calls, seconds or users.")
    values = np.ones(codes.size) if unit == "users" else replicas * one
    currency = prices.currency if unit == "money" and prices is not None else ""
    return UserCosts(users=codes, values=values, unit=unit, currency=currency)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent."""

    kind: Literal["users", "money", "tokens", "calls", "seconds", "share", "unlimited"]
    amount: float = float("inf")
    """In users, units of the currency, tokens, calls or seconds; for `share`, a share of the all-LLM cost."""
    currency: str = ""

    def __post_init__(self) -> None:
        """Check the amount."""
        if not self.amount >= 0 or (self.kind == "share" and self.amount > 1):
            raise ConfigError(f"a budget must be at least 0 (and a share at most 100%); got {self}.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``300 users``, ``2.50 USD``, ``1M tokens``, ``500 calls``, ``600 s``, ``30%``, ``unlimited``.

        >>> Budget.parse("1.5M tokens").amount
        1500000.0
        >>> str(Budget.parse("30%"))
        '30% of the all-LLM cost'
        """
        word = text.strip()
        if word == "unlimited":
            return cls(kind="unlimited")
        match = _NUMBER.fullmatch(word)
        unit = match[3] if match else ""
        if match is None or (unit == "%" and match[2]):
            raise ConfigError(_unreadable(text))
        amount = float(match[1]) * _SCALES[match[2] or ""]
        if unit == "%":
            return cls(kind="share", amount=amount / 100)
        if unit in _SECONDS:
            return cls(kind="seconds", amount=amount * _SECONDS[unit])
        counted: dict[str, Literal["users", "tokens", "calls"]] = {
            "user": "users",
            "users": "users",
            "token": "tokens",
            "tokens": "tokens",
            "call": "calls",
            "calls": "calls",
        }
        if unit in counted:
            return cls(kind=counted[unit], amount=amount)
        if re.fullmatch(r"[A-Z]{3}", unit):
            return cls(kind="money", amount=amount, currency=unit)
        raise ConfigError(_unreadable(text))

    def limit(self, costs: UserCosts) -> float:
        """Return the budget in the unit of `costs`.

        Raises:
            ConfigError: If the two are in different units or currencies.
        """
        if self.kind == "unlimited":
            return float("inf")
        if self.kind == "share":
            return self.amount * costs.total
        if self.kind != costs.unit or self.currency != costs.currency:
            theirs = costs.currency or costs.unit
            raise ConfigError(
                f"the budget is {self}, but the costs are in {theirs}; give costs in the same unit, "
                f"or a budget such as 30%, which fits any."
            )
        return self.amount

    def __str__(self) -> str:
        """Return the budget in words."""
        if self.kind == "unlimited":
            return "unlimited"
        if self.kind == "share":
            return f"{100 * self.amount:g}% of the all-LLM cost"
        if self.kind == "money":
            return (
                f"{self.amount:.2f} {self.currency}"
                if self.amount >= 0.01
                else f"{self.amount:g} {self.currency}"
            )
        return f"{self.amount:,.10g} {'s' if self.kind == 'seconds' else self.kind}"


def _rate(prices: Prices, name: str, amounts: DoubleArray) -> float:
    """Return the price of one unit; the ledger refuses an unknown price of something that is used."""
    if not amounts.any() or name == "llm_calls":
        return 0.0
    million = Usage(wall_s=1e6) if name == "wall_s" else Usage(**{name: 1_000_000})
    return prices.money(million) / 1e6


def _unreadable(text: str) -> str:
    return (
        f"cannot read the budget {text!r}; write 300 users, 2.50 USD, 1M tokens, 500 calls, 600 s, 30% "
        f"(of what all users would cost) or unlimited."
    )
