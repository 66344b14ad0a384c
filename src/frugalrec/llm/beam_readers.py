"""What may follow each beam: read with shared prompts, or, as a baseline, with a copy a beam.

Both give the same numbers. `SharedPrompts` reads a prompt once; its beams are the branches of a tree, so
that an encoder's states, and the keys and values of cross-attention, exist once a prompt. `CopiedPrompts`
does what P5 and POD do: the encoder (or the causal network) runs on beams x prompts, and every step
reorders the caches of all of these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from frugalrec.llm.queries import decoder_start
from frugalrec.llm.scoring import gathered_logits
from frugalrec.llm.tree import Logits, PromptTrees

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


class Reader(Protocol):
    """Reads the tokens that are appended to some prompts."""

    first: Logits
    """What may follow each prompt: one place a prompt."""

    def step(self, parents: Tensor, tokens: Tensor) -> Logits:
        """Append a token to each beam; return what may follow, (n_prompts * beams) places.

        Args:
            parents: The beam of the step before that each beam goes on from, (n_prompts, beams).
            tokens: Its new token, (n_prompts, beams).
        """

    def take(self, rows: Tensor) -> None:
        """Keep some prompts only."""


class SharedPrompts:
    """Every prompt once, however many beams."""

    def __init__(
        self, lm: LocalLM, prompts: Sequence[Sequence[int]], beams: int, *, see_padding: bool = False
    ) -> None:
        self.trees, self.first = PromptTrees.read(lm, prompts, see_padding=see_padding)
        self.steps = 0
        device = self.trees.positions.device
        self.sees = torch.zeros((len(prompts), 1, 0), dtype=torch.bool, device=device)

    def step(self, parents: Tensor, tokens: Tensor) -> Logits:
        """See `Reader.step`."""
        n, beams = tokens.shape
        older = self.sees.gather(1, parents[:, :, None].expand(-1, -1, self.sees.shape[2]))
        own = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(n, -1, -1)
        self.sees = torch.cat([older, own], dim=2)
        logits = self.trees.grow(tokens, torch.full_like(tokens, self.steps), self.sees)
        self.steps += 1
        return logits

    def take(self, rows: Tensor) -> None:
        """See `Reader.take`."""
        self.trees, self.sees = self.trees.take(rows), self.sees[rows]


class CopiedPrompts:
    """Every prompt once a beam: the plain way, slow, kept as a baseline and to compare results with."""

    def __init__(
        self, lm: LocalLM, prompts: Sequence[Sequence[int]], beams: int, *, see_padding: bool = False
    ) -> None:
        self.network: Any = lm.network
        self.beams = beams
        self.see_padding = see_padding
        copies = [prompt for prompt in prompts for _ in range(beams)]
        self.states: Tensor | None = None
        if lm.is_encoder_decoder:
            ids, self.mask = self._padded(copies, lm.pad_id, left=False)
            encoder = self.network.get_encoder()
            self.states = encoder(input_ids=ids, attention_mask=self.mask).last_hidden_state
            self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
            ids = torch.full((len(copies), 1), decoder_start(lm), device=self.mask.device)
        else:
            ids, self.mask = self._padded(copies, lm.pad_id, left=True)
            self.cache = DynamicCache()
        every = self._forward(ids)
        self.first = Logits(every.values[::beams], every.hidden[::beams], every.head)

    def step(self, parents: Tensor, tokens: Tensor) -> Logits:
        """See `Reader.step`."""
        first = torch.arange(len(parents), device=parents.device)[:, None] * self.beams
        self.cache.reorder_cache((first + parents).flatten())
        if self.states is None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        return self._forward(tokens.reshape(-1, 1))

    def take(self, rows: Tensor) -> None:
        """See `Reader.take`."""
        copies = (rows[:, None] * self.beams + torch.arange(self.beams, device=rows.device)).flatten()
        self.cache.reorder_cache(copies)
        self.mask = self.mask[copies]
        self.states = None if self.states is None else self.states[copies]

    def _forward(self, ids: Tensor) -> Logits:
        from transformers.modeling_outputs import BaseModelOutput

        inputs: dict[str, Any]
        if self.states is None:
            positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": self.mask}
        else:
            inputs = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.states),
                "attention_mask": None if self.see_padding else self.mask,
                "decoder_input_ids": ids,
            }
        rows = torch.arange(len(ids))
        with gathered_logits(self.network, rows, torch.full_like(rows, ids.shape[1] - 1)) as hidden:
            values = self.network(**inputs, past_key_values=self.cache, use_cache=True).logits[0]
        return Logits(values, hidden[0], self.network.get_output_embeddings())

    def _padded(self, rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            ids[row, place], mask[row, place] = torch.tensor(tokens), 1
        return ids.to(self.network.device), mask.to(self.network.device)
