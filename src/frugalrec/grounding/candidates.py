"""Candidate re-ranking: ask the LLM yes or no about each item of the cheap model's list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding.answers import AnswerCache, answer_key
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.types import PAD, FloatArray, Ranking

Progress = Callable[[int, int], None]
"""Called with (users done, users in all)."""


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

        Items with the same title share an answer: the LLM cannot tell them apart.

        Args:
            histories: What is known of the users; the prompt takes the last items.
            ranking: The candidates, usually the cheap model's top 20.
            titles: Title of each item code; default: those of `histories`.
            progress: Is told of the users.
            cache: An SQLite file of earlier answers; the call reads and extends it.

        Returns:
            Log-odds, (n_users, k) float32, NaN where the ranking is padded; and what was spent in
            this call (answers from the cache cost nothing and are not in it).
        """
        if self.users_per_batch < 1:
            raise ConfigError(f"users_per_batch must be at least 1, not {self.users_per_batch}.")
        titles = histories.titles if titles is None else titles
        if len(titles) != histories.n_items:
            raise DataError(f"expected {histories.n_items} titles, one an item; got {len(titles)}.")
        odds = np.full(ranking.items.shape, np.nan, dtype=np.float32)
        usage, n = Usage(), ranking.users.size
        fingerprint = "" if cache is None else self.llm.fingerprint  # once: it may hash files
        with AnswerCache(cache) if cache is not None else nullcontext() as answers:
            for start in range(0, n, self.users_per_batch):
                rows = range(start, min(start + self.users_per_batch, n))
                groups = [self._group(histories, ranking, row, titles) for row in rows]
                known, spent = self._answers(groups, answers, fingerprint)
                usage = usage + spent
                for row, group in zip(rows, groups, strict=True):
                    present = ranking.items[row] != PAD
                    odds[row, present] = [known[group.prefix + suffix] for suffix in group.suffixes]
                if progress is not None:
                    progress(rows.stop, n)
        return odds, usage

    def _group(self, histories: Dataset, ranking: Ranking, row: int, titles: Sequence[str]) -> PromptGroup:
        user = int(ranking.users[row])
        span = slice(histories.indptr[user], histories.indptr[user + 1])
        values = None if histories.values is None else histories.values[span]
        candidates = ranking.items[row][ranking.items[row] != PAD]
        return self.prompt.group(histories.items[span].tolist(), values, candidates.tolist(), titles)

    def _answers(
        self, groups: Sequence[PromptGroup], cache: AnswerCache | None, fingerprint: str
    ) -> tuple[dict[str, float], Usage]:
        """Return prompt -> log-odds for all prompts of the groups, and what it cost."""
        texts = list(dict.fromkeys(g.prefix + suffix for g in groups for suffix in g.suffixes))
        keys = {text: answer_key(fingerprint, text, self.prompt.answers) for text in texts}
        stored = {} if cache is None else cache.get(keys.values())
        known = {text: stored[key] for text, key in keys.items() if key in stored}
        missing: dict[str, dict[str, None]] = {}  # prefix -> suffixes; users may share both
        for group in groups:
            for suffix in group.suffixes:
                if group.prefix + suffix not in known:
                    missing.setdefault(group.prefix, {})[suffix] = None
        asked = [PromptGroup(prefix=prefix, suffixes=tuple(some)) for prefix, some in missing.items()]
        if not asked:
            return known, Usage()
        logits, usage = self.llm.choose(asked, self.prompt.answers)
        fresh: dict[str, float] = {}
        for group, pair in zip(asked, logits, strict=True):
            values = np.asarray(pair, dtype=np.float64)
            log_odds = values[:, 0] - values[:, 1]
            if not np.isfinite(log_odds).all():
                raise ModelError(f"{self.llm.model} gave answers that are not finite numbers; try float32.")
            for suffix, value in zip(group.suffixes, log_odds, strict=True):
                fresh[group.prefix + suffix] = float(np.float32(value))
        if cache is not None:
            cache.put({keys[text]: value for text, value in fresh.items()}, usage)
        return known | fresh, usage
