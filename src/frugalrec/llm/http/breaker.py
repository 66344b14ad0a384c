"""Circuit breaker: an endpoint that only fails is left alone for a while, then tried with one request."""

from __future__ import annotations

import threading
from typing import Literal

from frugalrec.llm.http.clock import Clock

State = Literal["closed", "open", "half-open"]
Ticket = Literal["pass", "trial"]


class Breaker:
    """Opens after some failures in a row; after a rest, one request at a time may try the endpoint."""

    def __init__(self, failures_until_open: int, rest_s: float, clock: Clock) -> None:
        self.failures_until_open = failures_until_open
        self.rest_s = rest_s
        self.clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._trying = False
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """`closed` lets everything through, `open` nothing, `half-open` one request at a time."""
        if self._opened is None:
            return "closed"
        return "half-open" if self.clock.monotonic() - self._opened >= self.rest_s else "open"

    def enter(self) -> Ticket | None:
        """Ask to send a request; who gets a ticket must `leave` with it."""
        with self._lock:
            state = self.state
            if state == "half-open" and not self._trying:
                self._trying = True
                return "trial"
            return "pass" if state == "closed" else None

    def leave(self, ticket: Ticket, alive: bool | None) -> None:
        """Say whether the endpoint was alive; None if the request never got so far."""
        with self._lock:
            if ticket == "trial":
                self._trying = False
            if alive:
                self._failures, self._opened = 0, None
            elif alive is not None:
                self._failures += 1
                if self._failures >= self.failures_until_open:
                    self._opened = self.clock.monotonic()
