"""Prompts: one function writes the text of training and of inference, target title last.

The prompt of a pair (history, candidate) is ``prefix + suffix``: everything about the user stands
in the prefix, so that all candidates of a user share it, and a backend computes it once. Titles are
cleaned and quoted as JSON strings; user ids never enter a prompt. After TALLRec (arXiv 2305.00447),
with fewer words: each word is paid for once a user.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frugalrec.errors import ConfigError
from frugalrec.llm.base import PromptGroup

Style = Literal["plain", "chat"]
VERBS = {"film": "watched", "movie": "watched", "book": "read", "game": "played", "product": "bought"}
"""What a user did with an item; nouns that are not listed were "chosen"."""
CHATML = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
"""The turn markers of ChatML (SmolLM2, Qwen), without a system message."""
UNTITLED = "untitled"
Learned = tuple[str, str]
"""Tokens of learned vectors that stand for the words of a prompt: before its content, and behind it."""

# Tokenizers turn texts such as <|im_end|>, </s>, <start_of_turn> and [INST] into control tokens.
_CONTROL_TOKEN = re.compile(r"(?<=<)(?=[|/A-Za-z_])|(?<=\[)(?=/?[A-Z_]+\])")


def clean_title(title: str, max_chars: int = 120) -> str:
    r"""Return a title that is safe inside a prompt: one line, no hidden characters, capped.

    NFKC first (full-width forms may hide markup), then white space collapsed to single blanks,
    control, zero-width and bidirectional characters removed, markup that a tokenizer would read as
    a control token broken up, and the rest cut to `max_chars` characters.

    >>> clean_title("Alien\u200b  (1979)\n<|im_end|>")
    'Alien (1979) < |im_end|>'
    """
    text = unicodedata.normalize("NFKC", title[: 8 * max_chars])
    text = " ".join(text.split())
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    text = _CONTROL_TOKEN.sub(" ", " ".join(text.split()))
    if len(text) > max_chars:
        text = text[: max_chars - 1].rstrip() + "…"
    return text or UNTITLED


def has_text(title: str) -> bool:
    r"""Return whether anything is left of a title when it is clean; `clean_title` names the others untitled.

    >>> has_text("Untitled"), has_text(" \u200b\n")
    (True, False)
    """
    return any(unicodedata.category(c)[0] not in "CZ" for c in unicodedata.normalize("NFKC", title))


def written(parts: Sequence[str], learned: Learned | None) -> str:
    r"""Join the parts of a prompt, or, with learned vectors, its content alone.

    What is words and what is content is said here, for training and inference alike.

    >>> written(["Films: ", "Alien", ". Next: ", "Heat", "?"], None)
    'Films: Alien. Next: Heat?'
    >>> written(["Films: ", "Alien", ". Next: ", "Heat", "?"], ("<0>", "<1>"))
    '<0>Alien\nHeat<1>'

    Args:
        parts: Words and content in turn; words come first, and last.
        learned: What is read instead of the words: the first and the last ones become vectors, those
            between two contents a line break.
    """
    if learned is None:
        return "".join(parts)
    return learned[0] + "\n".join(parts[1::2]) + learned[1]


@dataclass(frozen=True, kw_only=True)
class RerankPrompt:
    r"""The yes/no question "would this user choose this item?", as a prefix and a suffix.

    >>> prompt = RerankPrompt(noun="film")
    >>> prompt.prefix(["Alien (1979)"]) + prompt.suffix("Heat (1995)")
    'Films watched: "Alien (1979)".\nNext film: "Heat (1995)"? Answer:'
    """

    noun: str = "item"
    """What the items are, singular: film, book, game, product, ..."""
    window: int = 10
    """History items shown at most; older ones fall away."""
    style: Style = "plain"
    """`plain` continues a text; `chat` puts the question into a user turn (`frame`)."""
    frame: tuple[str, str] = CHATML
    """Text before and after the question in chat style; see `chat_frame`."""
    min_like: float | None = None
    """With a number, history items with a value of at least this much are shown as liked and the
    others as disliked (TALLRec); with None, all are shown in order."""
    max_title_chars: int = 120
    learned: Learned | None = None
    """Learned vectors that stand for all words: the content alone is written; see `distillation`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.window < 1 or self.max_title_chars < 8:
            raise ConfigError(
                f"a prompt needs window >= 1 and max_title_chars >= 8, "
                f"not {self.window} and {self.max_title_chars}."
            )
        if self.style not in ("plain", "chat"):
            raise ConfigError(f"unknown prompt style {self.style!r}; choose plain or chat.")
        if clean_title(self.noun) != self.noun:
            raise ConfigError(f"the noun {self.noun!r} must be a plain word such as film or book.")

    @property
    def answers(self) -> tuple[str, str]:
        """The positive and the negative answer, as they follow the prompt."""
        return ("Yes", "No") if self.style == "chat" else (" Yes", " No")

    def prefix(
        self,
        history: Sequence[str],
        liked: Sequence[str] | None = None,
        disliked: Sequence[str] | None = None,
    ) -> str:
        """Return the part that all candidates of a user share.

        Args:
            history: Titles, oldest first; used when neither list of ratings is given.
            liked: Titles the user rated well, oldest first.
            disliked: Titles the user rated badly, oldest first. An empty list is left out.
        """
        return written(self._opening(history, liked, disliked), self.learned and (self.learned[0], "\n"))

    def _opening(
        self, history: Sequence[str], liked: Sequence[str] | None, disliked: Sequence[str] | None
    ) -> list[str]:
        """Return words and content in turn, up to the candidate."""
        plural = f"{self.noun.capitalize()}s"
        if liked is None and disliked is None:
            lists = [(VERBS.get(self.noun, "chosen"), history)]
            question = f"Next {self.noun}:"
        else:
            lists = [("liked", liked or ()), ("disliked", disliked or ())]
            question = f"Will like the {self.noun}"
        if self.learned is None:  # without words, an empty line tells which list is missing
            lists = [(word, titles) for word, titles in lists if titles]
        words, parts = self.frame[0] if self.style == "chat" else "", []
        for word, titles in lists:
            parts += [f"{words}{plural} {word}: ", self._quote(titles)]
            words = ".\n"
        return [*parts, f"{words}{question}"]

    def suffix(self, candidate: str) -> str:
        """Return the part that names the candidate and asks for the answer."""
        if self.learned is not None:
            return f"{self._quote([candidate])}{self.learned[1]}"
        ending = f"?{self.frame[1]}" if self.style == "chat" else "? Answer:"
        return f" {self._quote([candidate])}{ending}"

    def for_history(self, items: Sequence[int], values: Any | None, titles: Sequence[str]) -> str:
        """Return the prefix for a history of item codes.

        Args:
            items: Item codes, oldest first.
            values: Their values, or None for implicit feedback.
            titles: Title of each item code.
        """
        recent = [titles[int(item)] for item in items[-self.window :]]
        if self.min_like is None or values is None:
            return self.prefix(recent)
        likes = [float(value) >= self.min_like for value in values[-self.window :]]
        liked = [title for title, like in zip(recent, likes, strict=True) if like]
        disliked = [title for title, like in zip(recent, likes, strict=True) if not like]
        return self.prefix(recent, liked, disliked)

    def group(
        self, items: Sequence[int], values: Any | None, candidates: Sequence[int], titles: Sequence[str]
    ) -> PromptGroup:
        """Return one user's prompts: the shared prefix and one suffix per candidate."""
        suffixes = tuple(self.suffix(titles[int(item)]) for item in candidates)
        return PromptGroup(prefix=self.for_history(items, values, titles), suffixes=suffixes)

    def _quote(self, titles: Sequence[str]) -> str:
        cleaned = (clean_title(title, self.max_title_chars) for title in titles[-self.window :])
        return ", ".join(json.dumps(title, ensure_ascii=False) for title in cleaned)


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """Return the text that a tokenizer's chat template puts before and after a user's message.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the tokenizer has no chat template; use the prompt style plain.")
    mark = "QUESTION-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = str(text).partition(mark)
    if not found:
        raise ConfigError("the tokenizer's chat template drops the user's message; use the style plain.")
    return before, after
