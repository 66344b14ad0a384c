"""First-token re-ranking: one forward pass orders all candidates of a list, and nothing is written.

The probability of each candidate's letter as the first token of the answer is its score (FIRST, arXiv
2406.15657). It takes a model whose probabilities can be read, and no answer has to be parsed. Models
prefer some letters and places whatever stands there, so show the candidates in several orders; the history
is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.answers import answer_key
from frugalrec.grounding.asking import Asker, Pair
from frugalrec.grounding.base import Progress
from frugalrec.grounding.listwise.aggregation import agreement, kendall_tau
from frugalrec.grounding.listwise.orders import shown_orders
from frugalrec.grounding.listwise.prompt import CANDIDATES, LETTERS, ListwisePrompt
from frugalrec.grounding.listwise.result import Opinion, relative_places
from frugalrec.grounding.listwise.windows import Asked, Window, WindowReranker
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.llm.framing import framed
from frugalrec.llm.http.language_model import HttpLM
from frugalrec.llm.http.profiles import TOP_LOGPROBS
from frugalrec.types import DoubleArray, FloatArray

MOST_TOLD = TOP_LOGPROBS // 2
"""Letters that an endpoint may well tell: it lists a letter with a blank and without as two tokens."""


@dataclass(frozen=True)
class FirstTokenReranker(WindowReranker):
    """Orders candidates by the log-probability of their letters, averaged over replicas."""

    lm: LanguageModel
    prompt: ListwisePrompt
    cache: Path | None = field(default=None, kw_only=True)
    """An SQLite file of earlier answers, which is read and extended."""
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
        if isinstance(self.lm, HttpLM) and min(self.depth, self.window) > MOST_TOLD:
            raise ConfigError(
                f"an endpoint tells the {TOP_LOGPROBS} likeliest tokens alone, and the letters of "
                f"{min(self.depth, self.window)} candidates, with and without a blank, are more. Use the "
                f"style listwise, a local model, or a window of at most {MOST_TOLD}."
            )

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
        with Asker(self.lm, self._log_probabilities, _key, self.cache) as asker:
            known = self._letters(asker, sizes, progress)
        opinions = []
        for own, some in zip(texts, orders, strict=True):
            told = {text: order for text, order in zip(own, some, strict=True) if text in known}
            opinion = _opinion([known[text] for text in told], list(told.values()), self.min_agreement)
            cached = opinion.reason == "answered" and asker.asked.isdisjoint(own)
            opinions.append(replace(opinion, reason="cached") if cached else opinion)
        places = [relative_places(-known[text]) for own in texts for text in own if text in known]
        return Asked(opinions=opinions, usage=asker.usage, requests=len(sizes), places=places)

    def _orders(self, window: Window) -> list[list[int]]:
        titles = [self.prompt.quoted(title) for title in window.titles]
        drawn = shown_orders(titles, self.presentation, self.replicas, seed=self.seed, content=window.shown)
        return list(islice(drawn, self.replicas))

    def _text(self, window: Window, order: Sequence[int]) -> str:
        return framed(
            self.lm, *self.prompt.first_choice(window.shown, [window.titles[i] for i in order])
        ).text

    def _letters(
        self, asker: Asker, sizes: Mapping[str, int], progress: Progress | None
    ) -> dict[str, DoubleArray]:
        """Return prompt -> log-probability of each of its letters, without prompts that have none.

        Raises:
            ModelError: If no prompt has any.
        """
        texts, blank = list(sizes), framed(self.lm, "", "").blank
        found: dict[str, DoubleArray] = {}
        trouble: ModelError | None = None
        for start in range(0, len(texts), self.prompts_per_batch):
            batch = texts[start : start + self.prompts_per_batch]
            # One prompt's trouble is not the others': a batch that fails is asked prompt by prompt.
            for some in (batch, *([text] for text in batch if len(batch) > 1)):
                pairs = [(text, blank + letter) for text in some for letter in LETTERS[: sizes[text]]]
                try:
                    values = asker.values(pairs)
                except ModelError as error:
                    trouble = error
                    continue
                for text in some:
                    letters = LETTERS[: sizes[text]]
                    found[text] = np.array([values[text, blank + letter] for letter in letters])
                if some is batch:
                    break
            if progress is not None:
                progress(start + len(batch), len(texts))
        if trouble is not None and not found:
            raise trouble
        return found

    def _log_probabilities(self, asked: Mapping[str, Sequence[str]]) -> tuple[list[FloatArray], Usage]:
        """Return the log-probability of each prompt's letters as the next token, and what they cost."""
        # What is said of a user is read once for all orders: it stands before the candidates.
        heads: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for text, letters in asked.items():
            head = text[: text.index(CANDIDATES)]
            heads.setdefault(tuple(letters), {}).setdefault(head, []).append(text)
        found: dict[str, FloatArray] = {}
        usage = Usage()
        for own, texts in heads.items():
            groups = [
                PromptGroup(prefix=head, suffixes=tuple(text.removeprefix(head) for text in some))
                for head, some in texts.items()
            ]
            rows, spent = self.lm.choose(groups, own)
            usage = usage + spent
            for some, values in zip(texts.values(), rows, strict=True):
                found |= dict(zip(some, values, strict=True))
        return [found[text] for text in asked], usage


def _key(fingerprint: str, pair: Pair) -> bytes:
    return answer_key(fingerprint, pair[0], ("first-token", pair[1]))


def _opinion(
    letters: Sequence[DoubleArray], orders: Sequence[Sequence[int]], min_agreement: float | None
) -> Opinion:
    """Return the mean log-probability of each candidate over the orders in which it was shown."""
    if not letters:
        return Opinion(points=None, reason="unscored")
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
