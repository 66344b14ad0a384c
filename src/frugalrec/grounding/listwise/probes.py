"""Probes of a listwise re-ranker: does it repeat what it is shown, does the place decide, is it stable?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.base import Progress
from frugalrec.grounding.listwise.result import GIVEN, ListwiseResult
from frugalrec.grounding.listwise.windows import WindowReranker
from frugalrec.ledger import Usage
from frugalrec.types import PAD, DoubleArray, IntArray, Ranking

MOST_ECHO, LEAST_AGREEMENT = 0.5, 0.3
POSITIONS = (0, 5, 10, 15, 19)


def cautions(
    result: ListwiseResult, *, max_echo: float = MOST_ECHO, min_agreement: float = LEAST_AGREEMENT
) -> list[str]:
    """Return what a reader of the result should be warned of, in words; empty if nothing.

    Args:
        result: What a re-ranker returned.
        max_echo: Mean of Kendall's tau between the order shown and the answer above which the model
            repeats rather than ranks.
        min_agreement: Mean of Kendall's tau between replicas below which the order shown decides.
    """
    found = []
    given = np.array([reason in GIVEN for reason in result.reasons], dtype=np.bool_)
    echo, agreed = result.report["echo"], result.report["agreement"]
    if echo is not None and echo > max_echo:
        found.append(
            f"The model repeats the order in which candidates are shown (mean Kendall's tau {echo:.2f}): its "
            "lists are those orders. Shuffle, ask for a replica more, or take another model."
        )
    if agreed is not None and agreed < min_agreement:
        found.append(
            f"The order shown decides: replicas of one user agree by {agreed:.2f} (mean Kendall's tau; 0 is "
            "chance). Ask for more replicas, or set min_agreement."
        )
    if given.size and not given.all():
        found.append(
            f"{int((~given).sum())} of {given.size} users keep the cheap list: "
            f"{', '.join(f'{n} {why}' for why, n in result.report['reasons'].items() if why not in GIVEN)}."
        )
    if result.flagged:
        found.append(f"{result.flagged} of the titles read like instructions to a model; set promotion_cap.")
    return found


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

    The candidates are the first of each list; a held-out item that is not among them takes the place of
    the last. They are shown in list order, once, and nobody falls back on that order: users without an
    answer at some position are left out of all.

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
    rows = [
        row
        for row, user in enumerate(ranking.users.tolist())
        if targets.lengths[user] and (ranking.items[row, :m] != PAD).all()
    ]
    if not rows:
        raise DataError(f"no user has a held-out item and {m} candidates to place it among.")
    users = ranking.users[rows]
    truth = targets.items[targets.indptr[users]]
    others = np.stack([_others(*pair, m) for pair in zip(ranking.items[rows], truth, strict=True)])
    plain = replace(
        reranker, depth=m, presentation="cheap", replicas=1, promotion_cap=None, min_agreement=None
    )
    values, given, usage = [], np.ones(users.size, dtype=np.bool_), Usage()
    for position in positions:
        shown = np.insert(others, position, truth, axis=1)
        lists = Ranking(
            users=users, items=shown, scores=np.tile(-np.arange(m, dtype=np.float32), (users.size, 1))
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
