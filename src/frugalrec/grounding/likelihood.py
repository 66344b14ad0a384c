"""Candidate likelihood: how likely the LLM finds each title of a given list, as scores for fusion.

The user's prompt is computed once for all candidates. The score is the log-probability (nats) of the
title and the end of the text after it, as in trie grounding, and both leave the same room for titles:
they ask the same questions, and agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.answers import AnswerCache, answer_key
from frugalrec.grounding.base import Progress, checked_users
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.types import PAD, FloatArray, Ranking


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
        if self.users_per_batch < 1:
            raise ConfigError(f"users_per_batch must be at least 1, not {self.users_per_batch}.")
        if not 0 <= self.surprise < np.inf:
            raise ConfigError(f"surprise must be a number of at least 0, not {self.surprise}.")
        names = checked_titles(titles, histories)
        users = checked_users(ranking.users, histories)
        end = getattr(getattr(self.lm, "tokenizer", None), "eos_token", None) or ""
        texts = questions(self.lm, self.prompt, histories, users, names, room=self._room(names, end))
        asked = (ranking.items != PAD) & np.array([bool(name) for name in names])[ranking.items]
        listed = np.unique(ranking.items[asked]).tolist()
        answers = {item: self.prompt.answer(names[item]) + end for item in listed}
        scores = np.full(ranking.items.shape, np.nan, dtype=np.float32)
        with AnswerCache(cache) if cache is not None else nullcontext() as store:
            asker = _Asker(self.lm, store)
            usual = asker.ask([self.prompt.question([])], [list(answers.values())]) if self.surprise else {}
            for start in range(0, users.size, self.users_per_batch):
                rows = range(start, min(start + self.users_per_batch, users.size))
                wanted = [[answers[i] for i in ranking.items[row, asked[row]].tolist()] for row in rows]
                known = asker.ask([texts[row] for row in rows], wanted)
                for row, own in zip(rows, wanted, strict=True):
                    values = [known[texts[row], a] - self._usual(usual, a) for a in own]
                    scores[row, asked[row]] = values
                if progress is not None:
                    progress(rows.stop, users.size)
        return scores, asker.usage

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

    def _usual(self, usual: dict[tuple[str, str], float], answer: str) -> float:
        return self.surprise * usual[self.prompt.question([]), answer] if self.surprise else 0.0


class _Asker:
    """Asks for log-probabilities, each question and answer once, and remembers what that cost."""

    def __init__(self, lm: LanguageModel, store: AnswerCache | None) -> None:
        self.lm = lm
        self.store = store
        self.fingerprint = "" if store is None else lm.fingerprint  # once: it may hash files
        self.usage = Usage()

    def ask(self, texts: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[tuple[str, str], float]:
        """Return (question, answer) -> log-probability."""
        pairs = list(dict.fromkeys((t, a) for t, own in zip(texts, answers, strict=True) for a in own))
        keys = {(t, a): answer_key(self.fingerprint, t, ("log-probability", a)) for t, a in pairs}
        stored = {} if self.store is None else self.store.get(keys.values())
        known = {pair: stored[key] for pair, key in keys.items() if key in stored}
        missing: dict[str, list[str]] = {}
        for text, answer in pairs:
            if (text, answer) not in known:
                missing.setdefault(text, []).append(answer)
        if not missing:
            return known
        sums, usage = self.lm.loglikelihood(list(missing), list(missing.values()))
        fresh = {
            (text, answer): float(value)
            for (text, own), values in zip(missing.items(), sums, strict=True)
            for answer, value in zip(own, values, strict=True)
        }
        if not np.isfinite(list(fresh.values())).all():
            raise ModelError(f"{self.lm.model} gave answers that are not finite numbers; try float32.")
        if self.store is not None:
            self.store.put({keys[pair]: value for pair, value in fresh.items()}, usage)
        self.usage = self.usage + usage
        return known | fresh
