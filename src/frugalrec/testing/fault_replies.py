"""Bodies that a broken endpoint, or a model that does not obey, might send."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

NextToken = Callable[[str], Mapping[str, float]]
"""Text so far -> log-probability of some next tokens."""

HUGE = 8 << 20
"""Bytes of the reply that is far too long."""


def as_it_is(payload: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    """Return the envelope without a fault."""
    return json.dumps(payload).encode()


def _edited(**changes: Any) -> Callable[[dict[str, Any], Mapping[str, str]], bytes]:
    """Return a fault that replaces some of the envelope's fields; None removes the field."""

    def change(payload: dict[str, Any], headers: Mapping[str, str]) -> bytes:
        merged = {k: v for k, v in {**payload, **changes}.items() if v is not None}
        return json.dumps(merged).encode()

    return change


def _echo_key(payload: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    """Say the caller's own Authorization header back to it, as the model's words and as its own name."""
    said = headers.get("authorization", "none")
    message = {"role": "assistant", "content": f"you sent {said}"}
    return json.dumps({**payload, "id": said, "choices": [{"index": 0, "message": message}]}).encode()


def _not_utf8(payload: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    return json.dumps(payload).encode()[:-1] + b', "note": "\xff\xfe"}'


ENVELOPES: Mapping[str, Callable[[dict[str, Any], Mapping[str, str]], bytes]] = {
    "malformed-json": lambda payload, headers: json.dumps(payload).replace(":", ";").encode(),
    "truncated-json": lambda payload, headers: json.dumps(payload).encode()[:-20],
    "not-json": lambda payload, headers: b"<html><body>Bad gateway</body></html>",
    "not-utf8": _not_utf8,
    "nested-json": lambda payload, headers: b"[" * 200_000,
    "empty-body": lambda payload, headers: b"",
    "wrong-envelope": lambda payload, headers: b'{"result": ["a", 1]}',
    "error-in-200": lambda payload, headers: b'{"error": {"message": "out of memory", "code": "oom"}}',
    "empty-choices": _edited(choices=[]),
    "null-content": _edited(choices=[{"index": 0, "message": {"role": "assistant", "content": None}}]),
    "no-usage": _edited(usage=None),
    "zero-usage": _edited(usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
    "absurd-usage": _edited(usage={"prompt_tokens": -5, "completion_tokens": "many"}),
    "huge": lambda payload, headers: json.dumps({**payload, "padding": "x" * HUGE}).encode(),
    "echo-key": _echo_key,
}
"""Fault -> (envelope, request's headers) -> the bytes that are sent with status 200."""


def _with_ranking(change: Callable[[list[Any]], list[Any]]) -> Callable[[str], str]:
    """Return a fault that edits the ids of a ranking; other words become prose."""

    def edit(words: str) -> str:
        try:
            return json.dumps({"ranking": change(json.loads(words)["ranking"])})
        except (ValueError, KeyError, TypeError):
            return f"{words} {words}"

    return edit


WORDS: Mapping[str, Callable[[str], str]] = {
    "truncated-words": lambda words: words[: len(words) // 2],
    "malformed-words": lambda words: words.replace(":", "=").replace('"', "'"),
    "wrong-schema": lambda words: '{"answer": {"items": "none of them"}}',
    "prose": lambda words: "Certainly! I would watch the second one first, and then perhaps the others.",
    "empty-words": lambda words: "",
    "fenced": lambda words: f"Here it is:\n```json\n{words}\n```\nEnjoy!",
    "duplicate-ids": _with_ranking(lambda ids: [one for one in ids for _ in range(2)]),
    "out-of-range-ids": _with_ranking(lambda ids: [0, -1, 10**9, *ids, 10**30]),
}
"""Fault -> what becomes of the model's words, in an envelope that is right."""


def logprobs(next_token: NextToken, prompt: str, body: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return what a chat, a completion or an echo says of log-probabilities."""
    ranked = sorted(next_token(prompt).items(), key=lambda item: -item[1])
    if chat:
        top = [{"token": t, "logprob": p} for t, p in ranked[: int(body.get("top_logprobs", 0))]]
        return {"content": [{"token": ranked[0][0], "logprob": ranked[0][1], "top_logprobs": top}]}
    top_of_next = dict(ranked[: int(body["logprobs"])])
    if not body.get("echo"):
        return {"tokens": [ranked[0][0]], "token_logprobs": [ranked[0][1]], "top_logprobs": [top_of_next]}
    found = [(match.start(), match.group()) for match in re.finditer(r"\s?\S+|\s+", prompt)]
    values = [next_token(prompt[:start]).get(token, -20.0) for start, token in found]
    return {
        "tokens": [token for _, token in found] + [ranked[0][0]],
        "token_logprobs": [None, *values[1:], ranked[0][1]],
        "text_offset": [start for start, _ in found] + [len(prompt)],
    }
