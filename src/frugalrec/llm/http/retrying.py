"""The one layer that retries: full jitter, Retry-After, a deadline and a common budget of retries."""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from frugalrec.llm.chat import Reason
from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.endpoint import CallPolicy

T = TypeVar("T")


class GaveUpError(Exception):
    """No answer, and no point in another attempt."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class TryAgainError(Exception):
    """No answer, but another attempt may bring one."""

    def __init__(self, detail: str, *, after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.after_s = after_s
        """What the endpoint asked to wait, in seconds."""


class RetryBudget:
    """Requests pay in, retries draw out: when everything fails, load grows by a bounded share only."""

    def __init__(self, per_request: float, spare: int) -> None:
        self.per_request = per_request
        self.most = 10.0 * spare
        self._balance = float(spare)
        self._lock = threading.Lock()

    def pay_in(self) -> None:
        """Count one request."""
        with self._lock:
            self._balance = min(self.most, self._balance + self.per_request)

    def draw(self) -> bool:
        """Return whether one more retry is within the budget, and count it."""
        with self._lock:
            if self._balance < 1:
                return False
            self._balance -= 1
            return True


def retry_after_s(value: str | None, now: float) -> float | None:
    """Return the seconds a Retry-After header asks for, given as seconds or as a date; None if neither.

    Args:
        value: The header.
        now: Seconds since 1970, for dates.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


class Patience:
    """How long one request goes on."""

    def __init__(self, policy: CallPolicy, budget: RetryBudget, clock: Clock) -> None:
        self.policy = policy
        self.budget = budget
        self.clock = clock
        self.started: float | None = None
        """When the first attempt began; None before."""
        self._jitter = wait_random_exponential(multiplier=policy.backoff_s, max=policy.longest_backoff_s)
        self._stopped_for: tuple[Reason, str] = ("unavailable", "")

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; all of them before the first attempt."""
        spent = 0.0 if self.started is None else self.clock.monotonic() - self.started
        return self.policy.deadline_s - spent

    @property
    def attempt_s(self) -> float:
        """Seconds that an attempt which begins now may take."""
        return min(self.policy.timeout_s, max(self.left_s, 0.001))

    @property
    def jitter_s(self) -> float:
        """Seconds, drawn anew each time, by which those who wait for the same moment come apart."""
        return random.uniform(0.0, min(self.policy.backoff_s, self.policy.longest_backoff_s))

    @property
    def spent_s(self) -> float:
        """Seconds since the first attempt began."""
        return 0.0 if self.started is None else self.clock.monotonic() - self.started

    async def through(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt until there is a result.

        Raises:
            GaveUpError: If there is none.
        """
        retrying = AsyncRetrying(
            sleep=self.clock.sleep,
            wait=self._wait,
            stop=self._stop,
            retry=retry_if_exception_type(TryAgainError),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except TryAgainError as error:
            reason, why = self._stopped_for
            raise GaveUpError(reason, f"{error.detail}; {why}") from None

    def _wait(self, state: RetryCallState) -> float:
        """Full jitter; on top of what the endpoint asked for, so that not all come back at once."""
        return (_asked(state) or 0.0) + self._jitter(state)

    def _stop(self, state: RetryCallState) -> bool:
        if state.attempt_number >= self.policy.attempts:
            self._stopped_for = ("unavailable", f"attempt {state.attempt_number} was the last")
        elif state.upcoming_sleep >= self.left_s:
            self._stopped_for = ("deadline", f"the next attempt would pass {self.policy.deadline_s:g} s")
        elif _asked(state) is None and not self.budget.draw():
            self._stopped_for = ("unavailable", "the budget of retries is used up")
        else:
            return False
        return True


def _asked(state: RetryCallState) -> float | None:
    """Return what the endpoint asked to wait; who comes back when asked to adds no load of his own."""
    error = state.outcome.exception() if state.outcome else None
    return error.after_s if isinstance(error, TryAgainError) else None
