"""One attempt: wait for the turn, reserve, send, read, settle; then words, another try, or the end."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import httpx

from frugalrec.ledger import Usage
from frugalrec.llm.http import store
from frugalrec.llm.http.breaker import Breaker
from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.endpoint import CallPolicy, Endpoint
from frugalrec.llm.http.limits import Limits
from frugalrec.llm.http.purse import Purse
from frugalrec.llm.http.replies import Reply, error_code, read_reply
from frugalrec.llm.http.retrying import GaveUpError, Patience, TryAgainError, retry_after_s
from frugalrec.llm.http.spending import Size, counted, estimated_out, reported

log = logging.getLogger(__name__)

CONNECT_S = 10.0
ERROR_BYTES = 1 << 16
"""As much of an error's body as is looked at."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
OF_THE_LINE = (httpx.HTTPError, httpx.StreamError, OSError, EOFError)
SHORTEST_SECRET = 8
"""A shorter key, such as the "none" that local servers are given, is no secret but may be part of a word."""
HOPELESS = (401, 403, 404)
"""Refusals that the next request would meet as well."""


def words(reply: Reply) -> str | None:
    """Return the model's words."""
    return reply.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What is sent."""

    path: str
    body: bytes
    key: str
    """Hash of the question; the only thing about it that is written down."""
    size: Size
    kept: Callable[[Reply], str | None] = words
    """What of a reply is stored under the key; None stores nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What came back."""

    kind: Literal["never-sent", "lost", "status", "reply"]
    detail: str = ""
    status: int = 0
    after_s: float | None = None
    reply: Reply | None = None
    seconds: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether the next request may fare better; replies without words are paid for in vain."""
        if self.kind == "status":
            return 300 <= self.status < 500 and self.status not in (408, *HOPELESS)
        return self.reply is not None and self.reply.text is not None

    @property
    def free(self) -> bool:
        """Whether nothing was computed: the request did not get there, or was turned away.

        A 2xx that is not 200 was computed: a proxy on the way may answer 203 to what was billed.
        """
        turned_away = self.kind == "status" and 300 <= self.status < 500 and self.status != 408
        return turned_away or self.kind == "never-sent"

    def usage(self, size: Size, *, for_cap: bool) -> Usage:
        """Return what it cost; the cap counts what is unknown at its bound, reports estimate it."""
        if self.free:
            return Usage(wall_s=self.seconds, llm_calls=int(self.kind != "never-sent"))
        return (counted if for_cap else reported)(size, self.reply, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What a worker's attempts share."""

    endpoint: Endpoint
    policy: CallPolicy
    purse: Purse
    limits: Limits
    breaker: Breaker
    clock: Clock
    http: httpx.AsyncClient

    async def once(self, call: Call, patience: Patience, spent: list[Usage]) -> Reply:
        """Attempt once, and append to `spent` what it cost.

        Raises:
            TryAgainError: If another attempt may bring an answer.
            GaveUpError: If none will.
        """
        await self._turn(call, patience)
        ticket = self.breaker.enter()
        if ticket is None:
            self._not_sent(call)
            raise GaveUpError("unavailable", "the endpoint only failed, and is left alone for a while")
        alive: bool | None = None
        try:
            number = await self.purse.reserve(call.key, call.size, patience)
            # It may have waited for others' change: only now is it known how much time is left.
            exchange = await self._exchange(call, patience.attempt_s)
            alive = self._alive(exchange)
            await self._settle(call, number, exchange)
        except GaveUpError:
            self._not_sent(call)
            raise
        finally:
            self.breaker.leave(ticket, alive)
        told = exchange.usage(call.size, for_cap=False)
        spent.append(told)
        self.limits.give_back(
            tokens=call.size.likely_in + call.size.most_out - told.tokens_in - told.tokens_out
        )
        return _verdict(exchange, patience)

    async def _turn(self, call: Call, patience: Patience) -> None:
        """Wait until the limits of the endpoint let another request through; the first starts the time."""
        wait = self.limits.take(call.size.likely_in + call.size.most_out)
        while (wait := max(wait, self._held_s(patience))) > 0:
            if patience.started is not None and wait >= patience.left_s:
                self._not_sent(call)
                raise GaveUpError("deadline", "the endpoint's limits left no time for another attempt")
            await self.clock.sleep(wait)
            wait = 0.0
        if patience.started is None:
            patience.started = self.clock.monotonic()

    def _held_s(self, patience: Patience) -> float:
        """Return how long the endpoint asked all to wait; afterwards they do not all come at once."""
        held = self.limits.held_s
        return held + patience.jitter_s if held > 0 else 0.0

    def _not_sent(self, call: Call) -> None:
        """Give back what the limits let through."""
        self.limits.give_back(requests=1, tokens=call.size.likely_in + call.size.most_out)

    def _alive(self, exchange: Exchange) -> bool:
        """Return whether to go on with others; if the endpoint is busy, they wait as long as it asks."""
        if exchange.status != 429 and exchange.alive:
            self.limits.answered()
        if exchange.after_s is None:
            return exchange.alive
        return self.limits.hold(exchange.after_s, at_most_s=self.policy.deadline_s) and exchange.alive

    async def _exchange(self, call: Call, seconds: float) -> Exchange:
        started = self.clock.monotonic()
        try:
            async with asyncio.timeout(seconds):
                found = await self._post(call)
        except NEVER_SENT as error:
            found = Exchange(kind="never-sent", detail=f"no connection ({type(error).__name__})")
        except TimeoutError:
            found = Exchange(kind="lost", detail=f"no reply within {seconds:.3g} s")
        except OF_THE_LINE as error:
            # Only the kind of error: its text may quote what was sent.
            found = Exchange(kind="lost", detail=f"the connection broke ({type(error).__name__})")
        # What the own loop took to notice is not the endpoint's.
        return replace(found, seconds=min(self.clock.monotonic() - started, seconds))

    async def _post(self, call: Call) -> Exchange:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        url = self.endpoint.url(call.path)
        async with self.http.stream("POST", url, content=call.body, headers=headers) as response:
            limit = self.policy.longest_reply_bytes if response.status_code == 200 else ERROR_BYTES
            data = await _read(response, limit)
            status = response.status_code
            if status != 200:
                asked = retry_after_s(response.headers.get("retry-after"), self.clock.time())
                code = "" if data is None else error_code(data)
                return Exchange(kind="status", status=status, after_s=asked, detail=f"status {status}{code}")
            if data is None:
                problem = f"the reply is longer than {limit} bytes, or compressed"
                return Exchange(kind="reply", status=200, reply=Reply(problem=problem))
            return Exchange(kind="reply", status=200, reply=self._without_key(read_reply(data)))

    def _without_key(self, reply: Reply) -> Reply:
        """Take the key out of the words of an endpoint that says it back."""
        key = self.endpoint.key()
        if key is None or len(key) < SHORTEST_SECRET or reply.text is None or key not in reply.text:
            return reply
        return replace(reply, text=reply.text.replace(key, "[key]"))

    async def _settle(self, call: Call, number: int, exchange: Exchange) -> None:
        """Write what the attempt cost and, in the same transaction, what it said."""
        reply = exchange.reply
        text = None if reply is None else call.kept(reply)
        outcome = exchange.detail or (reply.problem if reply else "") or "answered"
        counts = Reply(tokens_in=0, tokens_out=0) if exchange.free else reply

        def write(connection: sqlite3.Connection) -> bool:
            within = self.purse.spending.settle(
                connection,
                number,
                usage=exchange.usage(call.size, for_cap=True),
                outcome=outcome,
                estimated=0 if exchange.free else estimated_out(call.size, reply),
                reply=counts,
            )
            if text is not None:
                store.remember(connection, {call.key: text}, self.clock.time())
            return within

        if not await self.purse.settle(write):
            log.warning("%s billed more tokens than the request's bound allows", self.endpoint.model)


async def _read(response: httpx.Response, limit: int) -> bytes | None:
    """Return the body; None if it is longer than `limit` or compressed, which nobody asked for."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def _verdict(exchange: Exchange, patience: Patience) -> Reply:
    if exchange.reply is not None:
        if exchange.reply.text is None:
            raise GaveUpError("malformed", exchange.reply.problem)
        return exchange.reply
    if exchange.kind == "status" and exchange.status < 500 and exchange.status not in (408, 429):
        hint = "; redirects are not followed" if 300 <= exchange.status < 400 else ""
        raise GaveUpError("malformed" if exchange.status < 300 else "refused", exchange.detail + hint)
    if patience.left_s <= 0:
        raise GaveUpError("deadline", exchange.detail)
    raise TryAgainError(exchange.detail, after_s=exchange.after_s)
