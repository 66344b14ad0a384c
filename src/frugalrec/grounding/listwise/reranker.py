"""Listwise re-ranking by a model that only answers: one question for an order of all candidates.

The answer to a question depends on nothing but its text, so users with the same history and the same set
of candidates share one question, whatever their cheap lists say. An answer that names too few candidates
is asked for once more, in another order; who then has none keeps the cheap list, with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from frugalrec.errors import ConfigError
from frugalrec.grounding.base import Progress
from frugalrec.grounding.listwise.aggregation import AGGREGATES, aggregate, agreement, kendall_tau
from frugalrec.grounding.listwise.orders import shown_orders
from frugalrec.grounding.listwise.parsing import ParseReport, parse_ranking
from frugalrec.grounding.listwise.prompt import ListwisePrompt
from frugalrec.grounding.listwise.result import GIVEN, ListReason, Opinion, relative_places
from frugalrec.grounding.listwise.windows import Asked, Window, WindowReranker
from frugalrec.ledger import Usage
from frugalrec.llm.chat import ChatAnswer, ChatModel, ChatRequest
from frugalrec.types import DoubleArray, IntArray


@dataclass(frozen=True)
class ListwiseReranker(WindowReranker):
    """Asks a chat model for an order of each user's candidates."""

    chat: ChatModel
    prompt: ListwisePrompt
    aggregate: str = field(default="borda", kw_only=True)
    """How replicas become one order: `borda`, `reciprocal-rank` or `kemeny`."""
    min_coverage: float = field(default=0.5, kw_only=True)
    """Share of the candidates that an answer must name, from 0 to 1."""
    temperature: float = field(default=0.0, kw_only=True)
    retry_temperature: float | None = field(default=None, kw_only=True)
    """Temperature of the second attempt, which also shows another order; default: the same."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.aggregate not in AGGREGATES:
            raise ConfigError(
                f"unknown aggregation {self.aggregate!r}; choose one of {', '.join(AGGREGATES)}."
            )
        if not 0 <= self.min_coverage <= 1:
            raise ConfigError(f"min_coverage must lie between 0 and 1, not {self.min_coverage}.")

    @property
    def _words(self) -> ListwisePrompt:
        return self.prompt

    def _ask(self, windows: Sequence[Window], progress: Progress | None) -> Asked:
        mail = _Mail(self.chat, progress)
        orders = [self._orders(window) for window in windows]
        trials = [
            [self._trial(window, order, self.temperature) for order in islice(drawn, self.replicas)]
            for window, drawn in zip(windows, orders, strict=True)
        ]
        mail.deliver([trial for some in trials for trial in some])
        again = []
        for window, drawn, some in zip(windows, orders, trials, strict=True):
            weak = [number for number, trial in enumerate(some) if self._is_weak(trial)]
            for number, order in zip(weak, drawn, strict=False):
                warmer = self.temperature if self.retry_temperature is None else self.retry_temperature
                some[number] = self._trial(window, order, warmer, earlier=some[number].latency_s)
                again.append(some[number])
        mail.deliver(again)
        return Asked(
            opinions=[self._opinion(some) for some in trials],
            usage=mail.usage,
            requests=len(mail.answers),
            parses=_counts([trial for some in trials for trial in some], retried=len(again)),
            places=[trial.places for some in trials for trial in some if self._is_usable(trial)],
        )

    def _orders(self, window: Window) -> Iterator[list[int]]:
        titles = [self.prompt.quoted(title) for title in window.titles]
        return shown_orders(titles, self.presentation, self.replicas, seed=self.seed, content=window.shown)

    def _trial(
        self, window: Window, order: Sequence[int], temperature: float, *, earlier: float = 0.0
    ) -> _Trial:
        titles = [window.titles[i] for i in order]
        request = self.prompt.request(window.shown, titles, temperature=temperature, seed=self.seed)
        return _Trial(request=request, shown=order, latency_s=earlier)

    def _is_weak(self, trial: _Trial) -> bool:
        """Say whether the model answered, but named too few candidates."""
        return trial.reason in GIVEN and not self._is_usable(trial)

    def _is_usable(self, trial: _Trial) -> bool:
        report = trial.report
        return report is not None and report.coverage > 0 and report.coverage >= self.min_coverage

    def _opinion(self, trials: Sequence[_Trial]) -> Opinion:
        usable = [trial for trial in trials if self._is_usable(trial)]
        latency_s = max(trial.latency_s for trial in trials)
        if not usable:
            reason: ListReason = trials[0].reason if trials[0].reason not in GIVEN else "unparsed"
            return Opinion(points=None, reason=reason, latency_s=latency_s)
        orders = np.array([trial.order for trial in usable])
        agreed = agreement(orders)
        echoes = [echo for echo in (trial.echo for trial in usable) if np.isfinite(echo)]
        # A single usable replica cannot show that it is stable.
        unstable = self.min_agreement is not None and not agreed >= self.min_agreement
        answered = any(trial.reason == "answered" for trial in usable)
        return Opinion(
            points=None if unstable else aggregate(orders, self.aggregate).astype(np.float32),
            reason="unstable" if unstable else "answered" if answered else "cached",
            agreement=agreed,
            echo=float(np.mean(echoes)) if echoes else float("nan"),
            latency_s=latency_s,
        )


class _Trial:
    """One question about one window in one order, and what came of it."""

    def __init__(self, *, request: ChatRequest, shown: Sequence[int], latency_s: float) -> None:
        self.request = request
        self.shown = np.asarray(shown, dtype=np.int32)
        self.latency_s = latency_s
        self.reason: ListReason = "unavailable"
        self.order: IntArray = np.arange(len(shown), dtype=np.int32)
        """The candidates, best first, as numbers of their cheap places."""
        self.report: ParseReport | None = None
        self.echo = float("nan")
        self.places: DoubleArray = np.full(len(shown), np.nan)
        """Where the candidate shown at each place stands in the answer, from 0 to 1."""

    def take(self, answer: ChatAnswer) -> None:
        """Read an answer."""
        self.reason = answer.reason
        self.latency_s += answer.latency_s
        if answer.text is None or answer.reason not in GIVEN:
            return
        in_cheap_order = np.argsort(self.shown)
        aliases, self.report = parse_ranking(answer.text, self.shown.size, in_cheap_order.tolist())
        self.order = self.shown[aliases]
        named = aliases[: self.shown.size - self.report.repaired]
        self.echo = kendall_tau(np.arange(named.size), named)
        last = np.full(self.shown.size, self.shown.size)  # those not named share the end
        last[named] = np.arange(named.size)
        self.places = relative_places(last)


class _Mail:
    """Sends each question once, whoever asks it, and remembers what that cost."""

    def __init__(self, chat: ChatModel, progress: Progress | None) -> None:
        self.chat = chat
        self.progress = progress
        self.usage = Usage()
        self.answers: dict[str, ChatAnswer] = {}

    def deliver(self, trials: Sequence[_Trial]) -> None:
        """Give every trial its answer."""
        keys = [trial.request.key(self.chat.model) for trial in trials]
        fresh = {
            key: trial.request for key, trial in zip(keys, trials, strict=True) if key not in self.answers
        }
        if fresh:
            answers, usage = self.chat.chat(list(fresh.values()), progress=self.progress)
            self.answers |= dict(zip(fresh, answers, strict=True))
            self.usage = self.usage + usage
        for key, trial in zip(keys, trials, strict=True):
            trial.take(self.answers[key])


def _counts(trials: Sequence[_Trial], *, retried: int) -> Counter[str]:
    reports = [trial.report for trial in trials if trial.report is not None]
    counts = Counter[str](report.stage for report in reports)
    counts["valid"] = sum(report.valid for report in reports)
    counts["retried"] = retried
    return counts
