"""Token buckets, and a pause for all: no more a minute than an endpoint allows, and none while it says so."""

from __future__ import annotations

import threading

from frugalrec.llm.http.clock import Clock


class Bucket:
    """A debt bucket: who takes more than is there learns how long to wait, and is served in that order.

    A tenth may come at once, the rest flows in evenly; so no 60 seconds let more than `per_minute`
    through, as long as no single request takes more than that tenth.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.clock = clock
        self.burst = max(1.0, per_minute / 10)
        self.rate = max(per_minute - self.burst, per_minute / 2) / 60
        self._level = self.burst
        self._filled = clock.monotonic()
        self._lock = threading.Lock()

    def take(self, amount: float) -> float:
        """Take `amount` out, into debt if need be; return the seconds to wait before using it."""
        with self._lock:
            now = self.clock.monotonic()
            self._level = min(self.burst, self._level + (now - self._filled) * self.rate)
            self._filled = now
            self._level -= amount
            return max(0.0, -self._level / self.rate)

    def give_back(self, amount: float) -> None:
        """Put back what was taken but not used."""
        with self._lock:
            self._level = min(self.burst, self._level + amount)


class Limits:
    """The buckets and pauses of one endpoint; None sets no limit."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._clock = clock
        self._held_until = clock.monotonic()
        self._held_in_vain_s = 0.0

    def hold(self, seconds: float, *, at_most_s: float) -> bool:
        """Let nobody through for so long: one request was told to come back later, and so would others.

        Returns:
            Whether that was done. False, and nobody waits, if the pauses since the last answer would
            then reach `at_most_s`: an endpoint that only ever puts off is as good as dead.
        """
        before = max(self._held_until, self._clock.monotonic())
        longer = max(0.0, self._clock.monotonic() + seconds - before)
        if self._held_in_vain_s + longer >= at_most_s:
            return False
        self._held_in_vain_s += longer
        self._held_until = before + longer
        return True

    def answered(self) -> None:
        """Note that waiting was not in vain."""
        self._held_in_vain_s = 0.0

    @property
    def held_s(self) -> float:
        """Seconds until requests are let through again."""
        return max(0.0, self._held_until - self._clock.monotonic())

    def take(self, tokens: int) -> float:
        """Take one request of `tokens`; return the seconds to wait before sending it."""
        first = self._requests.take(1) if self._requests else 0.0
        return max(first, self._tokens.take(tokens) if self._tokens else 0.0)

    def give_back(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Put back what was not used."""
        if self._requests and requests:
            self._requests.give_back(requests)
        if self._tokens and tokens:
            self._tokens.give_back(tokens)
