"""The HTTP surface: routes, who may call them, and what is answered when something is wrong."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from frugalrec.errors import FrugalrecError
from frugalrec.serving.bodies import ChatBody, TextBody, parsed
from frugalrec.serving.errors import ApiError, api_error
from frugalrec.serving.jobs import Answer, Job
from frugalrec.serving.replies import chat_reply, text_reply
from frugalrec.serving.server import is_loopback
from frugalrec.serving.worker import Worker

DRAINED = 16
"""Bodies up to so many times the limit are read and dropped: clients see no answer while they send."""
LOOK_S = 0.2
"""How often a waiting request looks whether its client is still there."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes need to know."""

    worker: Worker
    model: str
    """The name that clients use."""
    fingerprint: str
    api_key: str | None
    local_only: bool
    """Answer requests that were sent to a loopback name only: a page that points a name of its own at this
    machine is refused."""


def build(service: Service) -> FastAPI:
    """Return the application; its end closes the worker."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(
        lifespan=life, dependencies=[Depends(_guard)], docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.service = service
    app.state.started = int(time.time())
    app.add_exception_handler(ApiError, _failed)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(HTTPException, _no_route)
    app.get("/health")(health)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name:path}")(one_model)
    app.post("/v1/chat/completions")(chat)
    app.post("/v1/completions")(completions)
    return app


async def health(request: Request) -> dict[str, Any]:
    """Return that the server lives, and what it has done."""
    worker = _service(request).worker
    return {"status": "ok", "queued": worker.queued, **asdict(worker.counts)}


async def models(request: Request) -> dict[str, Any]:
    """List the one model."""
    return {"object": "list", "data": [_model(request)]}


async def one_model(request: Request, name: str) -> dict[str, Any]:
    """Describe the one model."""
    _check_model(_service(request), name)
    return _model(request)


async def chat(request: Request) -> dict[str, Any]:
    """Answer a conversation."""
    service = _service(request)
    body = parsed(ChatBody, await _body(request))
    _check_model(service, body.model)
    (answer,) = await _answers(request, [body.job()])
    return chat_reply(service.model, service.fingerprint, answer, logprobs=bool(body.logprobs))


async def completions(request: Request) -> dict[str, Any]:
    """Continue texts, or score them."""
    service = _service(request)
    body = parsed(TextBody, await _body(request))
    _check_model(service, body.model)
    answers = await _answers(request, body.jobs(service.worker.limits.prompts))
    return text_reply(service.model, service.fingerprint, answers, logprobs=body.logprobs is not None)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(request: Request) -> dict[str, Any]:
    created = request.app.state.started
    return {"id": _service(request).model, "object": "model", "created": created, "owned_by": "frugalrec"}


def _check_model(service: Service, name: str | None) -> None:
    if name is not None and name != service.model:
        raise ApiError(
            404,
            f"no model {name!r} here; this server has {service.model!r}.",
            code="model_not_found",
            param="model",
        )


async def _body(request: Request) -> bytes:
    most = _service(request).worker.limits.body_bytes
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json, not {kind or 'of no type'}.")
    content, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size > DRAINED * most:
            break
        content += part if size <= most else b""
    if size > most:
        raise ApiError(413, f"the body is longer than {most:,} bytes.", headers={"Connection": "close"})
    return bytes(content)


async def _answers(request: Request, jobs: Sequence[Job]) -> list[Answer]:
    """Wait for jobs; a client that goes away takes those with it that have not begun."""
    try:
        futures = _service(request).worker.submit(jobs)
    except FrugalrecError as error:
        raise api_error(error) from error
    waiting = asyncio.gather(*map(asyncio.wrap_future, futures))
    try:
        while not (await asyncio.wait([waiting], timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                raise ApiError(499, "the client has gone.")
        return list(waiting.result())
    except asyncio.CancelledError:
        if any(future.cancelled() for future in futures):
            raise ApiError(503, "the server is shutting down.", code="shutting_down") from None
        raise
    except Exception as error:
        raise api_error(error) from error
    finally:
        for future in futures:
            future.cancel()
        waiting.cancel()


async def _guard(request: Request) -> None:
    """Refuse callers that this server is not for."""
    service = _service(request)
    if service.local_only and not is_loopback(request.url.hostname or ""):
        raise ApiError(403, f"this server answers on loopback names only, not {request.url.hostname!r}.")
    if service.api_key is None or request.url.path == "/health":
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given, wanted = key.strip().encode(), service.api_key.encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
        raise ApiError(
            401,
            "this server needs an API key: send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def _failed(_: Request, error: Exception) -> Response:
    return _response(api_error(error))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path
    message = f"there is no {path}" if status == 404 else f"{path} does not take {request.method}"
    return _response(ApiError(status, f"{message} here."))


def _response(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
