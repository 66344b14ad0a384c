"""A small OpenAI-compatible server on loopback that answers from a script and fails as it is told.

It counts every request and the tokens it would have billed, so that a test can hold what a client
believes to have spent against the truth. It bills as harshly as an endpoint could: whatever is not a
refusal (3xx, 4xx) was computed, also when the client never saw the answer. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

from frugalrec.errors import ConfigError
from frugalrec.rng import derive_seed
from frugalrec.testing.fault_replies import ENVELOPES, WORDS, NextToken, as_it_is, logprobs

CONNECTION_FAULTS = ("reset", "stall", "truncated-body")
"""The connection is cut, no answer comes, or the body ends before its announced length."""
STATUS_FAULTS = (
    "203", "307", "400", "401", "403", "404", "408", "422", "429", "429-date", "500", "502", "503",
)  # fmt: skip
"""A status instead of an answer, 203 of one that was computed; 429-date sends Retry-After as a date."""
FAULTS = (*CONNECTION_FAULTS, *STATUS_FAULTS, *ENVELOPES, *WORDS)
"""Every fault that a plan may name; those of the body are described in `fault_replies`."""

Reply = str | Callable[[Mapping[str, Any]], str]
"""The model's words, or a function of the request's body that returns them."""
Plan = Sequence[str | None] | Callable[[int], str | None]
"""The fault of each request in order, then none; or a function of the request's number, from 0."""


def seeded_faults(seed: int, share: float, kinds: Sequence[str] = FAULTS) -> Callable[[int], str | None]:
    """Return a plan under which about a `share` of requests meets one of `kinds`, always the same ones."""
    if not 0 <= share <= 1 or not kinds:
        raise ConfigError(f"a plan needs a share from 0 to 1 and some kinds, not {share} of {list(kinds)}.")

    def plan(number: int) -> str | None:
        draw = derive_seed(seed, "fault", number) / 2**63
        return kinds[derive_seed(seed, "kind", number) % len(kinds)] if draw < share else None

    return plan


class FaultyEndpoint:
    """The server; a context manager that listens on a free port of 127.0.0.1 in its own thread.

    >>> with FaultyEndpoint(reply='{"ranking":[2,1]}', faults=["429", None, "500"]) as server:
    ...     (server.url.startswith("http://127.0.0.1:"), server.calls, server.billed_tokens)
    (True, 0, 0)
    """

    def __init__(
        self,
        *,
        reply: Reply = '{"ranking":[1]}',
        faults: Plan = (),
        latency_s: float = 0.0,
        stall_s: float = 30.0,
        retry_after_s: int = 1,
        bytes_per_token: int = 4,
        next_token: NextToken | None = None,
        keep_bodies: bool = True,
        port: int = 0,
    ) -> None:
        """Store the script.

        Args:
            reply: What the model says.
            faults: Which request fails how; see `FAULTS` and `seeded_faults`.
            latency_s: Seconds that every reply takes.
            stall_s: Seconds after which a stalled connection is closed.
            retry_after_s: What 429 says in Retry-After.
            bytes_per_token: Its tokenizer; 1 is the most expensive one there can be.
            next_token: Answers questions for log-probabilities (``logprobs``, ``echo``).
            keep_bodies: Whether `bodies` grows; off for very many calls.
            port: The port to listen on; 0 takes a free one.
        """
        unknown = [] if callable(faults) else sorted({f for f in faults if f} - set(FAULTS))
        if unknown:
            raise ConfigError(f"unknown faults {unknown}; there are {', '.join(FAULTS)}.")
        self.reply, self.faults, self.next_token = reply, faults, next_token
        self.latency_s, self.stall_s, self.retry_after_s = latency_s, stall_s, retry_after_s
        self.bytes_per_token, self.keep_bodies, self.port = bytes_per_token, keep_bodies, port
        self.calls = 0
        """Requests received, whatever came of them."""
        self.billed_calls = 0
        """Requests that were computed."""
        self.billed_tokens_in = 0
        self.billed_tokens_out = 0
        self.bodies: list[dict[str, Any]] = []
        """Every request's body, in order of arrival."""
        self.authorizations: set[str] = set()
        """Every value of the Authorization header seen."""
        self.in_flight = 0
        self.most_in_flight = 0
        self.faults_met: dict[str, int] = {}
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None

    @property
    def url(self) -> str:
        """The base URL that a client is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def billed_tokens(self) -> int:
        """Prompt and answer tokens that it would have billed."""
        return self.billed_tokens_in + self.billed_tokens_out

    def __enter__(self) -> Self:
        """Listen."""
        self._ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._trouble is not None:
            raise ConfigError(f"cannot listen on port {self.port} ({self._trouble}); take port 0.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut every connection and stop listening."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = None

    def count_tokens(self, text: str) -> int:
        """Return how many tokens it takes a text for."""
        return -(-len(text.encode("utf-8", "replace")) // self.bytes_per_token)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                tasks.add(task)
            try:
                await self._connection(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client, or the end of the test, has cut the connection
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
                if task is not None:
                    tasks.discard(task)

        try:
            server = await asyncio.start_server(guarded, "127.0.0.1", self.port, backlog=1024)
        except (OSError, OverflowError) as error:  # taken, or not a port
            self._trouble = error
            self._ready.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            headers = {}
            while (header := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            if line.startswith(b"GET"):
                await _send(writer, 200, json.dumps({"object": "list", "data": [{"id": "fake"}]}).encode())
                continue
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                await self._request(line.decode("latin-1").split(" ")[1], headers, raw, reader, writer)
            finally:
                self.in_flight -= 1

    async def _request(
        self,
        path: str,
        headers: Mapping[str, str],
        raw: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        number, body = self.calls, json.loads(raw)
        self.calls += 1
        if self.keep_bodies:
            self.bodies.append(body)
        self.authorizations.update({headers["authorization"]} if "authorization" in headers else ())
        fault = self._fault(number)
        if fault is not None:
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault in STATUS_FAULTS and fault[0] in "34":
            await self._refuse(writer, fault)
            return
        words = self.reply(body) if callable(self.reply) else self.reply
        words = WORDS.get(fault or "", str)(words)
        payload = self._answer(path, body, words)
        if fault in STATUS_FAULTS:
            await self._refuse(writer, fault)
        elif fault == "reset":
            _reset(writer)
        elif fault == "stall":
            await self._closed_by_client(reader)
            raise ConnectionResetError
        else:
            change = ENVELOPES.get(fault or "", as_it_is)
            data = change(payload, headers)
            await _send(writer, 200, data, promised=len(data) + 10 * (fault == "truncated-body"))
            if fault == "truncated-body":
                raise ConnectionResetError

    async def _closed_by_client(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1), self.stall_s)

    async def _refuse(self, writer: asyncio.StreamWriter, fault: str) -> None:
        extra = {}
        if fault == "429":
            extra["Retry-After"] = str(self.retry_after_s)
        elif fault == "429-date":
            extra["Retry-After"] = formatdate(time.time() + self.retry_after_s, usegmt=True)
        elif fault == "307":
            extra["Location"] = "http://127.0.0.1:9/elsewhere"
        error = {"error": {"message": "as planned", "type": "planned_fault", "code": fault}}
        await _send(writer, int(fault[:3]), json.dumps(error).encode(), extra)

    def _fault(self, number: int) -> str | None:
        if callable(self.faults):
            return self.faults(number)
        return self.faults[number] if number < len(self.faults) else None

    def _answer(self, path: str, body: Mapping[str, Any], words: str) -> dict[str, Any]:
        """Return the envelope, and bill it."""
        chat = path.endswith("/chat/completions")
        texts = [str(m["content"]) for m in body["messages"]] if chat else [str(body["prompt"])]
        limit = int(body.get("max_completion_tokens", body.get("max_tokens", 1 << 20)))
        cut = words.encode("utf-8", "replace")[: limit * self.bytes_per_token].decode("utf-8", "ignore")
        spent_in = sum(self.count_tokens(text) for text in texts) + 4 * len(texts)
        spent_out = self.count_tokens(cut)
        self.billed_calls += 1
        self.billed_tokens_in += spent_in
        self.billed_tokens_out += spent_out
        said = {"message": {"role": "assistant", "content": cut}} if chat else {"text": cut}
        choice = {"index": 0, **said, "finish_reason": "stop" if cut == words else "length"}
        if self.next_token is not None and body.get("logprobs"):
            choice["logprobs"] = logprobs(self.next_token, texts[-1], body, chat=chat)
        return {
            "id": "fake-1",
            "object": "chat.completion" if chat else "text_completion",
            "model": str(body.get("model", "")),
            "choices": [choice],
            "usage": {
                "prompt_tokens": spent_in,
                "completion_tokens": spent_out,
                "total_tokens": spent_in + spent_out,
            },
        }


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    data: bytes,
    extra: Mapping[str, str] | None = None,
    *,
    promised: int | None = None,
) -> None:
    head = {"Content-Type": "application/json", "Content-Length": str(promised or len(data)), **(extra or {})}
    lines = [f"HTTP/1.1 {status} planned", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + data)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST, not a FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionResetError
