"""What losses of single transitions have in common: gradients, and slopes by tiles of the catalogue.

Scores of training samples need, for every sample i, the slope of its own loss along one direction of
all parameters. Over a catalogue, the last step is the expensive one: with a state h and an item table
W, the logits are ``W h``, and if ``g`` is the gradient of the loss by the logits, the slope along
``(dh, dW)`` is ``dh . (W^T g) + h . (dW^T g)``: one product ``g [W | dW]`` for a block of samples,
and no gradient of a parameter is ever formed. For the losses here g is, but for a few items, a function
of each logit alone times a number a sample, so that the product is summed up over tiles of items that
stay in a processor's cache.

Shapes: states ``(b, width)``, table ``(n_items, width)``, targets ``(b,)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from frugalrec.recommenders import losses
from frugalrec.types import IntArray, LongArray

WHOLE = 128
"""The most samples whose logits over all items exist at the same time."""
BLOCK = 256
"""The most samples whose logits over a tile of items exist at the same time."""
TILE = 512
"""Items whose logits for a block are computed, used and forgotten together: they fit a core's cache."""

Slopes = Callable[[Tensor, Tensor, "Asked"], Tensor]
"""Takes states (b, width), their derivatives and what was asked; returns each loss's slope, (b,)."""
PairLogits = Callable[[Tensor, Tensor], Tensor]
"""Takes samples and items, (m,) each; returns the logits of these pairs."""
Fixes = tuple[Tensor, Tensor, Tensor]
"""Samples, items and what the gradient of the loss by their logits holds beyond its smooth part."""


@dataclass(frozen=True)
class Asked:
    """What a loss must know about some samples besides their states."""

    users: IntArray
    """User codes, (b,)."""
    targets: Tensor
    """Next items, (b,)."""
    rows: LongArray
    """Row numbers of the samples, (b,): random draws hang on them, not on the batch."""


class TransitionLoss(ABC):
    """The loss of the surrogate on one transition (history -> next item)."""

    name: ClassVar[str]

    @abstractmethod
    def values(self, states: Tensor, table: Tensor, asked: Asked) -> Tensor:
        """Return the losses, (b,), differentiable in both modes; memory for (b, n_items)."""

    @abstractmethod
    def gradients(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed loss by states (b, width) and table (n_items, width)."""

    @abstractmethod
    def slopes(self, table: Tensor, d_table: Tensor | None) -> Slopes:
        """Return a function that gives slopes where the table moves along d_table; None is a zero one."""


class CatalogueLoss(TransitionLoss):
    """A loss that looks at every item; an author writes `values`, `weigh`, `settle` and `curve`.

    Its gradient by the logits is ``scale * weigh(logits)``, one scale a sample, plus `Fixes`.
    """

    @abstractmethod
    def weigh(self, logits: Tensor, top: Tensor | None) -> Tensor:
        """Replace logits of a block of samples and some items in place by weights.

        `top` holds the largest logit of each sample, in a shape that broadcasts, or is None where nothing
        can overflow.
        """

    @abstractmethod
    def settle(self, totals: Tensor, logits_of: PairLogits, asked: Asked) -> tuple[Tensor, Fixes]:
        """Return the scales (b,) and the fixes, given the sum (b,) of each sample's weights."""

    @abstractmethod
    def curve(self, logits: Tensor, moves: Tensor, asked: Asked) -> Tensor:
        """Return the loss's Hessian by the logits (n_items, b), times moves of them (n_items, b)."""

    def gradients(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed loss by states and table, a block of samples at a time."""
        to_states, to_table = torch.empty_like(states), torch.zeros_like(table)
        bounded, n_items = losses.bounded(states, table), table.shape[0]
        buffer = table.new_empty(WHOLE * n_items)
        for part in _blocks(states.shape[0], WHOLE):
            own = states[part]
            # Items by samples: that way round the product for the table is twice as fast.
            weights = torch.mm(table, own.T, out=_room(buffer, n_items, own.shape[0]))
            self.weigh(weights, None if bounded else weights.amax(dim=0))
            pick = partial(pair_logits, own, table)
            scale, (samples, items, fixes) = self.settle(weights.sum(dim=0), pick, _part(asked, part))
            to_states[part] = (table.T @ weights).T * scale[:, None]
            to_states[part].index_add_(0, samples, table[items] * fixes[:, None])
            to_table.addmm_(weights, own * scale[:, None])
            to_table.index_add_(0, items, own[samples] * fixes[:, None])
        return to_states, to_table

    def slopes(self, table: Tensor, d_table: Tensor | None) -> Slopes:
        """Return a function that gives slopes, a block of samples and a tile of items at a time."""
        both = table if d_table is None else torch.cat([table, d_table], dim=1)
        tiles = [
            (one.T.contiguous(), two)
            for one, two in zip(torch.split(table, TILE), torch.split(both, TILE), strict=True)
        ]
        buffer = table.new_empty(BLOCK * TILE)

        def of_block(states: Tensor, moves: Tensor, asked: Asked, top: Tensor | None) -> Tensor:
            total, means = states.new_zeros(states.shape[0]), torch.zeros_like(moves)
            for across, values in tiles:
                weights = torch.mm(states, across, out=_room(buffer, states.shape[0], across.shape[1]))
                self.weigh(weights, top)
                total += weights.sum(dim=1)
                means.addmm_(weights, values)
            pick = partial(pair_logits, states, table)
            scale, (samples, items, fixes) = self.settle(total, pick, asked)
            found = (means * moves).sum(dim=1) * scale
            return found.index_add_(0, samples, (both[items] * moves[samples]).sum(dim=1) * fixes)

        def found(states: Tensor, d_states: Tensor, asked: Asked) -> Tensor:
            bounded = losses.bounded(states, table)
            moves = d_states if d_table is None else torch.cat([d_states, states], dim=1)
            parts = []
            for part in _blocks(states.shape[0], BLOCK):
                top = None if bounded else _largest(states[part], tiles)
                parts.append(of_block(states[part], moves[part], _part(asked, part), top))
            return torch.cat(parts)

        return found


def pair_logits(states: Tensor, table: Tensor, samples: Tensor, items: Tensor) -> Tensor:
    """Return the logits of some pairs of sample and item."""
    return (states[samples] * table[items]).sum(dim=1)


def _room(buffer: Tensor, n: int, width: int) -> Tensor:
    return buffer[: n * width].view(n, width)


def _blocks(n: int, size: int) -> list[slice]:
    """Split n samples into as few blocks of at most `size` as possible, all about as large."""
    edges = np.linspace(0, n, -(-n // size) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _largest(states: Tensor, tiles: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the largest logit of each sample, (b, 1)."""
    return torch.stack([(states @ across).amax(dim=1) for across, _ in tiles]).amax(dim=0)[:, None]


def _part(asked: Asked, part: slice) -> Asked:
    return Asked(users=asked.users[part], targets=asked.targets[part], rows=asked.rows[part])
