"""Read an endpoint's reply, whatever it is: words and token counts, or what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST_COUNT = 10**9
"""A token count above this is taken for nonsense, not for a bill."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a reply with status 200 says."""

    text: str | None = None
    """The model's words; None where the reply has none."""
    problem: str = ""
    """What is wrong, where there are no words; holds nothing of the reply itself."""
    tokens_in: int | None = None
    """Prompt tokens, cached ones included; None where it does not say, or says 0."""
    tokens_out: int | None = None
    """Answer tokens; None where it does not say."""
    tokens_cached: int = 0
    """How many of the prompt tokens came from the endpoint's own cache."""
    finish: str = ""
    """Why the model stopped: ``stop``, ``length``..."""
    logprobs: Mapping[str, Any] | None = None
    """The log-probabilities of the first choice, as they came."""


def read_reply(data: bytes) -> Reply:
    """Return what a body says; never raises."""
    try:
        payload = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return Reply(problem="the reply is not UTF-8")
    except (ValueError, RecursionError):
        return Reply(problem="the reply is not JSON" if data.strip() else "the reply is empty")
    if not isinstance(payload, dict):
        return Reply(problem="the reply is not a JSON object")
    return reply_from(payload)


def reply_from(payload: Mapping[str, Any]) -> Reply:
    """Return what a parsed body says; batch files hold such bodies too."""
    counts = _counts(payload.get("usage"))
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        said = " but an error" if "error" in payload else ""
        return Reply(problem=f"the reply has no choices{said}{code_of(payload)}", **counts)
    first = choices[0]
    message = first.get("message")
    words = _words(message.get("content") if isinstance(message, dict) else first.get("text"))
    finish = first.get("finish_reason")
    finish = finish if isinstance(finish, str) and re.fullmatch(r"[a-z_]{1,32}", finish) else ""
    if words is None:
        why = f" (it stopped for: {finish})" if finish else ""
        return Reply(problem=f"the reply has no words{why}", finish=finish, **counts)
    if words and counts.get("tokens_out") == 0:
        counts["tokens_out"] = None  # words are not free: it did not count
    logprobs = first.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else None
    return Reply(text=words, finish=finish, logprobs=logprobs, **counts)


def code_of(payload: Any) -> str:
    """Return an error's machine-readable code in brackets; its message may hold prompts or keys."""
    error = payload.get("error") if isinstance(payload, dict) else None
    for name in ("code", "type"):
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, str) and re.fullmatch(r"[a-z][a-z_]{2,40}", value):
            return f" ({value})"
    return ""


def error_code(data: bytes) -> str:
    """Return `code_of` for a body that may be anything."""
    try:
        return code_of(json.loads(data))
    except (ValueError, RecursionError):
        return ""


def _words(content: Any) -> str | None:
    """Return text, or the text parts of a list of parts, without half characters."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if not isinstance(content, str):
        return None
    return content.encode("utf-8", "replace").decode("utf-8")


def _counts(usage: Any) -> dict[str, Any]:
    if not isinstance(usage, dict):
        return {}
    tokens_in = _count(usage.get("prompt_tokens")) or None  # Ollama says 0 for a prompt it had cached
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return {
        "tokens_in": tokens_in,
        "tokens_out": _count(usage.get("completion_tokens")),
        "tokens_cached": min(cached or 0, tokens_in or 0),
    }


def _count(value: Any) -> int | None:
    sound = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT
    return value if sound else None
