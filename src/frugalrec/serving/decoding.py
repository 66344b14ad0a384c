"""Texts written one token at a time, several at once, each with settings of its own.

A text does not depend on what is written beside it, up to the rounding of a batch's sums: it has its own
stream of random numbers, its own grammar and its own end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from frugalrec.errors import ModelError
from frugalrec.llm.beam_search import end_tokens
from frugalrec.llm.tree import Logits
from frugalrec.rng import generator
from frugalrec.serving.grammar import DONE, Expression, ends
from frugalrec.serving.masks import TokenBytes
from frugalrec.serving.prefixes import KeptPrefixes, Reading, read
from frugalrec.types import DoubleArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a text is to be written."""

    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token; above it, tokens are drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    top: int | None = None
    """How many likeliest tokens to report at each place; None reports no log-probabilities."""
    grammar: Expression | None = None
    """What the text must be; tokens that would leave it are not considered."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a text, and what the model thought of it.

    Log-probabilities are the model's own, in nats: temperature, top_p and grammar are not in them.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens here, best first."""


@dataclass(kw_only=True)
class Text:
    """One text, while it is written and afterwards."""

    plan: Plan
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    """Its tokens, without the one that ended it."""
    written: int = 0
    """Tokens that the model wrote, an end-of-text token included."""
    reused: int = 0
    """Tokens of the prompt that did not have to be read."""
    finish: Finish | None = None
    """Why it ended; None while it goes on."""


class Writer:
    """Writes texts with a local model."""

    def __init__(self, lm: LocalLM, kept: KeptPrefixes, vocabulary: TokenBytes) -> None:
        self.lm = lm
        self.kept = kept
        self.vocabulary = vocabulary

    def write(self, prompts: Sequence[Sequence[int]], plans: Sequence[Plan]) -> list[Text]:
        """Write a text after each prompt (token ids), all in one batch."""
        reading = read(self.lm, prompts, self.kept)
        rows = [_Row(self, Text(plan=plan, reused=n)) for plan, n in zip(plans, reading.cached, strict=True)]
        depths = torch.tensor(
            [len(prompt) - n for prompt, n in zip(prompts, reading.reused, strict=True)]
            if reading.behind.shape[1]
            else [0] * len(prompts),
            device=reading.behind.device,
        )
        self._run(rows, reading, depths)
        return [row.finished() for row in rows]

    def _run(self, rows: list[_Row], reading: Reading, depths: Tensor) -> None:
        trees, logits, sees = reading.trees, reading.first, reading.behind
        while True:
            for place, row in enumerate(rows):
                row.take(logits, place)
            live = [place for place, row in enumerate(rows) if row.text.finish is None]
            if not live:
                return
            if 2 * len(live) <= len(rows):  # a copy of the cache pays once half of it is of no use
                index = torch.tensor(live, device=sees.device)
                trees, sees, depths = trees.take(index), sees[index], depths[index]
                rows = [rows[place] for place in live]
            tokens = torch.tensor([[row.last] for row in rows], device=sees.device)
            sees = torch.cat([sees, torch.ones_like(tokens, dtype=torch.bool)], dim=1)
            logits = trees.grow(tokens, depths[:, None], sees[:, None])
            depths = depths + 1


class _Row:
    """One text of a batch."""

    def __init__(self, writer: Writer, text: Text) -> None:
        self.writer = writer
        self.text = text
        self.ends = set(end_tokens(writer.lm))
        self.state = text.plan.grammar
        self.rng = generator(text.plan.seed, "serving", "sampling")
        self.last = 0
        """The token written last; what a finished row goes on with does not matter."""

    def take(self, logits: Logits, place: int) -> None:
        """Write the next token."""
        text, plan = self.text, self.text.plan
        if text.finish is not None:
            return
        self.last = self._next(logits.values[place].float())
        text.written += 1
        if self.last in self.ends:
            text.finish = "stop"
            return
        text.tokens.append(_facts(logits, place, self.last, plan.top))
        if self.state is not None:
            self.state = self.writer.vocabulary.after(self.state, self.last)
        if plan.stop:
            self._look_for_stop()
        if text.finish is None and self.state is DONE:  # nothing may follow: the end costs no token
            text.finish = "stop"
        elif text.finish is None and text.written == plan.max_tokens:
            text.finish = "length"

    def finished(self) -> Text:
        """Return the text, its words decoded."""
        if not self.text.plan.stop:
            self.text.text = self._decoded()
        return self.text

    def _next(self, values: Tensor) -> int:
        """Return the next token, out of logits (vocabulary,)."""
        candidates: Tensor | None = None
        if self.state is not None:
            allowed = self.writer.vocabulary.allowed(self.state)
            last = sorted(self.ends) if ends(self.state) else []
            candidates = torch.from_numpy(np.append(allowed, last).astype(np.int64)).to(values.device)
            values = values[candidates]
        plan = self.text.plan
        if plan.temperature == 0:
            choice = int(values.argmax())
        else:
            logits = values.cpu().numpy().astype(np.float64)
            choice = draw(logits, plan.temperature, plan.top_p, self.rng)
        return choice if candidates is None else int(candidates[choice])

    def _decoded(self) -> str:
        tokens = [token.token for token in self.text.tokens]
        # Some tokenizers tidy blanks up as they decode, which would leave the grammar.
        tidy = {} if self.text.plan.grammar is None else {"clean_up_tokenization_spaces": False}
        return str(self.writer.lm.tokenizer.decode(tokens, skip_special_tokens=True, **tidy))

    def _look_for_stop(self) -> None:
        written = self._decoded()
        places = [place for word in self.text.plan.stop if (place := written.find(word)) >= 0]
        self.text.text = written[: min(places)] if places else written
        if places:
            self.text.finish = "stop"


def draw(logits: DoubleArray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Return a position drawn from softmax(logits / temperature), among the likeliest that add up to top_p.

    Args:
        logits: (n,) float64.
        temperature: Above 0.
        top_p: Above 0, at most 1; the likeliest position always stays.
        rng: One uniform number is taken from it.
    """
    order = np.argsort(-logits, kind="stable")
    scaled = (logits[order] - logits[order[0]]) / temperature
    chances = np.cumsum(np.exp(scaled))
    total = chances[-1]
    kept = int(np.searchsorted(chances, top_p * total)) + 1
    total = chances[min(kept, len(chances)) - 1]
    place = int(np.searchsorted(chances, rng.random() * total, side="right"))
    return int(order[min(place, len(chances) - 1)])


def _facts(logits: Logits, place: int, token: int, top: int | None) -> Token:
    """Return a token with its log-probability, and the likeliest ones beside it."""
    if top is None:
        return Token(token=token, logprob=None)
    best = logits.values[place].float().topk(top).indices if top else logits.values.new_zeros(0).long()
    wanted = torch.cat([best.new_tensor([token]), best])
    values = logits.log_probabilities(torch.full_like(wanted, place), wanted).tolist()
    others = tuple(zip(best.tolist(), values[1:], strict=True))
    return Token(token=token, logprob=values[0], top=others)


def given(lm: LocalLM, tokens: Sequence[int], top: int | None, *, chunk: int = 256) -> list[Token]:
    """Return the tokens of a given text with their log-probabilities; the first one has none.

    Args:
        lm: A causal model.
        tokens: The text.
        top: As in `Plan`.
        chunk: Tokens read at a time: each takes a row of the output layer.

    Raises:
        ModelError: If the model reads texts with an encoder, which gives no probabilities.
    """
    from frugalrec.llm.tree import PromptTrees
    from frugalrec.serving.prefixes import empty_cache

    if lm.is_encoder_decoder:
        raise ModelError(f"{lm.model} reads prompts with an encoder: they have no log-probabilities.")
    device = lm.network.device
    ids = torch.tensor([list(tokens)], device=device)
    trees = PromptTrees(lm.network, empty_cache(), ids[:, :0], ids.new_zeros(1))
    facts = [Token(token=int(tokens[0]), logprob=None)]
    for start in range(0, len(tokens) - 1, chunk):
        part = ids[:, start : min(start + chunk, len(tokens) - 1)]
        columns = torch.arange(start, start + part.shape[1], device=device)
        sees = torch.arange(start + part.shape[1], device=device) <= columns[:, None]
        logits = trees.grow(part, columns[None], sees[None])
        for place in range(part.shape[1]):
            facts.append(_facts(logits, place, int(tokens[start + place + 1]), top))
    return facts
