"""First-token re-ranking: one forward pass orders all candidates of a list, and nothing is written.

The probability of each candidate's letter as the first token of the answer is its score (FIRST, arXiv
2406.15657). It takes a model whose probabilities can be read, and no answer has to be parsed. Models
prefer some letters and places whatever stands there, so show the candidates in several orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.base import Progress
from frugalrec.grounding.listwise.aggregation import agreement, kendall_tau
from frugalrec.grounding.listwise.orders import shown_orders
from frugalrec.grounding.listwise.prompt import LETTERS, ListwisePrompt
from frugalrec.grounding.listwise.result import Opinion
from frugalrec.grounding.listwise.windows import Asked, Window, WindowReranker
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.llm.framing import framed
from frugalrec.types import DoubleArray


@dataclass(frozen=True)
class FirstTokenReranker(WindowReranker):
    """Orders candidates by the log-probability of their letters, averaged over replicas."""

    lm: LanguageModel
    prompt: ListwisePrompt
    prompts_per_batch: int = field(default=32, kw_only=True)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.window > len(LETTERS):
            raise ConfigError(
                f"a window of {self.window} candidates needs more than the {len(LETTERS)} letters that name "
                f"them by one token; give a window of at most {len(LETTERS)}."
            )
        if self.prompts_per_batch < 1:
            raise ConfigError(f"prompts_per_batch must be at least 1, not {self.prompts_per_batch}.")

    @property
    def _words(self) -> ListwisePrompt:
        return self.prompt

    def _ask(self, windows: Sequence[Window], progress: Progress | None) -> Asked:
        orders = [self._orders(window) for window in windows]
        texts = [
            [self._text(window, order) for order in some]
            for window, some in zip(windows, orders, strict=True)
        ]
        sizes = {text: len(w.titles) for w, some in zip(windows, texts, strict=True) for text in some}
        known, usage = self._letters(sizes, progress)
        opinions = [
            _opinion([known[text] for text in own], some, self.min_agreement)
            for own, some in zip(texts, orders, strict=True)
        ]
        return Asked(opinions=opinions, usage=usage, requests=len(sizes))

    def _orders(self, window: Window) -> list[list[int]]:
        titles = [self.prompt.quoted(title) for title in window.titles]
        drawn = shown_orders(titles, self.presentation, self.replicas, seed=self.seed, content=window.shown)
        return list(islice(drawn, self.replicas))

    def _text(self, window: Window, order: Sequence[int]) -> str:
        return framed(
            self.lm, *self.prompt.first_choice(window.shown, [window.titles[i] for i in order])
        ).text

    def _letters(
        self, sizes: dict[str, int], progress: Progress | None
    ) -> tuple[dict[str, NDArray[Any]], Usage]:
        """Return prompt -> log-probability of each letter, and what it cost."""
        blank = framed(self.lm, "", "").blank
        known: dict[str, NDArray[Any]] = {}
        usage = Usage()
        for size in sorted(set(sizes.values())):
            answers = [blank + letter for letter in LETTERS[:size]]
            texts = [text for text, n in sizes.items() if n == size]
            for start in range(0, len(texts), self.prompts_per_batch):
                batch = texts[start : start + self.prompts_per_batch]
                rows, spent = self.lm.choose([PromptGroup(prefix=t, suffixes=("",)) for t in batch], answers)
                known |= {text: row[0] for text, row in zip(batch, rows, strict=True)}
                usage = usage + spent
                if progress is not None:
                    progress(len(known), len(sizes))
        if not all(np.isfinite(row).all() for row in known.values()):
            raise ModelError(f"{self.lm.model} gave answers that are not finite numbers; try float32.")
        return known, usage


def _opinion(
    letters: Sequence[NDArray[Any]], orders: Sequence[Sequence[int]], min_agreement: float | None
) -> Opinion:
    """Return the mean log-probability of each candidate over the orders in which it was shown."""
    points: list[DoubleArray] = []
    for values, order in zip(letters, orders, strict=True):
        own = np.empty(len(order))
        own[np.asarray(order)] = values
        points.append(own)
    agreed = agreement(np.argsort(-np.array(points), axis=1, kind="stable"))
    unstable = min_agreement is not None and not agreed >= min_agreement
    return Opinion(
        points=None if unstable else np.mean(points, axis=0).astype(np.float32),
        reason="unstable" if unstable else "answered",
        agreement=agreed,
        echo=float(np.mean([kendall_tau(np.arange(len(v)), -np.asarray(v)) for v in letters])),
    )
