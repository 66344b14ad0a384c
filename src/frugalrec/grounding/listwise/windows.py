"""Windows: lists of any depth are ordered from back to front, a window at a time.

A prompt holds some 20 candidates. Longer lists are ordered as in RankGPT (arXiv 2304.09542): the last
window first, then the one `stride` places before it, down to the first, so that the best of each window
meet those of the next: 1 + ceil((depth - window) / stride) questions a user. All users' windows of the
same turn are asked together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.grounding.base import Progress, checked_users
from frugalrec.grounding.listwise.orders import PRESENTATIONS, Presentation
from frugalrec.grounding.listwise.prompt import ListwisePrompt, reads_like_instruction
from frugalrec.grounding.listwise.result import GIVEN, ListwiseResult, Opinion, counted, mean_places, merged
from frugalrec.grounding.promotion import capped_order
from frugalrec.grounding.questions import known_titles
from frugalrec.ledger import Usage
from frugalrec.types import PAD, DoubleArray, FloatArray, IntArray, LongArray, Ranking


@dataclass(frozen=True)
class Window:
    """One user's question: what is shown of the history, and the candidates as they stand now."""

    shown: str
    titles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of all questions of one turn."""

    opinions: list[Opinion]
    usage: Usage = Usage()
    requests: int = 0
    parses: Mapping[str, int] = field(default_factory=dict)
    places: Sequence[DoubleArray] = ()
    """By usable answer: where the candidate at each place of the prompt stands in it, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class WindowReranker(ABC):
    """What listwise re-rankers share: windows, the promotion cap, and a cheap list to fall back on."""

    depth: int = 20
    """Candidates of each list that are re-ranked; the tail behind them stays as it is."""
    window: int = 20
    """Candidates that one question shows."""
    stride: int = 10
    """Places by which the next window is nearer to the front, for lists deeper than a window."""
    replicas: int = 1
    """Orders in which each window is shown; the answers are aggregated."""
    presentation: Presentation = "shuffled"
    """How candidates are shown: independent permutations, a permutation with its reverse and rotations
    (`balanced`), or the cheap order; see `orders`."""
    promotion_cap: int | None = None
    """The most places that an item may rise above its cheap place; see `grounding.promotion`."""
    min_agreement: float | None = None
    """Users whose replicas agree less than this (mean of Kendall's tau, -1 to 1) keep the cheap list."""
    seed: int = 0
    """Of the orders shown."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not 1 <= self.stride <= self.window or self.window < 2 or self.depth < 1:
            raise ConfigError(
                f"windows need depth >= 1, window >= 2 and a stride from 1 to the window, "
                f"not {self.depth}, {self.window} and {self.stride}."
            )
        if self.presentation not in get_args(Presentation):
            raise ConfigError(
                f"unknown presentation {self.presentation!r}; choose one of {', '.join(PRESENTATIONS)}."
            )
        if self.replicas < 1 or (self.replicas > 1 and self.presentation == "cheap"):
            raise ConfigError(
                f"{self.replicas} replicas cannot be shown in {self.presentation} order: replicas are at "
                "least 1 and must differ. Choose the presentation shuffled or balanced for several."
            )
        if self.promotion_cap is not None and self.promotion_cap < 0:
            raise ConfigError(f"the promotion cap must be at least 0 places, not {self.promotion_cap}.")
        if self.min_agreement is not None and (self.replicas < 2 or not -1 <= self.min_agreement <= 1):
            raise ConfigError(
                f"min_agreement={self.min_agreement} must lie between -1 and 1, and needs at least 2 "
                f"replicas to compare, not {self.replicas}."
            )

    @property
    @abstractmethod
    def _words(self) -> ListwisePrompt:
        """The prompt."""

    @abstractmethod
    def _ask(self, windows: Sequence[Window], progress: Progress | None) -> Asked:
        """Return an opinion on every window, in order."""

    def rerank(
        self,
        histories: Dataset,
        ranking: Ranking,
        titles: Sequence[str | None] | None = None,
        *,
        progress: Progress | None = None,
    ) -> ListwiseResult:
        """Re-rank the head of each list; whoever gets no usable answer keeps the cheap list.

        Items without a title are not shown and keep their places.

        Args:
            histories: What is known of the users.
            ranking: The cheap model's lists.
            titles: Title of each item code; default: those of `histories`. Ids that stand in for missing
                ones there are none.
            progress: Is told of the questions of each turn: (done, in all).
        """
        names = known_titles(titles, histories)
        users = checked_users(ranking.users, histories)
        depth = min(self.depth, ranking.k)
        lists = [
            _List(
                shown=_shown(self._words, histories, int(user), names),
                places=np.flatnonzero([item != PAD and bool(names[item]) for item in row]),
                titles=[names[item] if item != PAD else "" for item in row],
            )
            for user, row in zip(users, ranking.items[:, :depth].tolist(), strict=True)
        ]
        turns = []
        for turn in range(max((len(self._starts(some)) for some in lists), default=0)):
            due = [some for some in lists if turn < len(self._starts(some)) and not some.failed]
            turns.append(self._turn(due, turn, progress))
        return self._result(ranking, depth, lists, turns, _flagged(histories, users, names, lists))

    def _starts(self, some: _List) -> list[int]:
        """Return where the windows of a list begin, in the order in which they are asked."""
        n = some.places.size
        if n < 2:
            return []
        return [*range(n - self.window, 0, -self.stride), 0]

    def _turn(self, due: list[_List], turn: int, progress: Progress | None) -> Asked:
        spans = []
        for some in due:
            start = self._starts(some)[turn]
            spans.append(slice(start, min(start + self.window, some.places.size)))
        windows = [
            Window(some.shown, tuple(some.titles[place] for place in some.order[span]))
            for some, span in zip(due, spans, strict=True)
        ]
        asked = self._ask(windows, progress)
        for some, span, opinion in zip(due, spans, asked.opinions, strict=True):
            some.take(span, opinion)
        return asked

    def _result(
        self, ranking: Ranking, depth: int, lists: list[_List], turns: list[Asked], flagged: int
    ) -> ListwiseResult:
        items = ranking.items.copy()
        scores = np.full((len(lists), depth), np.nan, dtype=np.float32)
        for row, some in enumerate(lists):
            if some.opinion.reason in GIVEN:
                order, scores[row] = some.ordered(depth, self.promotion_cap)
                items[row, :depth] = ranking.items[row, order]
        return ListwiseResult(
            ranking=Ranking(users=ranking.users, items=items, scores=ranking.scores),
            scores=scores,
            reasons=tuple(some.opinion.reason for some in lists),
            usage=sum((turn.usage for turn in turns), Usage()),
            agreement=np.array([some.opinion.agreement for some in lists]),
            echo=np.array([some.opinion.echo for some in lists]),
            latency_s=np.array([some.opinion.latency_s for some in lists]),
            requests=sum(turn.requests for turn in turns),
            parses=counted(*(turn.parses for turn in turns)),
            flagged=flagged,
            places=mean_places([one for turn in turns for one in turn.places], min(depth, self.window)),
        )


class _List:
    """One user's head while it is being ordered; candidates are numbered by their places in it."""

    def __init__(self, *, shown: str, places: LongArray, titles: Sequence[str]) -> None:
        self.shown = shown
        self.places = places
        """Places whose items have a title, ascending."""
        self.titles = titles
        self.order = places.copy()
        """The same places in the order reached so far."""
        self.opinions: list[Opinion] = []

    @property
    def failed(self) -> bool:
        """Whether a window got no order; the rest is then not asked."""
        return any(opinion.points is None for opinion in self.opinions)

    @property
    def opinion(self) -> Opinion:
        """What the model makes of the whole list."""
        return merged(self.opinions) if self.opinions else Opinion(points=None, reason="nothing-to-rank")

    def take(self, span: slice, opinion: Opinion) -> None:
        """Order a window by its points; those with equal points stay as they were."""
        self.opinions.append(opinion)
        if opinion.points is not None:
            best_first = np.argsort(-opinion.points, kind="stable")
            self.order[span] = self.order[span][best_first]

    def ordered(self, depth: int, cap: int | None) -> tuple[LongArray, FloatArray]:
        """Return the head as cheap places in their new order, and scores by cheap place.

        Scores are the points, or places counted from below where the order is not that of one window.
        """
        wanted = np.arange(depth)
        wanted[self.places] = self.order  # places without a title keep their items
        final = wanted if cap is None else capped_order(wanted, cap)
        scores = np.full(depth, np.nan, dtype=np.float32)
        points = self.opinions[-1].points
        if len(self.opinions) == 1 and points is not None and np.array_equal(final, wanted):
            scores[self.places] = points
        else:
            scores[final] = np.arange(depth, 0, -1)
            scores[np.isin(np.arange(depth), self.places, invert=True)] = np.nan
        return final, scores


def _shown(prompt: ListwisePrompt, histories: Dataset, user: int, names: Sequence[str]) -> str:
    span = slice(histories.indptr[user], histories.indptr[user + 1])
    values = None if histories.values is None else histories.values[span]
    return prompt.for_history(histories.items[span].tolist(), values, names)


def _flagged(histories: Dataset, users: IntArray, names: Sequence[str], lists: Sequence[_List]) -> int:
    """Count the different titles, in histories or among candidates, that read like instructions."""
    known = {int(item) for user in np.unique(users) for item in histories.history(int(user))}
    shown = {names[item] for item in known} | {title for some in lists for title in some.titles}
    return sum(reads_like_instruction(title) for title in shown)
