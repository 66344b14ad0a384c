"""The chat seam: a system text and a user text go in; an answer, or the reason why there is none, comes out.

`LanguageModel` scores texts with the model's own probabilities; a `ChatModel` may be an endpoint that only
answers. Nothing here raises for one failed request: whoever asked for a thousand users gets a thousand
answers, each with a reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from frugalrec.ledger import Usage

Reason = Literal[
    "answered",  # by the model, now
    "cached",  # by the model, earlier; nothing was spent
    "over-budget",  # not asked: the answer might have cost more than is left
    "unavailable",  # asked; every attempt failed, or the endpoint is taken for dead
    "deadline",  # no answer within this request's time
    "refused",  # the endpoint does not take the request (400, 401, 403, 404, 422)
    "malformed",  # the endpoint's reply is not what the protocol says
]
Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all)."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One question. Two requests that are written alike have the same answer, and the same key."""

    system: str
    user: str
    schema: Mapping[str, Any] | None = None
    """A JSON schema that the answer should follow, where the model can be held to one.

    The order of its fields counts: a grammar made of it asks for properties in that order.
    """
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def key(self, model: str) -> str:
        """Return a hash of the request and of the model's name or fingerprint; holds no user id."""
        parts = [model, self.system, self.user, self.schema, self.max_tokens, self.temperature, self.seed]
        text = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What came of one request."""

    text: str | None
    """The model's words; None unless the reason is `answered` or `cached`."""
    reason: Reason
    detail: str = ""
    """For people: the last status or error; never a key or a prompt."""
    usage: Usage = Usage()
    """Spent on this request now, failed attempts included."""
    latency_s: float = 0.0
    """From the first attempt to the end, waiting between attempts included."""


class ChatModel(Protocol):
    """What answers requests."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when answers could change; enters keys."""
        ...

    def chat(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> tuple[list[ChatAnswer], Usage]:
        """Answer every request, in order, and say what was spent in this call."""
        ...
