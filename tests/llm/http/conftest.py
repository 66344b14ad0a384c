"""A clock that does not wait, and a short way to a chat model at a fake endpoint."""

from __future__ import annotations

import asyncio
import time

import pytest

from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat
from frugalrec.llm.http.clock import Clock


class FakeClock(Clock):
    """Sleeping moves it on at once; every sleep is kept."""

    def __init__(self) -> None:
        self.start = self.now = time.time()  # the fake endpoint writes real dates
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make_chat(clock):
    def make(server, *, profile="generic", api_key_env=None, extra=(), policy=None, clock=clock, **settings):
        endpoint = Endpoint(
            base_url=server.url,
            model="fake",
            profile=profile,
            api_key_env=api_key_env,
            name="test",
            extra=dict(extra),
        )
        policy = CallPolicy(**{"concurrency": 4, "timeout_s": 5.0, **(policy or {})})
        return HttpChat(endpoint, policy=policy, clock=clock, **settings)

    return make


@pytest.fixture
def questions():
    def make(n, *, start=0, max_tokens=64):
        return [
            ChatRequest(system="Rank.", user=f"question {i}", max_tokens=max_tokens)
            for i in range(start, start + n)
        ]

    return make
