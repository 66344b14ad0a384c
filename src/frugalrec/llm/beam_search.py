"""Beam search over the whole vocabulary: the likeliest texts after a prompt, whatever they are.

The search is that of transformers' `generate`: a step takes the 2 x beams best continuations of a prompt;
those among the first half that end are finished, the best others go on. Prompts do not influence each
other, and a prompt whose search is over leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from frugalrec.errors import ConfigError, ModelError
from frugalrec.ledger import Usage
from frugalrec.llm.batching import token_batches
from frugalrec.llm.beam_readers import CopiedPrompts, Reader, SharedPrompts
from frugalrec.llm.tree import Logits
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

COLUMNS = 6
"""Tokens that a beam appends, roughly: what batches are made by."""


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """How beams are searched; the defaults are those of P5 and POD."""

    beams: int = 20
    """Unfinished texts kept a prompt, and finished ones wanted."""
    max_new_tokens: int = 49
    """Longest text, the end-of-text token included; a text that reaches it counts as finished."""
    length_penalty: float = 1.0
    """A text's score is its log-probability / tokens**length_penalty; 0 leaves the log-probability."""
    early_stopping: bool = True
    """Stop with as many finished texts as beams; else go on while the best beam could beat the worst."""
    shared: bool = True
    """Read each prompt once; off, once a beam, as the published decoders do. The result is the same."""
    see_padding: bool = False
    """An encoder-decoder's decoder also sees the states of padding, as POD's does: then the result
    depends on which prompts share a batch."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.beams < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"beams and max_new_tokens must be at least 1, not {self.beams} and {self.max_new_tokens}."
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """The texts that a beam search found, best first."""

    tokens: list[list[list[int]]]
    """Token ids of each prompt's texts, the end-of-text token included where a text has one."""
    scores: FloatArray
    """Their scores, (n_prompts, beams), -inf where fewer were found."""


def beam_search(
    lm: LocalLM,
    prompts: Sequence[Sequence[int]],
    settings: BeamSettings | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Written, Usage]:
    """Return the texts that the model finds likeliest after each prompt, and the tokens used.

    Args:
        lm: The model.
        prompts: Token ids, as `LocalLM.encode` gives them.
        settings: How to search.
        progress: Is told of (prompts done, prompts in all).
    """
    settings = settings or BeamSettings()
    lm._check_lengths(prompts, room=0 if lm.is_encoder_decoder else settings.max_new_tokens)
    tokens: list[list[list[int]]] = [[] for _ in prompts]
    scores = np.full((len(prompts), settings.beams), -np.inf, dtype=np.float32)
    make = SharedPrompts if settings.shared else CopiedPrompts
    copies = 1 if settings.shared else settings.beams
    weights = [len(prompt) * copies + settings.beams * COLUMNS for prompt in prompts]
    done = 0
    with lm._running() as meter:
        for batch in token_batches(weights, lm.max_batch_tokens):
            rows = [prompts[row] for row in batch]
            reader = make(lm, rows, settings.beams, see_padding=settings.see_padding)
            search = _Search(reader, len(batch), settings, end_tokens(lm), lm.network.device)
            used = search.run()
            scores[batch] = search.pool_scores.cpu().numpy()
            for row, found in zip(batch, search.texts(), strict=True):
                tokens[row] = found
            read = copies * sum(map(len, rows))
            meter.add(Usage(tokens_in=read, tokens_out=used, llm_calls=len(batch)))
            if progress is not None:
                progress(done := done + len(batch), len(prompts))
    return Written(tokens=tokens, scores=scores), lm._spent(meter.usage)


def end_tokens(lm: LocalLM) -> list[int]:
    """Return the tokens that end a text.

    Raises:
        ModelError: If the model has none.
    """
    own = lm.network.generation_config.eos_token_id
    ends = own if own is not None else lm.tokenizer.eos_token_id
    if ends is None:
        raise ModelError(f"{lm.model} has no end-of-text token, so a beam search cannot tell when to stop.")
    return [int(end) for end in (ends if isinstance(ends, list) else [ends])]


class _Search:
    """The search for one batch of prompts; `members` are those whose search is not over."""

    def __init__(
        self, reader: Reader, n: int, settings: BeamSettings, ends: Sequence[int], device: torch.device
    ) -> None:
        self.reader = reader
        self.settings = settings
        self.ends = torch.tensor(ends, device=device)
        self.members = torch.arange(n, device=device)
        self.tokens = torch.zeros((n, 1, 0), dtype=torch.long, device=device)
        """Of the beams, (n_members, beams, length)."""
        self.scores = torch.zeros((n, 1), device=device)
        """Log-probabilities of the beams, (n_members, beams)."""
        self.pool_tokens = torch.full((n, settings.beams, settings.max_new_tokens), -1, device=device)
        self.pool_scores = torch.full((n, settings.beams), -torch.inf, device=device)

    def run(self) -> int:
        """Search; return how many tokens were appended to the prompts."""
        logits, used = self.reader.first, 0
        while True:
            parents = self.advance(logits)
            going = ~self.over()
            if not bool(going.any()):
                return used
            if not bool(going.all()):
                self.reader.take(going.nonzero()[:, 0])
                self.members, parents = self.members[going], parents[going]
                self.tokens, self.scores = self.tokens[going], self.scores[going]
            used += self.scores.numel()
            logits = self.reader.step(parents, self.tokens[:, :, -1])

    def advance(self, logits: Logits) -> Tensor:
        """Go one token on; return the beam that each new beam comes from, (n_members, beams)."""
        beams = self.settings.beams
        scores, parents, last = continuations(logits, self.scores, 2 * beams)
        tokens = torch.cat([_chosen(self.tokens, parents), last[:, :, None]], dim=2)
        ends = torch.isin(last, self.ends) | (tokens.shape[2] == self.settings.max_new_tokens)
        self.finish(tokens[:, :beams], scores[:, :beams].masked_fill(~ends[:, :beams], -torch.inf))
        self.scores, order = scores.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True)
        self.scores, order = self.scores[:, :beams], order[:, :beams]
        self.tokens = _chosen(tokens, order)
        return parents.gather(1, order)

    def finish(self, tokens: Tensor, scores: Tensor) -> None:
        """Take finished texts into the pool; a score of -inf stands for one that goes on."""
        length = tokens.shape[2]
        width = self.settings.max_new_tokens - length
        tokens = torch.cat([tokens, tokens.new_full((*tokens.shape[:2], width), -1)], dim=2)
        scores = torch.cat(
            [self.pool_scores[self.members], scores / length**self.settings.length_penalty], dim=1
        )
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        tokens = torch.cat([self.pool_tokens[self.members], tokens], dim=1)
        self.pool_scores[self.members] = scores[:, : self.settings.beams]
        self.pool_tokens[self.members] = _chosen(tokens, order[:, : self.settings.beams])

    def over(self) -> Tensor:
        """Return for which members the search is over, (n_members,)."""
        worst, length = self.pool_scores[self.members, -1], self.tokens.shape[2]
        if length == self.settings.max_new_tokens:
            return torch.ones_like(worst, dtype=torch.bool)
        best = self.scores[:, 0]
        if self.settings.early_stopping:
            return (worst > -torch.inf) | (best == -torch.inf)
        over: Tensor = best / length**self.settings.length_penalty <= worst
        return over

    def texts(self) -> list[list[list[int]]]:
        """Return the tokens of each prompt's finished texts, best first."""
        found = zip(self.pool_tokens.tolist(), self.pool_scores.isneginf().tolist(), strict=True)
        return [
            [
                [token for token in text if token >= 0]
                for text, void in zip(texts, voids, strict=True)
                if not void
            ]
            for texts, voids in found
        ]


def continuations(logits: Logits, scores: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the n best continuations of some beams, best first.

    Args:
        logits: What may follow each beam, (rows * beams) places.
        scores: Log-probabilities of the beams, (rows, beams).
        n: How many are wanted a row.

    Returns:
        Their scores, (rows, n), -inf where there are fewer; the beams that they continue; their tokens.
    """
    rows, beams = scores.shape
    top = min(n, logits.values.shape[1])
    # The best n of a row are among the best n of each of its beams.
    tokens = logits.values.topk(top, dim=1).indices
    places = torch.arange(len(tokens), device=tokens.device).repeat_interleave(top)
    gains = logits.log_probabilities(places, tokens.flatten())
    every = (scores.reshape(-1, 1) + gains.view(-1, top)).view(rows, beams * top)
    if every.shape[1] < n:
        every = torch.cat([every, every.new_full((rows, n - every.shape[1]), -torch.inf)], dim=1)
    best, order = every.sort(dim=1, descending=True, stable=True)
    order = order[:, :n].clamp(max=beams * top - 1)
    return best[:, :n], order // top, tokens.view(rows, -1).gather(1, order)


def _chosen(tokens: Tensor, order: Tensor) -> Tensor:
    """Return some of each row's texts, (rows, n, length)."""
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
