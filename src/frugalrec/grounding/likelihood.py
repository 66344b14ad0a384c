"""Candidate likelihood: how likely the LLM finds each title of a given list, as scores for fusion.

The user's prompt is computed once for all candidates. The score is the log-probability (nats) of the
title and the end of the text after it, as in trie grounding, and both leave the same room for titles:
they ask the same questions, and agree to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.grounding.answers import answer_key
from frugalrec.grounding.asking import Asker, Pair, ask_rows
from frugalrec.grounding.base import Progress, checked_users
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.types import PAD, DoubleArray, FloatArray, Ranking


class TitleLikelihood:
    """Scores each user's candidates with the log-probability of their titles."""

    def __init__(
        self,
        lm: LanguageModel,
        prompt: NextTitlePrompt,
        *,
        surprise: float = 0.0,
        users_per_batch: int = 8,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.surprise = surprise
        """Share of a title's log-probability after an empty history that is taken off: 0 leaves likely
        and short titles their advantage, 1 counts only what the user's history changes."""
        self.users_per_batch = users_per_batch
        self._longest: tuple[list[str], int] | None = None

    def score(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        cache: Path | None = None,
    ) -> tuple[FloatArray, Usage]:
        """Return (log-probabilities, usage) for every candidate of a ranking.

        Items with the same title share an answer: the LLM cannot tell them apart.

        Args:
            histories: What is known of the users; the prompt takes the last items.
            ranking: The candidates, usually the first of the cheap model's list.
            titles: Title of each item code; default: those of `histories`.
            progress: Is told of the users.
            cache: An SQLite file of earlier answers; the call reads and extends it.

        Returns:
            Log-probabilities, (n_users, k) float32, NaN where the ranking is padded or an item's title
            holds no text; and what was spent in this call (answers from the cache cost nothing and are
            not in it).
        """
        if not 0 <= self.surprise < np.inf:
            raise ConfigError(f"surprise must be a number of at least 0, not {self.surprise}.")
        names = checked_titles(titles, histories)
        users = checked_users(ranking.users, histories)
        end = getattr(getattr(self.lm, "tokenizer", None), "eos_token", None) or ""
        texts = questions(self.lm, self.prompt, histories, users, names, room=self._room(names, end))
        asked = (ranking.items != PAD) & np.array([bool(name) for name in names])[ranking.items]
        listed = np.unique(ranking.items[asked]).tolist()
        answers = {item: self.prompt.answer(names[item]) + end for item in listed}

        def pairs(row: int) -> list[Pair]:
            return [(texts[row], answers[item]) for item in ranking.items[row, asked[row]].tolist()]

        with Asker(self.lm, self._sums, _key, cache) as asker:
            usual = self._usual(asker, answers, histories.n_items)
            sums = ask_rows(asker, asked, pairs, users_per_batch=self.users_per_batch, progress=progress)
        return (sums - usual[ranking.items]).astype(np.float32), asker.usage

    def _sums(self, asked: Mapping[str, Sequence[str]]) -> tuple[list[FloatArray], Usage]:
        return self.lm.loglikelihood(list(asked), list(asked.values()))

    def _usual(self, asker: Asker, answers: Mapping[int, str], n_items: int) -> DoubleArray:
        """Return what is taken off each item's log-probability, (n_items,)."""
        usual = np.zeros(n_items)
        if self.surprise and answers:
            nobody = self.prompt.question([])
            known = asker.values((nobody, answer) for answer in answers.values())
            usual[list(answers)] = [self.surprise * known[nobody, answer] for answer in answers.values()]
        return usual

    def _room(self, titles: list[str], end: str) -> int:
        """Return the tokens of the longest title, the end included; found out once a catalogue."""
        if getattr(self.lm, "max_tokens", None) is None:
            return 0  # nothing has to fit
        if self._longest is None or self._longest[0] != titles:
            from frugalrec.llm.queries import continuation_queries

            answers = {self.prompt.answer(title) + end for title in titles if title}
            lm: Any = self.lm  # a model that knows its limit has tokens
            (queries,) = continuation_queries(lm, [self.prompt.question([])], [sorted(answers)])
            self._longest = (titles, max(len(query.positions) for query in queries))
        return self._longest[1]


def _key(fingerprint: str, pair: Pair) -> bytes:
    return answer_key(fingerprint, pair[0], ("log-probability", pair[1]))
