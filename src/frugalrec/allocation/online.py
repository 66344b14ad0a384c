"""Users who come one by one: a price of the budget that follows what is spent.

A user is routed if the lower bound of the gain is above price * cost. The price rises when spending runs
ahead of the budget's even pace and falls when it lags (a dual ascent on the offline programme). Whatever
the price says, the budget is hard.
"""

from __future__ import annotations

import threading
from typing import Self

import numpy as np

from frugalrec.allocation.costs import ROUNDING, Budget, UserCosts
from frugalrec.allocation.gain import GainEstimate
from frugalrec.errors import ConfigError


class PriceController:
    """Decides user by user; safe to call from several threads."""

    def __init__(
        self, *, budget: float, horizon: int, price: float = 0.0, scale: float = 1.0, step: float = 0.05
    ) -> None:
        """Store the options.

        Args:
            budget: The most that may be spent, in the unit of the costs.
            horizon: Users expected while the budget lasts.
            price: The first price: gain that one unit of cost must bring.
            scale: A typical gain per cost; the price moves by `step` of it for one pace of spending.
            step: How fast the price follows.
        """
        if not (budget >= 0 and horizon >= 1 and price >= 0 and scale >= 0 and step >= 0):
            raise ConfigError(
                f"budget={budget}, price={price}, scale={scale} and step={step} must be at least 0 and "
                f"horizon={horizon} at least 1."
            )
        self.budget = budget
        self.horizon = horizon
        self.price = price
        self.scale = scale
        self.step = step
        self.spent = 0.0
        self.seen = 0
        self._lock = threading.Lock()

    @classmethod
    def calibrated(
        cls, estimate: GainEstimate, costs: UserCosts, budget: Budget, horizon: int, *, step: float = 0.05
    ) -> Self:
        """Start at the price at which the calibration users would spend their part of the budget.

        Args:
            estimate: Predicted gains of calibration users.
            costs: Their costs.
            budget: The budget for `horizon` users; a share is one of their expected all-LLM cost.
            horizon: Users expected while the budget lasts.
            step: How fast the price follows.
        """
        own = costs.at(estimate.users)
        per_user = own.total / max(own.users.size, 1)
        limit = budget.amount * per_user * horizon if budget.kind == "share" else budget.limit(own)
        lower = estimate.lower
        paid = (lower > 0) & (own.values > 0)
        rate = lower[paid] / own.values[paid]
        order = np.argsort(-rate)
        spending = np.cumsum(own.values[paid][order])
        pace = limit / horizon * own.users.size
        beyond = np.flatnonzero(spending > pace)
        price = float(rate[order][beyond[0]]) if beyond.size else 0.0
        return cls(
            budget=limit,
            horizon=horizon,
            price=price,
            scale=float(np.median(rate)) if rate.size else 1.0,
            step=step,
        )

    def decide(self, lower: float, cost: float) -> bool:
        """Return whether the next user gets the LLM, and reserve the cost if so.

        Args:
            lower: Lower bound of the user's gain.
            cost: The most that asking about the user can cost.
        """
        if not (np.isfinite(cost) and cost >= 0):
            raise ConfigError(f"a cost must be a finite number of at least 0, not {cost}.")
        with self._lock:
            fits = self.spent + cost <= self.budget * (1 + ROUNDING)
            routed = bool(fits and lower > 0 and lower > self.price * cost)
            spend = cost if routed else 0.0
            self.spent += spend
            self.seen += 1
            self._follow(spend)
            return routed

    def refund(self, amount: float) -> None:
        """Give back what a request did not use of its reservation."""
        with self._lock:
            if not 0 <= amount <= self.spent * (1 + ROUNDING):
                raise ConfigError(f"cannot give back {amount} of the {self.spent} reserved so far.")
            self.spent = max(self.spent - amount, 0.0)

    def _follow(self, spend: float) -> None:
        pace = self.budget / self.horizon
        if pace > 0 and np.isfinite(pace):
            self.price = max(0.0, self.price + self.step * self.scale * (spend - pace) / pace)
