"""Answers as the OpenAI protocol shows them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from frugalrec.serving.jobs import Answer, Piece


def chat_reply(model: str, fingerprint: str, answer: Answer, *, logprobs: bool) -> dict[str, Any]:
    """Return the body that answers /v1/chat/completions."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": {"content": [_chat_token(piece) for piece in answer.pieces]} if logprobs else None,
        "finish_reason": answer.finish,
    }
    return _reply("chatcmpl", "chat.completion", model, fingerprint, [choice], [answer])


def text_reply(model: str, fingerprint: str, answers: Sequence[Answer], *, logprobs: bool) -> dict[str, Any]:
    """Return the body that answers /v1/completions."""
    choices = [
        {
            "index": index,
            "text": answer.text,
            "logprobs": _columns(answer.pieces) if logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return _reply("cmpl", "text_completion", model, fingerprint, choices, answers)


def _reply(
    prefix: str,
    kind: str,
    model: str,
    fingerprint: str,
    choices: list[dict[str, Any]],
    answers: Sequence[Answer],
) -> dict[str, Any]:
    read = sum(answer.prompt_tokens for answer in answers)
    written = sum(answer.completion_tokens for answer in answers)
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
        },
    }


def _shown(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _chat_token(piece: Piece) -> dict[str, Any]:
    top = [
        {"token": _shown(content), "logprob": value, "bytes": list(content)} for content, value in piece.top
    ]
    own = {"token": _shown(piece.content), "logprob": piece.logprob, "bytes": list(piece.content)}
    return {**own, "top_logprobs": top}


def _name(content: bytes) -> str:
    """Return a token as a name: bytes that are no text by themselves are told apart."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _columns(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {
        "tokens": [_name(piece.content) for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        "top_logprobs": [
            None if piece.logprob is None else {_name(content): value for content, value in piece.top}
            for piece in pieces
        ],
        "text_offset": [piece.offset for piece in pieces],
    }
