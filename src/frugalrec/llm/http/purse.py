"""The purse that a run's workers share: who finds too little in it waits for those whose change is due."""

from __future__ import annotations

import asyncio
import sqlite3

from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.journal import Journal, Operation
from frugalrec.llm.http.retrying import GaveUpError, Patience
from frugalrec.llm.http.spending import Size, Spending


class Purse:
    """Reserves and settles in the journal; lives in one event loop.

    Reservations are bounds, and bounds are several times what most attempts cost. Near the cap, a
    request turned away while others are in flight might have had room a moment later.
    """

    def __init__(self, spending: Spending, journal: Journal, clock: Clock) -> None:
        self.spending = spending
        self.journal = journal
        self.clock = clock
        self._in_flight = 0
        self._settlements = 0
        self._news = asyncio.Event()

    async def reserve(self, key: str, size: Size, patience: Patience) -> int:
        """Return the number of a new attempt, for which the most it can cost is set aside.

        The journal does one thing after the other and tells of it in that order. So whoever is refused
        while nobody is in flight has seen every settlement, and knows that there is too little.

        Raises:
            GaveUpError: If there is too little left, and nobody in flight who might give some back in time.
        """
        while True:
            settlements = self._settlements
            number = await self._try(key, size, patience.attempt_s)
            if number is not None:
                self._in_flight += 1
                return number
            if not self._in_flight:
                raise GaveUpError("over-budget", "the answer might cost more than is left")
            if self._settlements == settlements:
                await self._change(patience.left_s)

    async def settle(self, operation: Operation[bool]) -> bool:
        """Write down what an attempt cost, and let those know who wait for its change."""
        try:
            return await self.journal.write(operation)
        finally:
            self._in_flight -= 1
            self._settlements += 1
            self._news.set()
            self._news = asyncio.Event()

    async def _try(self, key: str, size: Size, seconds: float) -> int | None:
        now = self.clock.time()

        def operation(connection: sqlite3.Connection) -> int | None:
            return self.spending.reserve(connection, key=key, size=size, seconds=seconds, now=now)

        return await self.journal.write(operation)

    async def _change(self, seconds: float) -> None:
        """Wait for the next settlement; only here, since a reservation cut short would stay open for ever."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            why = "what was left was set aside for others until it was too late"
            raise GaveUpError("deadline", why) from None
