"""A chat model at an OpenAI-compatible endpoint: answers kept, spending capped, failures told, not raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from frugalrec.ledger import Prices, Usage, measure
from frugalrec.llm.chat import ChatAnswer, ChatRequest, Progress
from frugalrec.llm.http import store
from frugalrec.llm.http.accounts import DryRun, plan
from frugalrec.llm.http.attempts import Call
from frugalrec.llm.http.client import Client, Outcome
from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.endpoint import CallPolicy, Endpoint
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.probing import QUESTION, Probe, judge
from frugalrec.llm.http.profiles import CHAT, chat_body, encoded
from frugalrec.llm.http.spending import Size, SpendCap, size_of


class HttpChat:
    """A `ChatModel` at an endpoint.

    >>> from frugalrec.testing.faulty_endpoint import FaultyEndpoint
    >>> with FaultyEndpoint(reply='{"ranking":[2,1]}') as server:
    ...     model = HttpChat(Endpoint(base_url=server.url, model="any"))
    ...     answers, usage = model.chat([ChatRequest(system="Rank.", user="1: Heat, 2: Alien")])
    >>> answers[0].text, answers[0].reason, usage.llm_calls
    ('{"ranking":[2,1]}', 'answered', 1)
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        policy: CallPolicy | None = None,
        prices: Prices | None = None,
        cap: SpendCap | None = None,
        file: Path | None = None,
        ttl_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Store the settings.

        Args:
            endpoint: Where the model is, and which.
            policy: Concurrency, retries, limits and deadlines.
            prices: What tokens cost; needed for a cap in money.
            cap: What everything recorded in `file` may cost together.
            file: SQLite file of answers and spending, which later runs go on with; None forgets both.
            ttl_s: Seconds for which an answer is trusted; None for ever.
            clock: The time; for tests.
        """
        self.client = Client(endpoint, policy=policy, prices=prices, cap=cap, file=file, clock=clock)
        self.ttl_s = ttl_s

    @property
    def model(self) -> str:
        """The model's name as the endpoint knows it."""
        return self.client.endpoint.model

    @property
    def fingerprint(self) -> str:
        """The model's name and a hash of what could change its answers."""
        return self.client.endpoint.fingerprint

    def chat(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> tuple[list[ChatAnswer], Usage]:
        """Answer every request, in order, and say what was spent in this call.

        An answer is in the file before it is returned, and equal requests are asked once.

        Raises:
            ConfigError: If a cap cannot be kept: it has no file, or a price is unknown.
            ModelError: If the key is not in the environment.
            StorageError: If the file cannot be written.
        """
        self.client.check()
        with measure() as meter, Journal(self.client.file) as journal:
            found = self.look_up(requests, journal)
            missing = list(found.missing.values())
            ready = len(requests) - len(missing)
            calls = self._calls(requests, found.missing)

            def count(done: int, _: int) -> None:
                if progress is not None:
                    progress(ready + done, len(requests))

            outcomes = self.client.ask(calls, len(missing), journal, progress=count)
            asked = {number: _answer(o) for number, o in zip(missing, outcomes, strict=True)}
            for answer in asked.values():
                meter.add(answer.usage)
            if not missing:
                count(0, 0)
        return [_recall(number, found, asked) for number in range(len(requests))], meter.usage

    def dry_run(self, requests: Sequence[ChatRequest]) -> DryRun:
        """Say what answering these requests would cost, likely and at most; sends nothing."""
        with Journal(self.client.file) as journal:
            missing = self.look_up(requests, journal).missing.values()
            sizes = [request_size(requests[number], self.client.endpoint) for number in missing]
            return plan(sizes, len(requests), self.client.spending, self.client.policy, journal)

    def probe(self) -> Probe:
        """Ask one small question: does it answer, keep to a schema, count tokens? Counts against the cap."""
        self.client.check()
        endpoint = self.client.endpoint
        call = Call(
            path=CHAT,
            body=encoded(chat_body(QUESTION, endpoint)),
            key=QUESTION.key(self.fingerprint),
            size=request_size(QUESTION, endpoint),
            kept=lambda reply: None,
        )
        with Journal(self.client.file) as journal:
            (outcome,) = self.client.ask([call], 1, journal)
        return judge(outcome, asked_for_schema=endpoint.served_by.structured)

    def look_up(self, requests: Sequence[ChatRequest], journal: Journal) -> LookUp:
        """Return which requests are equal, and which are answered already."""
        fingerprint = self.fingerprint
        keys = [request.key(fingerprint) for request in requests]
        first: dict[str, int] = {}
        for number, key in enumerate(keys):
            first.setdefault(key, number)
        now = self.client.clock.time()
        known = store.known(journal, first, now=now, ttl_s=self.ttl_s)
        return LookUp(keys=keys, first=first, known=known)

    def _calls(self, requests: Sequence[ChatRequest], numbers: Mapping[str, int]) -> Iterator[Call]:
        for key, number in numbers.items():
            request, endpoint = requests[number], self.client.endpoint
            body = encoded(chat_body(request, endpoint))
            yield Call(path=CHAT, body=body, key=key, size=request_size(request, endpoint))


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """Which of some requests are equal, and which are answered."""

    keys: Sequence[str]
    """One a request."""
    first: Mapping[str, int]
    """Key -> the first request that has it."""
    known: Mapping[str, str]
    """Key -> stored answer."""

    @cached_property
    def missing(self) -> dict[str, int]:
        """Key -> the first request that has it, where there is no answer."""
        return {key: number for key, number in self.first.items() if key not in self.known}


def _recall(number: int, found: LookUp, asked: Mapping[int, ChatAnswer]) -> ChatAnswer:
    """Return the answer of one request: asked now, asked earlier, or that of an equal request."""
    if number in asked:
        return asked[number]
    key = found.keys[number]
    if key in found.known:
        return ChatAnswer(text=found.known[key], reason="cached")
    twin = asked[found.first[key]]
    reason = "cached" if twin.reason == "answered" else twin.reason
    return ChatAnswer(text=twin.text, reason=reason, detail=twin.detail)


def request_size(request: ChatRequest, endpoint: Endpoint) -> Size:
    """Return how many tokens a request takes, likely and at most."""
    return size_of([request.system, request.user], request.max_tokens, request.schema, endpoint.extra)


def _answer(outcome: Outcome) -> ChatAnswer:
    return ChatAnswer(
        text=None if outcome.reply is None else outcome.reply.text,
        reason=outcome.reason,
        detail=outcome.detail,
        usage=outcome.usage,
        latency_s=outcome.latency_s,
    )
