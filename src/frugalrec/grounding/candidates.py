"""Candidate re-ranking: ask the LLM yes or no about each item of the cheap model's list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.grounding.answers import answer_key
from frugalrec.grounding.asking import Asker, Pair, ask_rows
from frugalrec.grounding.base import Progress
from frugalrec.grounding.questions import checked_titles
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.types import PAD, FloatArray, Ranking


class CandidateReranker:
    """Scores each user's candidates with the log-odds of Yes against No."""

    def __init__(self, llm: LanguageModel, prompt: RerankPrompt, *, users_per_batch: int = 8) -> None:
        self.llm = llm
        self.prompt = prompt
        self.users_per_batch = users_per_batch

    def score(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        cache: Path | None = None,
    ) -> tuple[FloatArray, Usage]:
        """Return (log-odds, usage) for every candidate of a ranking.

        Items with the same title share an answer: the LLM cannot tell them apart. Those without one are
        not asked about, and not shown in histories.

        Args:
            histories: What is known of the users; the prompt takes the last items.
            ranking: The candidates, usually the cheap model's top 20.
            titles: Title of each item code; default: those of `histories`. Ids that stand in for missing
                ones there are none.
            progress: Is told of the users.
            cache: An SQLite file of earlier answers; the call reads and extends it.

        Returns:
            Log-odds, (n_users, k) float32, NaN where the ranking is padded or an item has no title;
            and what was spent in this call (answers from the cache cost nothing and are not in it).
        """
        names = checked_titles(titles, histories)
        titled = np.array([bool(name) for name in names])
        asked = (ranking.items != PAD) & titled[ranking.items]

        def pairs(row: int) -> list[Pair]:
            items = ranking.items[row, asked[row]].tolist()
            group = self._group(histories, int(ranking.users[row]), items, names)
            return [(group.prefix, suffix) for suffix in group.suffixes]

        with Asker(self.llm, self._log_odds, self._key, cache) as asker:
            odds = ask_rows(
                asker,
                asked,
                pairs,
                users_per_batch=self.users_per_batch,
                progress=progress,
            )
        return odds.astype(np.float32), asker.usage

    def _group(
        self, histories: Dataset, user: int, candidates: Sequence[int], titles: Sequence[str]
    ) -> PromptGroup:
        """Return one user's prompts, without the history items that have no title."""
        first, last = histories.indptr[user], histories.indptr[user + 1]
        at = [place for place in range(first, last) if titles[histories.items[place]]]
        values = None if histories.values is None else histories.values[at]
        return self.prompt.group(histories.items[at].tolist(), values, candidates, titles)

    def _key(self, fingerprint: str, pair: Pair) -> bytes:
        return answer_key(fingerprint, pair[0] + pair[1], self.prompt.answers)

    def _log_odds(self, asked: Mapping[str, Sequence[str]]) -> tuple[list[FloatArray], Usage]:
        """Return the log-odds of each prefix's suffixes, and what they cost."""
        groups = [PromptGroup(prefix=prefix, suffixes=tuple(some)) for prefix, some in asked.items()]
        rows, usage = self.llm.choose(groups, self.prompt.answers)
        exact = [np.asarray(row, dtype=np.float64) for row in rows]
        return [(row[:, 0] - row[:, 1]).astype(np.float32) for row in exact], usage
