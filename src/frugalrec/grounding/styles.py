"""Styles of asking an LLM about candidates, by name: `pointwise`, `listwise`, `first-token`, `likelihood`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.listwise.first_token import FirstTokenReranker
from frugalrec.grounding.listwise.prompt import ListwisePrompt
from frugalrec.grounding.listwise.reranker import ListwiseReranker
from frugalrec.grounding.reranking import Reranker, ScoreReranker
from frugalrec.llm.base import LanguageModel
from frugalrec.llm.chat import ChatModel
from frugalrec.llm.local_chat import LocalChat
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.prompts import RerankPrompt


def make_reranker(
    style: str,
    *,
    lm: LanguageModel | None = None,
    chat: ChatModel | None = None,
    prompt: Any = None,
    noun: str = "item",
    depth: int = 20,
    cache: Path | None = None,
    **options: Any,
) -> Reranker:
    """Return what scores candidates in a style.

    Args:
        style: A name in `STYLES`.
        lm: A language model; `listwise` alone does without, if it has a chat model.
        chat: A chat model, for `listwise`; default: the language model, through `LocalChat`.
        prompt: The style's prompt: `RerankPrompt` for `pointwise`, `ListwisePrompt` for `listwise` and
            `first-token`, `NextTitlePrompt` for `likelihood`; default: one with the noun alone.
        noun: What the items are, singular; for the default prompt.
        depth: Candidates of each list that are scored.
        cache: An SQLite file of earlier answers; a chat model that was given has its own.
        options: More options of the style's class.

    Raises:
        ConfigError: If there is no such style, or it has no model to ask.
    """
    if style not in STYLES:
        raise ConfigError(f"unknown re-ranking style {style!r}; choose one of {', '.join(STYLES)}.")
    if lm is None and (style != "listwise" or chat is None):
        needed = "a chat model or a language model" if style == "listwise" else "a language model"
        raise ConfigError(f"re-ranking in the style {style} needs {needed}; an endpoint can do listwise.")
    return STYLES[style](_Wish(lm, chat, prompt, noun, depth, cache, options))


@dataclass(frozen=True)
class _Wish:
    """What `make_reranker` was asked for."""

    lm: Any
    chat: ChatModel | None
    prompt: Any
    noun: str
    depth: int
    cache: Path | None
    options: Mapping[str, Any]


def _pointwise(wish: _Wish) -> Reranker:
    """One yes/no question a candidate."""
    scorer = CandidateReranker(wish.lm, wish.prompt or RerankPrompt(noun=wish.noun), **wish.options)
    return ScoreReranker(scorer, depth=wish.depth, cache=wish.cache)


def _listwise(wish: _Wish) -> Reranker:
    """One question for an order of all candidates."""
    chat = LocalChat(wish.lm, cache=wish.cache) if wish.chat is None else wish.chat
    prompt = wish.prompt or ListwisePrompt(noun=wish.noun)
    return ListwiseReranker(chat, prompt, depth=wish.depth, **wish.options)


def _first_token(wish: _Wish) -> Reranker:
    """One forward pass for an order of all candidates."""
    prompt = wish.prompt or ListwisePrompt(noun=wish.noun)
    return FirstTokenReranker(wish.lm, prompt, depth=wish.depth, cache=wish.cache, **wish.options)


def _likelihood(wish: _Wish) -> Reranker:
    """The likelihood of each candidate's title after the history."""
    scorer = TitleLikelihood(wish.lm, wish.prompt or NextTitlePrompt(noun=wish.noun), **wish.options)
    return ScoreReranker(scorer, depth=wish.depth, cache=wish.cache)


STYLES: dict[str, Callable[[_Wish], Reranker]] = {
    "pointwise": _pointwise,
    "listwise": _listwise,
    "first-token": _first_token,
    "likelihood": _likelihood,
}
"""Style -> what builds it."""
