"""A probe of a listwise re-ranker: does the place at which an item is shown decide about it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.base import Progress
from frugalrec.grounding.listwise.result import GIVEN
from frugalrec.grounding.listwise.windows import WindowReranker
from frugalrec.grounding.questions import known_titles
from frugalrec.ledger import Usage
from frugalrec.types import PAD, DoubleArray, IntArray, Ranking

POSITIONS = (0, 5, 10, 15, 19)


@dataclass(frozen=True, kw_only=True)
class PositionProbe:
    """How well the held-out item is ranked when it stands at given places of the prompt."""

    positions: tuple[int, ...]
    values: DoubleArray
    """NDCG of each user at each position, (n_users, n_positions), the held-out item alone being relevant."""
    users: IntArray
    """Users with an answer at every position, (n_users,)."""
    asked: int
    """Users who were asked about."""
    k: int
    candidates: int
    usage: Usage

    @property
    def means(self) -> DoubleArray:
        """Mean NDCG by position, (n_positions,)."""
        means: DoubleArray = (
            self.values.mean(axis=0) if self.users.size else np.full(len(self.positions), np.nan)
        )
        return means

    @property
    def spread(self) -> float:
        """The best position's mean less the worst one's."""
        return float(self.means.max() - self.means.min())

    @property
    def standard_error(self) -> float:
        """Standard error of a mean at one position, the largest."""
        n = self.users.size
        return float(self.values.std(axis=0, ddof=1).max() / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def chance(self) -> float:
        """The expected NDCG of a random order."""
        places = np.arange(min(self.k, self.candidates))
        return float((1 / np.log2(places + 2)).sum() / self.candidates)


def position_probe(
    reranker: WindowReranker,
    histories: Dataset,
    ranking: Ranking,
    targets: Dataset,
    *,
    positions: Sequence[int] = POSITIONS,
    k: int = 10,
    titles: Sequence[str | None] | None = None,
    progress: Progress | None = None,
) -> PositionProbe:
    """Show the same candidates to the same users with the held-out item at different places.

    The candidates are the first of each list that have a title; a held-out item that is not among them
    takes the place of the last. They are shown in list order, once, and nobody falls back on that order:
    users without an answer at some position are left out of all, and so are those whose held-out item has
    no title, for it is not shown.

    Args:
        reranker: What is probed.
        histories: What is known of the users.
        ranking: The cheap model's lists.
        targets: The held-out interactions; each user's first is placed.
        positions: Places from 0, below the number of candidates of one window.
        k: List length of NDCG.
        titles: Title of each item code; default: those of `histories`.
        progress: Is told of the questions at each position.
    """
    m = min(reranker.depth, reranker.window, ranking.k)
    if not positions or not all(0 <= position < m for position in positions):
        raise ConfigError(f"positions must lie in 0..{m - 1}, the places of a window; got {list(positions)}.")
    titled = np.array([bool(name) for name in known_titles(titles, histories)])
    shown = [row[(row != PAD) & titled[row]] for row in ranking.items]
    rows = [
        row
        for row, user in enumerate(ranking.users.tolist())
        if targets.lengths[user] and titled[targets.history(user)[0]] and shown[row].size >= m
    ]
    if not rows:
        raise DataError(f"no user has a held-out item and {m} candidates to place it among, all with titles.")
    users = ranking.users[rows]
    truth = targets.items[targets.indptr[users]]
    others = np.stack([_others(shown[row], item, m) for row, item in zip(rows, truth, strict=True)])
    plain = replace(
        reranker, depth=m, presentation="cheap", replicas=1, promotion_cap=None, min_agreement=None
    )
    values, given, usage = [], np.ones(users.size, dtype=np.bool_), Usage()
    for position in positions:
        placed = np.insert(others, position, truth, axis=1)
        lists = Ranking(
            users=users, items=placed, scores=np.tile(-np.arange(m, dtype=np.float32), (users.size, 1))
        )
        result = plain.rerank(histories, lists, titles, progress=progress)
        place = np.argmax(result.ranking.items == truth[:, None], axis=1)
        values.append(np.where(place < k, 1 / np.log2(place + 2), 0.0))
        given &= [reason in GIVEN for reason in result.reasons]
        usage = usage + result.usage
    return PositionProbe(
        positions=tuple(positions),
        values=np.stack(values, axis=1)[given],
        users=users[given],
        asked=users.size,
        k=k,
        candidates=m,
        usage=usage,
    )


def _others(items: IntArray, truth: int, m: int) -> IntArray:
    """Return the first m - 1 items of a list that are not the held-out one."""
    rest: IntArray = items[:m][items[:m] != truth][: m - 1]
    return rest
