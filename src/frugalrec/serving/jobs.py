"""What is asked of the model, and what it answers, in texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """One text that is wanted."""

    prompt: str | None = None
    """The text to continue; None with messages."""
    messages: tuple[Mapping[str, str], ...] = ()
    """Turns of a conversation, for the tokenizer's chat template."""
    max_tokens: int | None = None
    """The longest answer; None means as long as the server allows. 0 reads the prompt only."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top: int | None = None
    """Likeliest tokens reported at each place; None reports no log-probabilities."""
    echo: bool = False
    """Whether the prompt is part of the answer, with its log-probabilities."""
    schema: Any = None
    """A JSON schema, or True for any JSON object; None leaves the answer free."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token as the protocol shows it."""

    content: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    offset: int = 0
    """Characters of the text before it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a job."""

    text: str
    finish: str
    prompt_tokens: int
    cached_tokens: int
    """Of these, the tokens that did not have to be read."""
    completion_tokens: int
    pieces: list[Piece] = field(default_factory=list)
    """Tokens with log-probabilities, where these were asked for."""
