"""Errors as the OpenAI protocol shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frugalrec.errors import ConfigError, FrugalrecError, ModelError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(FrugalrecError):
    """A request that is answered with an error status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What the client is told."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        facts = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": facts}


def api_error(error: BaseException) -> ApiError:
    """Return how an error is told to a client; what is not the client's fault is told without details."""
    from frugalrec.serving.engine import JobError
    from frugalrec.serving.worker import BusyError, ClosedError

    match error:
        case ApiError():
            return error
        case JobError():
            return ApiError(400, str(error), code=error.code, param=error.param)
        case BusyError():
            after = {"Retry-After": str(error.retry_after_s)}
            return ApiError(429, str(error), code="rate_limit_exceeded", headers=after)
        case ClosedError():
            return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "5"})
        case ConfigError():
            return ApiError(400, str(error))
        case _:
            return ApiError(500, "the model failed on this request; the server's log says why.")


def contained(error: BaseException) -> Exception:
    """Return what went wrong as an error that ends one request, not an event loop.

    A panic of compiled code, such as a tokenizer's, is no `Exception` in Python.
    """
    if isinstance(error, Exception):
        return error
    return ModelError(f"the model failed with {type(error).__name__}: {error}")
