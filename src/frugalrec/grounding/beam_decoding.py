"""Free grounding: the LLM writes whatever it likes by beam search, and what is an item's text is listed.

Nothing holds the beams to the catalogue, so some write texts of no item and some write an item twice, in
other tokens. Both are counted, never replaced: their places stay empty. `TrieGrounder` cannot write such
texts; this one is what P5 and POD do, and says what their beams are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.grounding.base import Grounder, Progress
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.ledger import Usage
from frugalrec.recommenders.base import Seen
from frugalrec.types import PAD, IntArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.beam_search import BeamSettings
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What became of the texts that were written for some users; counts, (n_users,) each."""

    written: IntArray
    """Texts in all."""
    invalid: IntArray
    """Texts that are no item's."""
    duplicate: IntArray
    """Texts of an item that a better one had named already."""
    seen: IntArray
    """Texts of items that the user has had, where those are to be left out."""


class BeamGrounder(Grounder):
    """Lists the items whose texts the model writes by free beam search, in the order of its beams.

    Items of one text come together, in order of item code; they share its score: the log-probability over
    the tokens to the power of the length penalty.
    """

    name: ClassVar[str] = "beams"

    def __init__(
        self,
        lm: LocalLM,
        prompt: NextTitlePrompt,
        *,
        settings: BeamSettings | None = None,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.settings = settings
        """How to search; default: 20 beams."""
        self.titles = titles
        """Title (or id) of each item code; default: those of the histories."""
        self.outputs: Outputs | None = None
        """What became of the texts of the latest call."""
        self._names: tuple[list[str], dict[str, list[int]]] | None = None

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        from frugalrec.llm.beam_search import BeamSettings, beam_search

        settings = self.settings or BeamSettings()
        titles = checked_titles(self.titles, histories)
        names = self._named(titles)
        room = settings.max_new_tokens
        texts = questions(self.lm, self.prompt, histories, users, titles, room=room)
        written, usage = beam_search(self.lm, self.lm.encode(texts), settings, progress=progress)
        items = np.full((users.size, k), PAD, dtype=np.int32)
        scores = np.full((users.size, k), -np.inf, dtype=np.float32)
        counts = np.zeros((4, users.size), dtype=np.int32)
        for row, user in enumerate(users):
            had = set(histories.history(int(user)).tolist()) if seen == "exclude" else set()
            found = [names.get(self._text(tokens), []) for tokens in written.tokens[row]]
            listed, counts[:, row] = _listed(found, had)
            for place, (item, text) in enumerate(listed[:k]):
                items[row, place], scores[row, place] = item, written.scores[row, text]
        texts_all, invalid, duplicate, left_out = counts
        self.outputs = Outputs(written=texts_all, invalid=invalid, duplicate=duplicate, seen=left_out)
        return Ranking(users=users, items=items, scores=scores), usage

    def _named(self, titles: list[str]) -> dict[str, list[int]]:
        """Return text -> item codes, as the tokenizer gives texts back; made once a catalogue."""
        if self._names is None or self._names[0] != titles:
            items = [item for item, title in enumerate(titles) if title]
            answers = [self.prompt.answer(titles[item]) for item in items]
            names: dict[str, list[int]] = {}
            rows = self.lm.tokenizer(answers, add_special_tokens=False).input_ids
            for item, tokens in zip(items, rows, strict=True):
                names.setdefault(self._text(tokens), []).append(item)
            names.pop("", None)
            self._names = (titles, names)
        return self._names[1]

    def _text(self, tokens: Sequence[int]) -> str:
        decoded = self.lm.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return " ".join(decoded.split())


def _listed(
    texts: Sequence[Sequence[int]], had: set[int]
) -> tuple[list[tuple[int, int]], tuple[int, int, int, int]]:
    """Return (item, number of its text) in order, and how many texts were written, invalid, double, seen.

    Args:
        texts: The items of each text, best text first.
        had: Items to leave out.
    """
    listed: list[tuple[int, int]] = []
    named: set[int] = set()
    invalid = duplicate = seen = 0
    for number, items in enumerate(texts):
        if not items:
            invalid += 1
        elif items[0] in named:  # an item has one text, so all of them were named
            duplicate += 1
        else:
            named.update(items)
            fresh = [(item, number) for item in items if item not in had]
            seen += not fresh
            listed += fresh
    return listed, (len(texts), invalid, duplicate, seen)
