"""The re-ranking seam: histories and a cheap model's lists go in, scores of the candidates come out.

Four styles stand behind it (`frugalrec.grounding.styles`): a yes/no question a candidate, one question for
an order of all, the probability of the first letter of an answer, and the likelihood of titles. Scores go
to `fusion.fuse` whatever the style; a user without scores keeps the cheap list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.grounding.base import Progress
from frugalrec.ledger import Usage
from frugalrec.types import FloatArray, Ranking


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """Scores of the candidates of all users who were asked for."""

    scores: FloatArray
    """(n_users, m), higher is better; NaN where there is none: where the ranking is padded, and in the whole
    row of a user who falls back to the cheap list."""
    reasons: tuple[str, ...]
    """Why each user's scores are as they are; `answered` and `cached` are those of the model."""
    usage: Usage
    """What was spent in this call."""

    @property
    def report(self) -> Mapping[str, Any]:
        """Return the figures of the whole call, ready for JSON: how many users by reason, at least."""
        return {"users": len(self.reasons), "reasons": dict(sorted(Counter(self.reasons).items()))}


class Reranker(Protocol):
    """What scores the candidates of users' lists."""

    def rerank(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Reranked:
        """Return scores of the first candidates of each list.

        Args:
            histories: What is known of the users.
            ranking: The cheap model's lists.
            titles: Title of each item code; default: those of `histories`.
            progress: Is told of what is done.
        """
        ...


class CandidateScorer(Protocol):
    """What scores candidates one by one: `CandidateReranker`, `TitleLikelihood`."""

    def score(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
        cache: Path | None = None,
    ) -> tuple[FloatArray, Usage]:
        """Return (scores, usage) for every candidate of a ranking."""
        ...


@dataclass(frozen=True)
class ScoreReranker:
    """A `Reranker` over what scores candidates one by one."""

    scorer: CandidateScorer
    depth: int = 20
    """Candidates of each list that are scored."""
    cache: Path | None = None
    """An SQLite file of earlier answers."""

    def rerank(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Reranked:
        """Return scores of the first candidates of each list; see `Reranker`."""
        head = Ranking(
            users=ranking.users,
            items=ranking.items[:, : self.depth],
            scores=ranking.scores[:, : self.depth],
        )
        scores, usage = self.scorer.score(histories, head, titles, progress=progress, cache=self.cache)
        known = [bool(np.isfinite(row).any()) for row in scores]
        reasons = tuple("answered" if one else "nothing-to-rank" for one in known)
        return Reranked(scores=scores, reasons=reasons, usage=usage)
