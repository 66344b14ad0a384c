"""A tiny model behind the endpoint, called without a network."""

import asyncio

import httpx
import pytest

from frugalrec.llm.local import LocalLM
from frugalrec.serving import Limits, create_app
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("served-llama"), max_position_embeddings=1024)
    return LocalLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("served-t5")), dtype="float32", device="cpu")


class Client:
    """Calls an application in this process; several bodies are sent at the same time."""

    def __init__(self, app, headers=None):
        self.app = app
        self.headers = headers or {}

    def request(self, method, path, **options):
        return asyncio.run(self._all([(method, path, options)]))[0]

    def post(self, path, body, **options):
        return self.request("POST", path, json=body, **options)

    def post_all(self, path, bodies):
        return asyncio.run(self._all([("POST", path, {"json": body}) for body in bodies]))

    async def _all(self, calls):
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", headers=self.headers
        ) as client:
            return await asyncio.gather(*(client.request(m, path, **o) for m, path, o in calls))


@pytest.fixture
def open_client():
    """Opens clients of models; their threads end with the test."""
    opened = []

    def make(lm, limits=None, headers=None, **options):
        app = create_app(lm, limits or Limits(), **options)
        opened.append(app)
        return Client(app, headers)

    yield make
    for app in opened:
        app.state.service.worker.close(5)


@pytest.fixture
def client(open_client, llama):
    return open_client(llama, name="tiny")
