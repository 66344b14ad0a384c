"""The words of a prompt: what it begins and ends with, whatever its content, and which tokens texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.prompts import RerankPrompt

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

Prompt = PreferencePrompt | RerankPrompt | NextTitlePrompt


def words(prompt: Prompt) -> tuple[str, str]:
    r"""Return the words that a prompt begins and ends with, around its content.

    >>> words(NextTitlePrompt(noun="game"))
    ('Recommend the next game. Games played, oldest first: ', '\nNext game:')
    """
    text = _sample(prompt, ["FIRST"], ["FIRST"], "LAST")
    last = "FIRST" if isinstance(prompt, NextTitlePrompt) else "LAST"
    return text.partition("FIRST")[0], text.rpartition(last)[2]


def samples(prompt: Prompt) -> list[str]:
    """Return texts of a prompt that have nothing in common but its words; one of two lists may be empty."""
    lists = [(["First"], ["Second"]), (["~"], []), ([], ["9"])]
    return [_sample(prompt, *pair, target) for pair in lists for target in ("Other", "(1)")]


def _sample(prompt: Prompt, liked: Sequence[str], disliked: Sequence[str], target: str) -> str:
    if isinstance(prompt, NextTitlePrompt):
        return prompt.question(liked or disliked)
    if isinstance(prompt, PreferencePrompt):
        return prompt.ask(liked, disliked, target).text
    rated = prompt.min_like is not None
    head = prompt.prefix([], liked, disliked) if rated else prompt.prefix(liked or disliked)
    return head + prompt.suffix(target)


def beginning(lm: LocalLM, prompt: Prompt, queries: Sequence[Query]) -> tuple[int, ...]:
    """Return the tokens that all texts of a prompt begin with: what a prompt cache reads once.

    Args:
        lm: The model.
        prompt: The prompt.
        queries: Some of its texts.
    """
    from frugalrec.llm.kv_prefix import shared_tokens

    return shared_tokens([*lm.encode(samples(prompt)), *(query.tokens for query in queries)])
