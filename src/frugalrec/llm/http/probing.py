"""One small call before the many: does the endpoint answer, does it keep to a schema, does it count?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frugalrec.llm.chat import ChatRequest, Reason
from frugalrec.llm.http.client import Outcome

QUESTION = ChatRequest(
    system="You are asked one question. Answer in one short sentence.",
    user="Here are three films. 1: Alien, 2: Heat, 3: Bambi. Which is the best to see with small children?",
    schema={
        "type": "object",
        "required": ["ranking"],
        "additionalProperties": False,
        "properties": {
            "ranking": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 3},
                "minItems": 1,
                "maxItems": 3,
            }
        },
    },
    max_tokens=64,
)
"""Asks for a sentence in words and for a list by schema: only a server that enforces it sends the list."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What an endpoint can do, as far as one call shows."""

    answers: bool
    reason: Reason
    detail: str
    """Why it does not answer."""
    keeps_schema: bool | None
    """Whether the answer followed the schema; None if the profile asks for none, or there is no answer."""
    counts_tokens: bool
    """Whether it reports usage; where not, the cap counts the upper bound."""
    latency_s: float

    @property
    def advice(self) -> str:
        """What to do about it; empty if all is well."""
        if not self.answers:
            return (
                f"the endpoint does not answer ({self.reason}: {self.detail}). Check base_url, model and key."
            )
        if self.keeps_schema is False:
            return "the endpoint ignores the schema: take the profile of its kind, or expect repairs."
        if not self.counts_tokens:
            return "the endpoint reports no token counts: caps in tokens or money count upper bounds."
        return ""


def judge(outcome: Outcome, *, asked_for_schema: bool) -> Probe:
    """Return what the outcome of `QUESTION` shows."""
    reply = outcome.reply
    kept = None
    if asked_for_schema and reply is not None and reply.text is not None:
        kept = _follows(reply.text)
    return Probe(
        answers=reply is not None,
        reason=outcome.reason,
        detail=outcome.detail,
        keeps_schema=kept,
        counts_tokens=reply is not None and None not in (reply.tokens_in, reply.tokens_out),
        latency_s=outcome.latency_s,
    )


def _follows(text: str) -> bool:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, Mapping) or set(found) != {"ranking"}:
        return False
    ranking = found["ranking"]
    return isinstance(ranking, list) and 1 <= len(ranking) <= 3 and all(i in (1, 2, 3) for i in ranking)
