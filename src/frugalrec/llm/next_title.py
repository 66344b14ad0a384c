"""The task "history -> title of the next item": how a training row becomes a prompt and an answer.

After BIGRec (arXiv 2308.08434), the generative recommender that DEALRec tunes. Rows that are too
long lose their oldest titles first, then the end of the only title left; never the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frugalrec.errors import ConfigError
from frugalrec.llm.prompts import VERBS, Learned, clean_title, written

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query


@dataclass(frozen=True, kw_only=True)
class NextTitlePrompt:
    r"""A prompt that shows titles, and the answer after it.

    >>> prompt = NextTitlePrompt(noun="game")
    >>> prompt.question(["Doom", "Quake"]) + prompt.answer("Myst")
    'Recommend the next game. Games played, oldest first: Doom; Quake\nNext game: Myst'
    """

    noun: str = "item"
    """What the items are, singular: film, book, game, product, ..."""
    window: int = 10
    """History items shown at most; older ones fall away."""
    max_title_chars: int = 120
    """Longest title in the history; answers are not cut."""
    instruction: str | None = None
    """What the prompt begins with; default: ``Recommend the next {noun}.``"""
    learned: Learned | None = None
    """Learned vectors that stand for all words: the content alone is written; see `distillation`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.window < 1 or self.max_title_chars < 8:
            raise ConfigError(
                f"a prompt needs window >= 1 and max_title_chars >= 8, "
                f"not {self.window} and {self.max_title_chars}."
            )
        if clean_title(self.noun) != self.noun:
            raise ConfigError(f"the noun {self.noun!r} must be a plain word such as film or book.")

    @property
    def opening(self) -> str:
        """The text that all prompts begin with."""
        instruction = self.instruction or f"Recommend the next {self.noun}."
        return f"{instruction} {self.noun.capitalize()}s {VERBS.get(self.noun, 'chosen')}, oldest first:"

    def question(self, history: Sequence[str]) -> str:
        """Return the prompt for some titles, oldest first."""
        content = "; ".join(self.shown(history))
        return written([f"{self.opening} ", content, f"\nNext {self.noun}:"], self.learned)

    def shown(self, history: Sequence[str]) -> list[str]:
        """Return the titles of a history that the prompt shows, as it shows them."""
        return [clean_title(title, self.max_title_chars) for title in history[-self.window :]]

    def answer(self, title: str) -> str:
        """Return the answer that follows the prompt."""
        return f" {clean_title(title, max_chars=1 << 20)}"


def fitted(
    lm: LocalLM, prompt: NextTitlePrompt, history: Sequence[str], title: str, max_tokens: int
) -> Query | None:
    """Return the tokens of a prompt and its answer, the end-of-text token included, cut to fit.

    Args:
        lm: The model that will read it.
        prompt: How to write it.
        history: Titles, oldest first.
        title: The answer.
        max_tokens: Longest prompt and answer together (each on its own, where an encoder reads the
            prompt).

    Returns:
        What to compute and where the answer stands in it, or None where the answer and an empty
        history are already too long.
    """
    from frugalrec.llm.queries import response_query

    titles, answer = prompt.shown(history), prompt.answer(title)
    limit = min(max_tokens, lm.max_tokens or max_tokens)

    def attempt(shown: Sequence[str]) -> Query | None:
        query = response_query(lm, prompt.question(shown), answer)
        length = max(len(query.tokens), len(query.decoder)) if query.decoder else len(query.tokens) + 1
        return query if length <= limit else None

    while (found := attempt(titles)) is None and len(titles) > 1:
        titles = titles[1:]
    if found is not None or not titles:
        return found
    low, high = 1, len(titles[0]) - 1  # the longest start of the title that fits
    while low <= high:
        middle = (low + high) // 2
        shorter = attempt([titles[0][:middle]])
        found, low, high = (shorter, middle + 1, high) if shorter is not None else (found, low, middle - 1)
    return found
