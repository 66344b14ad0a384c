"""Where the model is and how it may be called: address, key by name, limits; all checked up front."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.http.profiles import PROFILES, Profile

FIXED = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stream", "n", "best_of"}
"""Fields of a body that nobody sets from outside."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint and one of its models. Holds the key's name, never the key."""

    base_url: str
    """Up to and including the version, for example ``http://localhost:8000/v1``."""
    model: str
    """The model's name as the endpoint knows it."""
    profile: str = "generic"
    """The kind of server; a name in `profiles.PROFILES`."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none."""
    name: str | None = None
    """Stands for the address in cache keys; set it where a server moves but its answers stay the same."""
    top_p: float = 1.0
    """Always sent, since servers take other defaults from the model's own files."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every body, for example ``{"reasoning_effort": "low"}``."""
    leave_out: tuple[str, ...] = ()
    """Fields that this model refuses, for example ``("temperature", "top_p")``."""

    def __post_init__(self) -> None:
        """Check the address and where the key would travel."""
        try:
            parts = urlsplit(self.base_url)
            _ = parts.port
        except ValueError:
            raise ConfigError("base_url is not an address; write it like http://localhost:8000/v1.") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "base_url holds a user, a password, a query or a fragment. Give the bare address, and the "
                "key through an environment variable named by api_key_env."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url is {self.base_url!r}; write it like http://localhost:8000/v1.")
        if not self.model:
            raise ConfigError("model is empty; name the model as the endpoint knows it.")
        if self.profile not in PROFILES:
            raise ConfigError(f"unknown profile {self.profile!r}; there are {', '.join(PROFILES)}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if bound := FIXED & {*self.extra, *self.leave_out}:
            raise ConfigError(
                f"the fields {', '.join(sorted(bound))} follow from the request, because costs are "
                f"bounded by them; take them out of extra and leave_out."
            )
        self._check_key(parts.scheme)

    def _check_key(self, scheme: str) -> None:
        if self.api_key_env is None:
            return
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            # The value is not shown: it may be the key itself, put here by mistake.
            raise ConfigError(
                "api_key_env must be the name of an environment variable in capitals, such as OPENAI_API_KEY."
            )
        if scheme == "http" and not self.is_loopback:
            raise ConfigError(
                f"a key would travel unencrypted to {urlsplit(self.base_url).hostname}. Use https, or a "
                f"tunnel to localhost, or set api_key_env to None."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def served_by(self) -> Profile:
        """What this kind of server understands."""
        return PROFILES[self.profile]

    @property
    def fingerprint(self) -> str:
        """The model's name and a hash of everything but the request that could change an answer."""
        address = self.name or self.base_url.rstrip("/")
        parts = [address, self.model, self.profile, self.top_p, dict(self.extra), list(self.leave_out)]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return f"http:{self.model}:{digest[:16]}"

    def url(self, path: str) -> str:
        """Return the address of, say, ``/chat/completions``."""
        return self.base_url.rstrip("/") + path

    def key(self) -> str | None:
        """Read the key from the environment.

        Raises:
            ModelError: If the variable is unset or holds what cannot be a key; never shows its value.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ModelError(f"the environment variable {self.api_key_env} is not set; put the key there.")
        if not re.fullmatch(r"[!-~]+", key):
            raise ModelError(f"the value of {self.api_key_env} has blanks or other signs that no key has.")
        return key


class EnvironmentKey(httpx.Auth):
    """Adds the key to each request as it is sent, so that no object holds it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set the Authorization header, if there is a key."""
        key = self.endpoint.key()
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        yield request


@dataclass(frozen=True, kw_only=True)
class CallPolicy:
    """How hard an endpoint may be worked, and how long a request may take."""

    concurrency: int = 16
    """Requests in flight at once."""
    attempts: int = 4
    """Tries a request, the first included."""
    deadline_s: float = 120.0
    """Seconds a request may take from its first attempt to its last, waiting included."""
    timeout_s: float = 60.0
    """Seconds an attempt may take."""
    backoff_s: float = 0.5
    """Before the first retry, at most; doubles with each, and the wait is drawn from 0 to that."""
    longest_backoff_s: float = 20.0
    retries_per_request: float = 0.5
    """Retries that each request adds to the common budget of retries..."""
    spare_retries: int = 20
    """...which starts with these, and holds no more than ten times as many."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    failures_until_open: int = 10
    """Failures in a row after which the endpoint is taken for dead."""
    rest_s: float = 30.0
    """Seconds until one request may try whether it lives again."""
    longest_reply_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        """Check that every limit lets something through."""
        at_least = {"concurrency": 1, "attempts": 1, "failures_until_open": 1, "longest_reply_bytes": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        for name in ("deadline_s", "timeout_s", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}.")
        for name in ("backoff_s", "longest_backoff_s", "retries_per_request", "spare_retries", "rest_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, but is {getattr(self, name)}.")
