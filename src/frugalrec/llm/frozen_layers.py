"""Layers below the tuned ones: they read every text once, whatever is tuned above them afterwards.

A layer that is not tuned computes the same in every epoch, for every adapter and for every selection
of samples. So its output is computed once, kept, and tuning and inference go on from there: with the
top 4 of 30 layers tuned, a pass costs about a seventh. Causal networks only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.half_passes import entering, run_below
from frugalrec.llm.last_layer import FeedForward, layer_lists
from frugalrec.types import LongArray

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TokenStates:
    """What enters the lowest tuned layer, for every token of some texts, in CSR form."""

    values: NDArray[np.float16]
    """(n_tokens, width); half precision, since they are the most that is kept of a text."""
    indptr: LongArray
    """Row pointers into `values`, (n_texts + 1,)."""
    cut: int
    """Number of the layer that they enter."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return int(self.indptr.size) - 1

    @property
    def lengths(self) -> LongArray:
        """Tokens of each text, (n_texts,)."""
        lengths: LongArray = np.diff(self.indptr)
        return lengths

    def take(self, rows: NDArray[Any]) -> TokenStates:
        """Return the given texts, in the given order."""
        parts = [self.values[self.indptr[row] : self.indptr[row + 1]] for row in rows]
        indptr = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        values = np.concatenate(parts) if parts else self.values[:0]
        return TokenStates(values=values, indptr=indptr, cut=self.cut)

    def padded(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states of some texts, (b, longest, width) float32 with zeros behind, and lengths (b,)."""
        lengths = self.lengths[list(rows)]
        padded = np.zeros((len(rows), int(lengths.max()), self.values.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            padded[place, : lengths[place]] = self.values[self.indptr[row] : self.indptr[row + 1]]
        return torch.from_numpy(padded), torch.from_numpy(lengths)


class FrozenLayers:
    """A causal network, cut below its top layers."""

    def __init__(self, network: Any, tuned: int) -> None:
        """Cut below the top `tuned` layers.

        Args:
            network: A transformers network; LoRA matrices may be added to its top layers at any time.
            tuned: How many layers stay above the cut.

        Raises:
            ConfigError: If the network has fewer layers.
            ModelError: If it reads prompts with an encoder, or its layers cannot be found.
        """
        if network.config.is_encoder_decoder:
            raise ModelError("an encoder-decoder cannot be cut below its top layers; take a causal model.")
        n_layers = int(network.config.get_text_config().num_hidden_layers)
        if not 1 <= tuned <= n_layers:
            raise ConfigError(
                f"the network has {n_layers} layers; tune 1 to {n_layers} of them, not {tuned}."
            )
        lists = layer_lists(network)
        if len(lists) != 1:
            raise ModelError(f"the network has {len(lists)} lists of {n_layers} layers; one was expected.")
        self.network = network
        self.layers: Any = lists[0]
        self.cut = n_layers - tuned
        self._feed = FeedForward.of(list(self.layers), [])
        self._pairs = self._looked_at()

    @property
    def tuned(self) -> list[int]:
        """Numbers of the layers above the cut."""
        return list(range(self.cut, len(self.layers)))

    @torch.no_grad()
    def read(
        self,
        texts: Sequence[Sequence[int]],
        *,
        max_batch_tokens: int = 1024,
        progress: Progress | None = None,
    ) -> TokenStates:
        """Run the layers below the cut on some texts (token ids).

        Args:
            texts: At least one token each.
            max_batch_tokens: Padded tokens in one pass; the result does not depend on it.
            progress: Is told of (texts done, texts in all).

        Raises:
            DataError: If a text is empty.
            ModelError: If a state does not fit into half precision.
        """
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        if not (lengths > 0).all():
            raise DataError(f"text {int(np.argmin(lengths))} is empty; give every prompt some words.")
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        width = int(self.network.config.get_text_config().hidden_size)
        values = np.empty((int(indptr[-1]), width), dtype=np.float16)
        done = 0
        for batch in token_batches(lengths.tolist(), max_batch_tokens):
            longest = int(lengths[batch].max())
            ids = torch.tensor([[*texts[row], *[0] * (longest - len(texts[row]))] for row in batch])
            states = self._lower(ids.to(self.network.device)).half().cpu().numpy()
            if not np.isfinite(states).all():
                raise ModelError(
                    "a state of the lower layers does not fit into half precision; tune all layers."
                )
            for place, row in enumerate(batch):
                values[indptr[row] : indptr[row + 1]] = states[place, : lengths[row]]
            done += len(batch)
            if progress is not None:
                progress(done, len(texts))
        return TokenStates(values=values, indptr=indptr, cut=self.cut)

    def last(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Run the layers above the cut; return the final state of each text's last token, (b, width).

        Args:
            states: (b, longest, width), from `TokenStates.padded`.
            lengths: (b,). What stands behind a text is not seen by its tokens: attention is causal.
        """
        states = states.to(self.network.device, self.network.dtype)
        rows, columns = list(range(states.shape[0])), (lengths - 1).tolist()
        with (
            entering(self.layers, self.cut, states, pairs=self._pairs),
            self._feeding_only(rows, columns),
        ):
            final = self.network.base_model(inputs_embeds=states, use_cache=False).last_hidden_state
        chosen: torch.Tensor = final[rows, columns]
        return chosen

    def _lower(self, ids: torch.Tensor) -> torch.Tensor:
        return run_below(
            self.layers, self.cut, lambda: self.network.base_model(input_ids=ids, use_cache=False)
        )

    def _feeding_only(self, rows: list[int], columns: list[int]) -> AbstractContextManager[None]:
        return nullcontext() if self._feed is None else self._feed.only_at(rows, columns)

    @torch.no_grad()
    def _looked_at(self) -> bool:
        """Run four tokens before anybody hooks in; return whether layers wrap their output in a tuple.

        The feed-forward part finds out on the way whether it treats every position on its own.
        """
        seen: list[bool] = []
        hook = self.layers[0].register_forward_hook(
            lambda _, __, output: seen.append(isinstance(output, tuple))
        )
        ids = torch.zeros(1, 4, dtype=torch.long, device=self.network.device)
        try:
            with self._feeding_only([0], [3]):
                self.network.base_model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return seen[0]
