"""Yes/no questions about one user's likes and dislikes: TALLRec's own words, and cheaper ones.

A question holds some titles that the user liked, some disliked, and a target. Four styles write it:
`alpaca` is TALLRec's prompt byte for byte (arXiv 2305.00447), `chat` puts the same words into a turn of
the tokenizer's template, `plain` says it shortly, and `rated` lists the titles one a line with the
user's answer behind each. In that style every line is a question whose answer is known, so that one row
of ten titles trains ten more answers than the target's, at no further label and no further token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from frugalrec.errors import ConfigError
from frugalrec.llm.prompts import CHATML, VERBS, Learned, clean_title, written
from frugalrec.rng import generator

Style = Literal["alpaca", "chat", "plain", "rated"]
STYLES = ("alpaca", "chat", "plain", "rated")

_TEMPLATE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.{remark}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_REMARK = "  # noqa: E501"
"""TALLRec's code holds this inside its template, so its models were trained on it."""
_ARTICLE = re.compile(r"(?P<name>.+), (?P<article>The|A|An|Le|La|Les|Il|El|Das|Der|Die)(?P<rest>( \(.*)?)")
_BOOK = re.compile(r'"(?P<title>.*)" written by (?P<author>.*)', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt that ends where an answer is asked; some answers may stand in it already."""

    text: str
    known: tuple[tuple[int, bool], ...] = ()
    """(offset, liked) of each answer that stands in the text, in characters from its start."""


@dataclass(frozen=True, kw_only=True)
class PreferencePrompt:
    r"""How to ask whether a user will like a title, given what they liked and disliked.

    >>> prompt = PreferencePrompt(noun="movie", style="plain")
    >>> prompt.ask(["Alien (1979)"], [], "Net, The (1995)").text
    'Movies liked: "Alien (1979)".\nWill they like the movie "The Net (1995)"? Answer:'
    """

    noun: str = "item"
    """What the items are, singular: movie, book, game, product, ..."""
    style: Style = "rated"
    frame: tuple[str, str] = CHATML
    """Text before and after the question in chat style; see `llm.prompts.chat_frame`."""
    remark: bool = True
    """Whether the alpaca style keeps the stray code remark that the published template holds."""
    years: bool = True
    """Whether plain and rated show the year behind a title, ``(1979)``; many LLMs read it as six tokens."""
    max_title_chars: int = 120
    """Longest title in the styles plain and rated; TALLRec's words are never cut."""
    learned: Learned | None = None
    """Learned vectors that stand for all words: the content alone is written; see `distillation`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.style not in STYLES:
            raise ConfigError(f"unknown prompt style {self.style!r}; choose one of {', '.join(STYLES)}.")
        if self.max_title_chars < 8:
            raise ConfigError(f"a prompt needs max_title_chars >= 8, not {self.max_title_chars}.")
        if clean_title(self.noun) != self.noun:
            raise ConfigError(f"the noun {self.noun!r} must be a plain word such as film or book.")

    @property
    def answers(self) -> tuple[str, str]:
        """The positive and the negative answer, as they follow the prompt."""
        if self.style in ("alpaca", "chat"):
            return ("Yes.", "No.")
        return (" Yes", " No")

    @property
    def instruction(self) -> str:
        """TALLRec's instruction."""
        return (
            "Given the user's preference and unpreference, identify whether the user will like the "
            f'target {self.noun} by answering "Yes." or "No.".'
        )

    def ask(self, liked: Sequence[str], disliked: Sequence[str], target: str, *, view: int = 0) -> Question:
        """Return the question for one row.

        Args:
            liked: Titles that the user liked, oldest first.
            disliked: Titles that the user disliked, oldest first.
            target: The title in question.
            view: In the style rated, the order between liked and disliked titles, which the rows do not
                say: one draw a view, seeded by the row itself. Inference takes view 0.
        """
        if self.style == "rated":
            return self._rated(liked, disliked, target, view)
        parts = self._plain(liked, disliked, target) if self.style == "plain" else [""]
        if self.style in ("alpaca", "chat"):
            before, after = self._around()
            first, *rest, last = self._parts(liked, disliked, target)
            parts = [before + first, *rest, last + after]
        return Question(text=written(parts, self.learned))

    def _around(self) -> tuple[str, str]:
        """Return what stands before and after `input` in the styles alpaca and chat."""
        if self.style == "chat":
            return f"{self.frame[0]}{self.instruction}\n", self.frame[1]
        text = _TEMPLATE.format(
            remark=_REMARK if self.remark else "", instruction=self.instruction, input="\0"
        )
        before, _, after = text.partition("\0")
        return before, after

    def input(self, liked: Sequence[str], disliked: Sequence[str], target: str) -> str:
        """Return what TALLRec's files hold as `input`: both lists and the question."""
        return written(self._parts(liked, disliked, target), None)

    def _parts(self, liked: Sequence[str], disliked: Sequence[str], target: str) -> list[str]:
        """Return words and content of `input` in turn."""
        question = f'\nWhether the user will like the target {self.noun} "'
        lists = _listed(liked), "\nUser Unpreference: ", _listed(disliked)
        return ["User Preference: ", *lists, question, target, '"?']

    def shown(self, title: str) -> str:
        """Return a title as the styles plain and rated show it: natural word order, no stray quotes.

        >>> PreferencePrompt(years=False).shown("Perez Family, The (1995)")
        'The Perez Family'
        """
        if book := _BOOK.fullmatch(title):
            title = f"{book['title']} by {book['author']}"
        elif moved := _ARTICLE.fullmatch(title):
            title = f"{moved['article']} {moved['name']}{moved['rest']}"
        if not self.years:
            title = re.sub(r" \(\d{4}\)$", "", title)
        return clean_title(title, self.max_title_chars)

    def _plain(self, liked: Sequence[str], disliked: Sequence[str], target: str) -> list[str]:
        """Return words and content in turn; words leave an empty list out."""
        plural, words, parts = f"{self.noun.capitalize()}s", "", []
        for verb, titles in (("liked", liked), ("disliked", disliked)):
            if titles or self.learned is not None:
                parts += [
                    f"{words}{plural} {verb}: ",
                    ", ".join(f'"{self.shown(title)}"' for title in titles),
                ]
                words = ".\n"
        return [*parts, f'{words}Will they like the {self.noun} "', self.shown(target), '"? Answer:']

    def _rated(self, liked: Sequence[str], disliked: Sequence[str], target: str, view: int) -> Question:
        verb = VERBS.get(self.noun, "chose")
        opening, ending = f"{self.noun.capitalize()}s one person {verb}, and whether they liked each.\n", ":"
        text, ending = self.learned or (opening, ending)
        known = []
        for title, like in interleave(liked, disliked, view):
            text += f"{self.shown(title)}:"
            known.append((len(text), like))
            text += f"{self.answers[0] if like else self.answers[1]}\n"
        return Question(text=f"{text}{self.shown(target)}{ending}", known=tuple(known))


def interleave(liked: Sequence[str], disliked: Sequence[str], view: int) -> list[tuple[str, bool]]:
    """Merge both lists in a random order that keeps each list's own.

    The draw depends on the titles and the view alone.

    >>> interleave(["a", "b"], [], 0)
    [('a', True), ('b', True)]
    """
    rng = generator(0, "preferences", "interleave", view, *liked, "|", *disliked)
    likes = rng.permutation(np.repeat([True, False], [len(liked), len(disliked)]))
    rest = {True: iter(liked), False: iter(disliked)}
    return [(next(rest[like]), like) for like in likes.tolist()]


def _listed(titles: Sequence[str]) -> str:
    return ", ".join(title if _BOOK.fullmatch(title) else f'"{title}"' for title in titles)
