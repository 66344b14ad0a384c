"""Keys and values of texts that were read lately, so that texts which begin alike are read once.

Prompts of a recommender open with the same system text, and those of one user with the same history.
What the layers attend to in these tokens does not depend on what follows, so it is kept and put before
the rest of the next prompt; the numbers are those of a whole reading, up to rounding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from frugalrec.llm.prefix import common_prefix
from frugalrec.llm.scoring import padded
from frugalrec.llm.tree import Logits, PromptTrees, _Layer

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

SHORTEST = 16
"""Fewer shared tokens than these are read again: putting them together would cost as much."""
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (n_heads, n_tokens, head_width)."""


class KeptPrefixes:
    """Texts and their keys and values, the latest used ones first to stay."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._texts: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(map(len, self._texts))

    def longest(self, tokens: Sequence[int]) -> tuple[int, Layers]:
        """Return how many leading tokens of a text are kept, and their keys and values.

        One token is always left to be read: what follows it is what the reader wants to know.
        """
        best, found = 0, None
        for text in self._texts:
            shared = min(common_prefix([text, tokens]), len(tokens) - 1)
            if shared > best:
                best, found = shared, text
        if found is None or best < SHORTEST:
            return 0, []
        self._texts.move_to_end(found)
        return best, [(keys[:, :best], values[:, :best]) for keys, values in self._texts[found]]

    def keep(self, tokens: Sequence[int], layers: Layers) -> None:
        """Keep a text; those that it begins with go, and so do the longest unused ones if room is short."""
        text = tuple(tokens)
        if not SHORTEST <= len(text) <= self.max_tokens:
            return
        for known in list(self._texts):
            if text[: len(known)] == known:
                del self._texts[known]
        self._texts[text] = layers
        while self.tokens > self.max_tokens:
            self._texts.popitem(last=False)


@dataclass(kw_only=True)
class Reading:
    """Prompts that have been read, and the trees that grow behind them."""

    trees: PromptTrees
    first: Logits
    """What may follow each prompt, (n_prompts, vocabulary)."""
    reused: list[int]
    """Leading tokens of each prompt that were put before it instead of being read."""
    cached: list[int]
    """Of these, the tokens that nobody in this batch had to read: what is told to the client."""
    behind: Tensor
    """True where a column behind the trees' own prompts holds a token of the prompt, (n, columns)."""


def read(lm: LocalLM, prompts: Sequence[Sequence[int]], kept: KeptPrefixes) -> Reading:
    """Read prompts, each token once where they begin alike or like a kept text; keep them."""
    if lm.is_encoder_decoder or not kept.max_tokens:
        return _whole(lm, prompts)
    paid: int | None = None
    shared = min(common_prefix(prompts), *(len(prompt) - 1 for prompt in prompts))
    if len(prompts) > 1 and shared >= SHORTEST and kept.longest(prompts[0])[0] < shared:
        # The first of them pays for what all share.
        paid = read(lm, [prompts[0][:shared]], kept).cached[0]
    found = [kept.longest(prompt) for prompt in prompts]
    reading = _behind(lm, prompts, found) if any(n for n, _ in found) else _whole(lm, prompts)
    for row, prompt in enumerate(prompts):
        kept.keep(prompt, _layers(reading, row, len(prompt)))
    if paid is not None:
        reading.cached[0] = min(paid, reading.cached[0])
    return reading


def _whole(lm: LocalLM, prompts: Sequence[Sequence[int]]) -> Reading:
    trees, first = PromptTrees.read(lm, prompts)
    behind = torch.zeros((len(prompts), 0), dtype=torch.bool, device=trees.positions.device)
    none = [0] * len(prompts)
    return Reading(trees=trees, first=first, reused=none, cached=list(none), behind=behind)


def _behind(lm: LocalLM, prompts: Sequence[Sequence[int]], found: Sequence[tuple[int, Layers]]) -> Reading:
    """Read the rest of each prompt behind what is kept of it."""
    device = lm.network.device
    reused = [n for n, _ in found]
    cache, width = empty_cache(), max(reused)
    example = next(layers for n, layers in found if n)
    for number, parts in enumerate(example):
        own = [layers[number] if n else None for n, layers in found]
        cache.update(*(_stacked(own, part, parts[part], width) for part in (0, 1)), number)
    positions = torch.arange(width, device=device).expand(len(prompts), -1)
    trees = PromptTrees(lm.network, cache, positions, torch.tensor(reused, device=device))
    rest = [prompt[n:] for prompt, n in zip(prompts, reused, strict=True)]
    tokens, mask = padded(rest, lm.pad_id, device)
    columns = torch.arange(tokens.shape[1], device=device)
    sees = torch.ones((len(columns), len(columns)), dtype=torch.bool, device=device).tril()
    last = columns == (mask.sum(dim=1) - 1)[:, None]
    first = trees.grow(
        tokens, columns.expand(len(prompts), -1), sees.expand(len(prompts), -1, -1), wanted=last
    )
    return Reading(trees=trees, first=first, reused=reused, cached=list(reused), behind=mask.bool())


def empty_cache() -> Any:
    """Return a cache with room to grow, as the trees of tokens use it."""
    return Cache(layer_class_to_replicate=_Layer)


def _stacked(own: Sequence[Any], part: int, like: Tensor, width: int) -> Tensor:
    """Return the keys (or values) of several texts as one tensor, padded on the right."""
    whole = like.new_zeros((len(own), like.shape[0], width, like.shape[2]))
    for row, parts in enumerate(own):
        if parts is not None:
            whole[row, :, : parts[part].shape[1]] = parts[part]
    return whole


def _layers(reading: Reading, row: int, length: int) -> Layers:
    """Return a copy of one prompt's keys and values."""
    start = reading.trees.prompt_columns
    n = reading.reused[row] if reading.behind.shape[1] else length

    def own(part: Tensor) -> Tensor:
        return torch.cat([part[row, :, :n], part[row, :, start : start + length - n]], dim=1)

    return [(own(layer.keys), own(layer.values)) for layer in reading.trees.cache.layers]
