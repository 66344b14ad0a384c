"""Look before paying: how much could any order of the candidates gain?

For a user whose held-out items are not among the candidates, re-ranking cannot help at any price. This
check costs no call: it compares the cheap list with the best order of its own first places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.evaluation.compare import Interval, interval
from frugalrec.evaluation.controls import headroom
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.types import BoolArray, IntArray, Ranking


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """The ceiling of re-ranking the first m places."""

    metric: str
    m: int
    current: float
    ceiling: float
    room: Interval
    """Ceiling less current, per user, with its interval."""
    share_with_hit: float
    """Users with a held-out item among the candidates."""
    users: IntArray
    """User codes, (n,)."""
    reachable: BoolArray
    """Users for whom some order is better than the present one, (n,). Knows the answers: no signal."""

    @property
    def worthwhile(self) -> bool:
        """Return whether the room is surely above 0."""
        return bool(self.room.low > 0)

    def __str__(self) -> str:
        """Say in words what could be gained at most."""
        figures = (
            f"{self.metric} is {self.current:.4f} and could be {self.ceiling:.4f} with the best order of the "
            f"first {self.m} places; {self.share_with_hit:.0%} of users have a held-out item among them."
        )
        if not self.worthwhile:
            return f"re-ranking has nothing to gain, so spend nothing: {figures}"
        if self.share_with_hit < 0.5:
            return f"{figures} For the others no LLM can help at any price: widen the candidates first."
        return figures


def check_headroom(
    ranking: Ranking, targets: Dataset, m: int = 20, metric: str = "ndcg@10", *, seen: Dataset | None
) -> Headroom:
    """Return what re-ranking the first m places could gain at most.

    Args:
        ranking: The cheap model's lists.
        targets: Held-out interactions of the calibration fold.
        m: Places that the LLM would see.
        metric: A metric with a list length.
        seen: As in `frugalrec.evaluation.evaluate.evaluate_ranking`.
    """
    best = headroom(ranking, targets, m, metric, seen=seen)
    now = evaluate_ranking("current", ranking, targets, [metric], seen=seen)
    gaps = best.values[metric] - now.values[metric]
    return Headroom(
        metric=metric,
        m=m,
        current=best.details["current"],
        ceiling=best.details["ceiling"],
        room=interval(gaps),
        share_with_hit=best.details["share_with_hit"],
        users=ranking.users,
        reachable=np.nan_to_num(gaps) > 0,
    )
