"""The client: workers that take calls from a queue until all have an answer or a reason for none."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from frugalrec.errors import ConfigError
from frugalrec.ledger import Prices, Usage
from frugalrec.llm.chat import Progress, Reason
from frugalrec.llm.http.attempts import CONNECT_S, Attempts, Call
from frugalrec.llm.http.breaker import Breaker
from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.endpoint import CallPolicy, Endpoint, EnvironmentKey
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.limits import Limits
from frugalrec.llm.http.purse import Purse
from frugalrec.llm.http.replies import Reply
from frugalrec.llm.http.retrying import GaveUpError, Patience, RetryBudget
from frugalrec.llm.http.spending import SpendCap, Spending

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one call."""

    reply: Reply | None
    reason: Reason
    detail: str
    usage: Usage
    latency_s: float


class Client:
    """Sends calls to one endpoint, under its limits and a cap. Safe to use from several threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        policy: CallPolicy | None = None,
        prices: Prices | None = None,
        cap: SpendCap | None = None,
        file: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Store the settings.

        Args:
            endpoint: Where the model is.
            policy: How hard it may be worked; default: `CallPolicy`.
            prices: What tokens cost; needed for a cap in money.
            cap: What all attempts recorded in `file` may cost together.
            file: SQLite file of answers and spending; None forgets both.
            clock: The time; for tests.
        """
        self.endpoint = endpoint
        self.policy = policy or CallPolicy()
        self.clock = clock or Clock()
        self.spending = Spending(prices=prices, cap=cap)
        self.file = file
        self.breaker = Breaker(self.policy.failures_until_open, self.policy.rest_s, self.clock)
        self._limits = Limits(self.policy.requests_per_minute, self.policy.tokens_per_minute, self.clock)
        self._budget = RetryBudget(self.policy.retries_per_request, self.policy.spare_retries)

    def check(self) -> None:
        """Refuse what could not be kept, before anything is spent.

        Raises:
            ConfigError: A cap without a file or a price.
            ModelError: No key.
        """
        self.spending.check()
        if self.spending.cap is not None and self.file is None:
            raise ConfigError("a cap needs a file that remembers what was spent; give one.")
        self.endpoint.key()

    def ask(
        self, calls: Iterable[Call], n: int, journal: Journal, *, progress: Progress | None = None
    ) -> list[Outcome]:
        """Send `n` calls; return what came of each, in order. No call raises for itself.

        Args:
            calls: Taken one at a time, when a worker is free: bodies need not exist before.
            n: How many there are.
            journal: Open.
            progress: Told of the calls done.
        """
        if n == 0:
            return []
        return _run(lambda: self._ask(calls, n, journal, progress))

    async def _ask(
        self, calls: Iterable[Call], n: int, journal: Journal, progress: Progress | None
    ) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * n
        waiting = enumerate(calls)
        done = 0

        async def work(certificates: ssl.SSLContext) -> None:
            nonlocal done
            async with self._http(certificates) as http:
                attempts = Attempts(
                    endpoint=self.endpoint,
                    policy=self.policy,
                    purse=purse,
                    limits=self._limits,
                    breaker=self.breaker,
                    clock=self.clock,
                    http=http,
                )
                for number, call in waiting:
                    outcomes[number] = await self._answer(attempts, call)
                    done += 1
                    if progress is not None:
                        progress(done, n)

        certificates, purse = self._certificates(), Purse(self.spending, journal, self.clock)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.policy.concurrency, n)):
                    group.create_task(work(certificates))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # a full disk, say; the others stopped with it
        return [outcome for outcome in outcomes if outcome is not None]

    async def _answer(self, attempts: Attempts, call: Call) -> Outcome:
        patience = Patience(self.policy, self._budget, self.clock)
        self._budget.pay_in()
        spent: list[Usage] = []
        reply: Reply | None = None
        reason: Reason = "answered"

        async def attempt() -> Reply:
            return await attempts.once(call, patience, spent)

        try:
            reply = await patience.through(attempt)
            detail = "" if reply.finish in ("", "stop") else f"stopped for: {reply.finish}"
        except GaveUpError as error:
            reason, detail = error.reason, error.detail
        return Outcome(
            reply=reply,
            reason=reason,
            detail=detail,
            usage=sum(spent, Usage()),
            latency_s=patience.spent_s,
        )

    def _certificates(self) -> ssl.SSLContext:
        """Return what https is checked with; reading the system's takes longer than many a request."""
        if self.endpoint.base_url.startswith("https"):
            return ssl.create_default_context()
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def _http(self, certificates: ssl.SSLContext) -> httpx.AsyncClient:
        """Return a worker's own connection: a pool common to all would search all of them each time."""
        return httpx.AsyncClient(
            auth=EnvironmentKey(self.endpoint),
            follow_redirects=False,
            trust_env=not self.endpoint.is_loopback,  # no proxy leads to this machine
            verify=certificates,
            # The time of an attempt is kept around it, not between its bytes.
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )


def _run(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end; in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(start())
    results: list[T] = []
    errors: list[BaseException] = []

    def apart() -> None:
        try:
            results.append(asyncio.run(start()))
        except BaseException as error:  # carried over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=apart)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
