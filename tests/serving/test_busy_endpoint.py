"""Overload, departures and shutdown, seen by clients of a running application."""

import asyncio
import threading

import httpx
import pytest
from served_replies import error

from frugalrec.serving import Limits, create_app
from frugalrec.serving.jobs import Answer

BODY = {"prompt": "a", "max_tokens": 1, "temperature": 0}


@pytest.fixture
def stalled(llama, monkeypatch):
    """An application whose model waits for an event; a queue of two."""
    app = create_app(llama, Limits(batch=1, queue=2, prompts=2))
    worker, go, seen = app.state.service.worker, threading.Event(), []

    def run(batch):
        seen.append([job.prompt for job in batch])
        go.wait(30)
        return [
            Answer(text="ok", finish="stop", prompt_tokens=1, cached_tokens=0, completion_tokens=1)
            for _ in batch
        ]

    monkeypatch.setattr(worker, "run", run)
    yield app, worker, go, seen
    go.set()
    worker.close(10)


def within(app):
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30)


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_full_queue_is_429_with_a_time_to_come_back(stalled):
    app, worker, go, seen = stalled

    async def story():
        async with within(app) as client:
            waiting = [asyncio.create_task(client.post("/v1/completions", json=BODY))]
            await until(lambda: seen)
            waiting += [asyncio.create_task(client.post("/v1/completions", json=BODY)) for _ in range(2)]
            await until(lambda: worker.queued == 2)
            refused = await client.post("/v1/completions", json=BODY)
            health = await client.get("/health")
            go.set()
            return refused, health, await asyncio.gather(*waiting)

    refused, health, answers = asyncio.run(story())

    assert error(refused, 429)["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert health.json()["queued"] == 2  # a server that is busy still says so
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_jobs_of_a_client_that_left_are_not_run(stalled):
    app, worker, go, seen = stalled

    async def story():
        async with within(app) as client:
            first = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await until(lambda: seen)
            gone = asyncio.create_task(client.post("/v1/completions", json={**BODY, "prompt": "gone"}))
            await until(lambda: worker.queued == 1)
            gone.cancel()
            await until(lambda: worker.queued == 0)
            last = asyncio.create_task(client.post("/v1/completions", json={**BODY, "prompt": "last"}))
            await until(lambda: worker.queued == 1)
            go.set()
            return await asyncio.gather(first, last)

    answers = asyncio.run(story())

    assert [answer.status_code for answer in answers] == [200, 200]
    assert seen == [["a"], ["last"]]


def test_a_closing_server_is_503_for_those_it_cannot_serve(stalled):
    app, worker, go, seen = stalled

    async def story():
        async with within(app) as client:
            begun = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await until(lambda: seen)
            waits = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await until(lambda: worker.queued == 1)
            await asyncio.to_thread(worker.close, 0)
            late = await client.post("/v1/completions", json=BODY)
            lost = await waits
            go.set()
            return late, lost, await begun

    late, lost, begun = asyncio.run(story())

    assert error(late, 503)["code"] == "shutting_down" and late.headers["retry-after"]
    assert error(lost, 503)["code"] == "shutting_down"
    assert begun.status_code == 200
