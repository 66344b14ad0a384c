"""Find answers among the log-probabilities that an endpoint tells, in any of the forms they come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from frugalrec.errors import ModelError


def alternatives(logprobs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return token -> log-probability at the first place, from a chat's or a completion's form.

    Raises:
        ModelError: If there are none.
    """
    found: dict[str, float] = {}
    content = (logprobs or {}).get("content")
    tops = (logprobs or {}).get("top_logprobs")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        for one in [content[0], *_list(content[0].get("top_logprobs"))]:
            if isinstance(one, dict):
                _add(found, one.get("token"), one.get("logprob"))
    elif isinstance(tops, list) and tops and isinstance(tops[0], dict):
        for token, value in tops[0].items():
            _add(found, token, value)
    if not found:
        raise ModelError(
            "the endpoint told no log-probabilities of the first token. Check that it can, or take another "
            "profile or a local model."
        )
    return found


def first_tokens(found: Mapping[str, float], answers: Sequence[str], *, spaced: bool) -> list[float]:
    """Return each answer's log-probability: that of the longest told token that the answer begins with.

    Args:
        found: Token -> log-probability.
        answers: The answers, as they would follow the prompt.
        spaced: Whether leading blanks count; after a chat's template they do not.

    Raises:
        ModelError: If an answer's token was not told, or two answers begin with the same one.
    """

    def bare(text: str) -> str:
        return text if spaced else text.lstrip()

    tokens = []
    for answer in answers:
        begins = [t for t in found if bare(t) and bare(answer).startswith(bare(t)) and t.strip()]
        if not begins:
            raise ModelError(
                f"the answer {answer!r} is not among the {len(found)} likeliest first tokens. Choose answers "
                f"that the model expects after the prompt, or use a local model, which knows every token."
            )
        tokens.append(max(begins, key=lambda t: (len(bare(t)), found[t])))
    if len(set(tokens)) < len(tokens):
        raise ModelError(f"the answers {list(answers)} begin with the same token; choose others.")
    return [found[token] for token in tokens]


def sum_after(start: int, end: int, logprobs: Mapping[str, Any] | None) -> float:
    """Return the summed log-probability of the tokens that reach into characters `start` to `end`.

    Raises:
        ModelError: If the endpoint did not echo them.
    """
    parts = logprobs or {}
    values, offsets = _list(parts.get("token_logprobs")), _list(parts.get("text_offset"))
    tokens = [token if isinstance(token, str) else "" for token in _list(parts.get("tokens"))]
    same_length = len(values) == len(offsets) == len(tokens) > 0
    if not same_length or not all(isinstance(offset, int) for offset in offsets):
        raise ModelError(
            "the endpoint did not echo the log-probabilities of the text. Use vLLM, or a local model."
        )
    ends = [*offsets[1:], offsets[-1] + len(tokens[-1])]
    if ends[-1] < end:
        raise ModelError("the endpoint echoed less than the whole text; raise its limit on context.")
    total = 0.0
    for value, begin, until in zip(values, offsets, ends, strict=True):
        if until > start and begin < end:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ModelError("a token of the continuation has no log-probability; give a longer prompt.")
            total += min(0.0, float(value))
    return total


def _add(found: dict[str, float], token: Any, value: Any) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(token, str) and sound:
        found[token] = max(min(0.0, float(value)), found.get(token, -math.inf))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
