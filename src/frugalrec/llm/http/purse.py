"""The purse that a run's workers share: who finds too little in it waits for those whose change is due."""

from __future__ import annotations

import asyncio
import sqlite3

from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.journal import Journal, Operation
from frugalrec.llm.http.retrying import GaveUpError
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
        self._asking = 0
        self._in_flight = 0
        self._settlements = 0
        self._news = asyncio.Event()

    async def reserve(self, key: str, size: Size, seconds: float) -> int:
        """Return the number of a new attempt, for which the most it can cost is set aside.

        Raises:
            GaveUpError: If there is too little left, and nobody in flight who might give some back.
        """

        def operation(connection: sqlite3.Connection) -> int | None:
            return self.spending.reserve(
                connection, key=key, size=size, seconds=seconds, now=self.clock.time()
            )

        while True:
            settlements = self._settlements
            number = await self._try(operation)
            if number is not None:
                return number
            while self._settlements == settlements:
                if self._asking + self._in_flight == 0:
                    raise GaveUpError("over-budget", "the answer might cost more than is left")
                await self._news.wait()

    async def settle(self, operation: Operation[bool]) -> bool:
        """Write down what an attempt cost, and let those know who wait for its change."""
        try:
            return await self.journal.write(operation)
        finally:
            self._in_flight -= 1
            self._settlements += 1
            self._tell()

    async def _try(self, operation: Operation[int | None]) -> int | None:
        self._asking += 1
        number = None
        try:
            number = await self.journal.write(operation)
        finally:
            self._asking -= 1
            if number is not None:
                self._in_flight += 1
            elif self._asking + self._in_flight == 0:
                self._tell()
        return number

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
