"""Starts and stops servers: on loopback unless told otherwise, and with a key where others can reach it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalrec.errors import ConfigError, ModelError, require
from frugalrec.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from frugalrec.llm.local import LocalLM

KEY = "FRUGALREC_API_KEY"
"""The environment variable with the key that clients must send."""
START_S = 30.0


def create_app(
    lm: LocalLM,
    limits: Limits | None = None,
    *,
    name: str | None = None,
    api_key: str | None = None,
    local_only: bool = True,
) -> FastAPI:
    """Return the endpoint as an ASGI application.

    Args:
        lm: The model; the application's thread owns it from now on.
        limits: What the server takes on.
        name: What clients call the model; default: its own name, or its folder's.
        api_key: A key that clients must send; None asks for none.
        local_only: Refuse requests that were sent to another name than localhost.

    Raises:
        ModelError: If the network cannot be served.
        ConfigError: If the key is none that a client can send.
        MissingExtraError: If FastAPI is not installed.
    """
    require("fastapi", "serve")
    from frugalrec.serving.app import Service, build
    from frugalrec.serving.engine import Engine
    from frugalrec.serving.worker import Worker

    limits = limits or Limits()
    key = None if api_key is None else usable_key(api_key, "api_key")
    engine = Engine(lm, limits)
    engine.check()
    service = Service(
        worker=Worker(engine.run, limits),
        model=name or _name(lm),
        fingerprint=f"fp_{lm.fingerprint[:16]}",
        api_key=key,
        local_only=local_only,
    )
    return build(service)


def serve(
    lm: LocalLM,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    allow_remote: bool = False,
    started: Any = None,
) -> None:
    """Serve a model until the process is told to stop; what has begun is finished.

    Args:
        lm: The model.
        limits: What the server takes on.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        name: As in `create_app`.
        allow_remote: Listen on an address that other machines can reach; the environment variable
            FRUGALREC_API_KEY must then hold a key.
        started: Is called with the endpoint's address once it listens.

    Raises:
        ConfigError: If the address is not this machine's own and that was not allowed, or it is taken.
    """
    limits = limits or Limits()
    key = check_address(host, port, allow_remote)
    app = create_app(lm, limits, name=name, api_key=key, local_only=is_loopback(host))
    with _listening(host, port) as listener:
        if started is not None:
            started(_address(listener))
        _server(app, limits).run(sockets=[listener])


@contextmanager
def served(lm: LocalLM, limits: Limits | None = None, *, name: str | None = None) -> Iterator[str]:
    """Serve a model on a free loopback port during a block; the value is the address, ``http://.../v1``."""
    limits = limits or Limits()
    server = _server(create_app(lm, limits, name=name), limits)
    with _listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until = time.monotonic() + START_S
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        try:
            if not server.started:
                raise ModelError("the server did not start.")
            yield _address(listener)
        finally:
            server.should_exit = True
            thread.join(limits.shutdown_s + 10)


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, port: int, allow_remote: bool) -> str | None:
    """Return the key that clients must send, or None where the address needs none.

    Raises:
        ConfigError: If the port is none, the key is none that a client can send, or others can reach the
            address and that is not allowed or not guarded by a key.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"a port lies between 0 and 65535; {port} does not.")
    key = os.environ.get(KEY, "").strip() or None
    if not is_loopback(host):
        if not allow_remote:
            raise ConfigError(
                f"{host!r} can be reached by other machines. Listen on 127.0.0.1, or allow it with "
                f"--allow-remote and a key in {KEY}."
            )
        if key is None:
            raise ConfigError(f"a server that other machines can reach needs a key; put one into {KEY}.")
    return None if key is None else usable_key(key, KEY)


def usable_key(key: str, name: str) -> str:
    """Return a key without the line end that files and shells leave behind it.

    Raises:
        ConfigError: If no client can send it; never shows its value.
    """
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise ConfigError(f"{name} must be a key of printable ASCII signs without blanks; choose another.")
    return key.strip()


def _name(lm: LocalLM) -> str:
    """Return the model's name without the folders of this machine."""
    path = Path(lm.model)
    return path.name if path.is_absolute() or path.exists() else lm.model


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error}. Choose another port."
            ) from error
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _server(app: FastAPI, limits: Limits) -> Any:
    uvicorn = require("uvicorn", "serve")
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_s)),
    )
    server = uvicorn.Server(settings)
    shutdown = server.shutdown

    async def stop(sockets: list[socket.socket] | None = None) -> None:
        app.state.service.worker.stopping()  # clients are waited for first, then the model: in one time
        await shutdown(sockets)

    server.shutdown = stop
    return server
