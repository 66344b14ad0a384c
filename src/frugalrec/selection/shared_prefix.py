"""Layers below the lowest chosen one read the tokens that all samples begin with only once.

Exact, and possible only there. A sample's gradient is a sum over all its tokens, those of the common
prefix included: later tokens attend to them, so each sample has its own deltas there, and one shared
computation would only leave their sum. Below the lowest chosen layer no deltas are needed, and what
the prefix's tokens become there is the same for all samples (causal attention: they see nothing
else). So these layers run on the prefix once, and on each sample's rest with the prefix's keys and
values; from the lowest chosen layer on, everything runs on whole samples. With a matrix of the first
layer among the chosen ones, as with all LoRA matrices, there is nothing to share.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch

from frugalrec.llm.half_passes import entering, run_below

MIN_TOKENS = 32
"""The shortest prefix worth sharing: attention to a cache costs more a token."""


def lowest_layer(network: Any, names: Sequence[str]) -> tuple[Any, int]:
    """Return the list of the network's layers and the number of the lowest one that holds a module.

    The number is 0 where there is no such list, or where a module lies outside of it.

    Args:
        network: A causal network.
        names: The modules' names, such as ``model.layers.3.self_attn.v_proj``.
    """
    found = [re.match(r"(.*?)\.(\d+)\.", name) for name in names]
    lists = {match[1] for match in found if match is not None}
    if None in found or len(lists) != 1 or network.config.is_encoder_decoder:
        return [], 0
    layers = network.get_submodule(lists.pop())
    return layers, min(int(match[2]) for match in found if match is not None)


class SharedPrefix:
    """The common prefix of some samples, computed up to a layer, and forward passes that go on from it."""

    def __init__(self, network: Any, layers: Any, lowest: int, tokens: Sequence[int]) -> None:
        self.network = network
        self.layers = layers
        self.lowest = lowest
        self.tokens = tuple(tokens)
        self._cache: Any = None
        self._states: torch.Tensor | None = None
        self._pairs = False

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of whole samples, all of which begin with the prefix."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        start = len(self.tokens)
        with torch.no_grad():
            prefix = self._read_prefix(ids.device) if self._states is None else self._states
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(ids.shape[0])
            rest = self._lower(input_ids=ids[:, start:], attention_mask=mask, past_key_values=cache)
            states = torch.cat([prefix.expand(ids.shape[0], -1, -1), rest], dim=1)
        with entering(self.layers, self.lowest, states, pairs=self._pairs):
            logits: torch.Tensor = self.network(**inputs, use_cache=False).logits
        return logits

    def _read_prefix(self, device: torch.device) -> torch.Tensor:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.network.config.get_text_config())
        ids = torch.tensor([self.tokens], device=device)
        self._states = self._lower(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=self._cache
        )
        return self._states

    def _lower(self, **inputs: Any) -> torch.Tensor:
        """Run the layers below the lowest chosen one, and return what would enter that one."""

        def note(_: Any, __: Any, output: Any) -> None:
            self._pairs = isinstance(output, tuple)

        hook = self.layers[0].register_forward_hook(note)
        try:
            return run_below(self.layers, self.lowest, lambda: self.network(**inputs, use_cache=True))
        finally:
            hook.remove()
