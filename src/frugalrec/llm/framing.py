"""The frame of a chat prompt: a system text and a user text as one text that a language model continues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from frugalrec.llm.base import LanguageModel

_MARK = "SYSTEM-GOES-HERE"


@dataclass(frozen=True, kw_only=True)
class Framed:
    """A prompt that ends where the answer begins."""

    text: str
    blank: str
    """What an answer begins with: a blank after plain text; nothing after a chat template, and nothing where
    answers are texts of their own (encoder-decoder models)."""


def framed(lm: LanguageModel, system: str, user: str) -> Framed:
    r"""Return a system and a user text as one prompt.

    A tokenizer with a chat template frames them as turns; where the template has no system role, the
    system text opens the user's turn. Other models get plain text that ends in ``Answer:``.

    >>> from frugalrec.testing.fake_llm import FakeLLM
    >>> framed(FakeLLM(), "You rank films.", "Which is best?")
    Framed(text='You rank films.\n\nWhich is best?\nAnswer:', blank=' ')
    """
    chat: Callable[..., str] | None = getattr(lm, "chat", None)
    tokenizer = getattr(lm, "tokenizer", None)
    if chat is None or not getattr(tokenizer, "chat_template", None):
        blank = "" if getattr(lm, "is_encoder_decoder", False) else " "
        return Framed(text=f"{system}\n\n{user}\nAnswer:".lstrip("\n"), blank=blank)
    if system and _has_system_role(tokenizer):
        return Framed(text=chat(user, system), blank="")
    return Framed(text=chat(f"{system}\n\n{user}".lstrip("\n")), blank="")


def _has_system_role(tokenizer: Any) -> bool:
    """Say whether a chat template shows the system text; some refuse the role, some drop it."""
    turns = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
    try:
        return _MARK in str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception:  # templates raise what they like: jinja2's errors, ValueError, TypeError
        return False
