"""Losses of single transitions over the catalogue: values, gradients, and slopes along a direction.

Scores of training samples need, for every sample i, the slope of its own loss along one direction of
all parameters. Over a catalogue, the last step is the expensive one: with a state h and an item table
W, the logits are ``W h``, and if ``g`` is the gradient of the loss by the logits, the slope along
``(dh, dW)`` is ``dh . (W^T g) + h . (dW^T g)``: one product ``[W | dW]^T g`` for a block of samples,
and no gradient of a parameter is ever formed. The losses here are deterministic but for `Sampled`.

Shapes: states ``(b, width)``, table ``(n_items, width)``, targets ``(b,)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.recommenders import losses
from frugalrec.recommenders.batching import ranges
from frugalrec.recommenders.losses import uniform_negatives
from frugalrec.rng import generator
from frugalrec.types import IntArray, LongArray

BLOCK = 128
"""Samples whose logits exist at the same time."""


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
    def slopes(
        self, states: Tensor, table: Tensor, d_states: Tensor, d_table: Tensor | None, asked: Asked
    ) -> Tensor:
        """Return each loss's slope along (d_states, d_table), (b,); no d_table is a zero one."""


class CatalogueLoss(TransitionLoss):
    """A loss that looks at every item; an author writes `values` and `pull`."""

    @abstractmethod
    def pull(self, logits: Tensor, asked: Asked, safe: bool) -> Tensor:
        """Turn logits (n_items, b) into the losses' gradient up to a factor (b,), which is returned.

        `safe` logits cannot overflow the exponential.
        """

    @abstractmethod
    def curve(self, logits: Tensor, moves: Tensor, asked: Asked) -> Tensor:
        """Return the loss's Hessian by the logits (n_items, b), times moves of them (n_items, b)."""

    def gradients(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed loss by states and table, a block of samples at a time."""
        to_states, to_table = torch.empty_like(states), torch.zeros_like(table)
        buffer, safe = _buffer(states, table), losses.bounded(states, table)
        for part in _blocks(states.shape[0]):
            logits = torch.mm(table, states[part].T, out=_room(buffer, table, part))
            scale = self.pull(logits, _part(asked, part), safe)[:, None]
            to_states[part] = (table.T @ logits).T * scale
            to_table.addmm_(logits, states[part] * scale)
        return to_states, to_table

    def slopes(
        self, states: Tensor, table: Tensor, d_states: Tensor, d_table: Tensor | None, asked: Asked
    ) -> Tensor:
        """Return each loss's slope along (d_states, d_table), a block of samples at a time."""
        found = states.new_empty(states.shape[0])
        buffer, safe = _buffer(states, table), losses.bounded(states, table)
        # One product for both parts: (2 width, n_items) by (n_items, b).
        tables = table if d_table is None else torch.cat([table, d_table], dim=1)
        moves = d_states if d_table is None else torch.cat([d_states, states], dim=1)
        for part in _blocks(states.shape[0]):
            logits = torch.mm(table, states[part].T, out=_room(buffer, table, part))
            scale = self.pull(logits, _part(asked, part), safe)
            found[part] = ((tables.T @ logits) * moves[part].T).sum(dim=0) * scale
        return found


class Softmax(CatalogueLoss):
    """``-log softmax(scores)[target]`` over the whole catalogue: what the surrogates train on."""

    name: ClassVar[str] = "softmax"

    def values(self, states: Tensor, table: Tensor, asked: Asked) -> Tensor:
        """Return the losses, (b,)."""
        return losses.softmax_loss(states, table, asked.targets)

    def pull(self, logits: Tensor, asked: Asked, safe: bool) -> Tensor:
        """Turn logits into softmax minus one-hot."""
        return losses.softmax_block(safe)(logits, asked.targets)[1]

    def curve(self, logits: Tensor, moves: Tensor, asked: Asked) -> Tensor:
        """Return ``p * (moves - p . moves)``."""
        share = torch.softmax(logits, dim=0)
        return share * (moves - (share * moves).sum(dim=0))


class ExpectedBCE(CatalogueLoss):
    """The published binary loss with its random negative replaced by the expectation over negatives.

    ``-log sigmoid(s[target]) - mean_j log sigmoid(-s[j])``, j over the items that the user has not met
    in `train`: what the sampled loss estimates with one draw.
    """

    name: ClassVar[str] = "expected-bce"

    def __init__(self, train: Dataset) -> None:
        keys = np.unique(train.rows.astype(np.int64) * train.n_items + train.items)
        self.n_items = train.n_items
        users, self.items = np.divmod(keys, train.n_items)
        self.indptr = np.searchsorted(users, np.arange(train.n_users + 1))

    def values(self, states: Tensor, table: Tensor, asked: Asked) -> Tensor:
        """Return the losses, (b,)."""
        logits = states @ table.T
        columns, items = self._known(asked)
        allowed = torch.ones_like(logits)
        allowed[columns, items] = 0.0
        softplus = torch.nn.functional.softplus
        positive = softplus(-logits.gather(1, asked.targets[:, None])[:, 0])
        return positive + (softplus(logits) * allowed).sum(dim=1) / allowed.sum(dim=1).clamp(min=1)

    def pull(self, logits: Tensor, asked: Asked, safe: bool) -> Tensor:
        """Turn logits into sigmoids of negatives, and the target's sigmoid minus one."""
        columns, items = self._known(asked)
        chosen = logits.gather(0, asked.targets[None, :])
        logits.sigmoid_()
        logits[items, columns] = 0.0
        known = torch.bincount(columns, minlength=logits.shape[1])
        count = (logits.shape[0] - known).clamp(min=1).to(logits.dtype)
        logits.scatter_(0, asked.targets[None, :], -torch.sigmoid(-chosen) * count)
        return count.reciprocal()

    def curve(self, logits: Tensor, moves: Tensor, asked: Asked) -> Tensor:
        """Return ``sigmoid * (1 - sigmoid) * moves``, a negative's divided by their number."""
        columns, items = self._known(asked)
        bend = torch.sigmoid(logits) * torch.sigmoid(-logits)
        chosen = bend.gather(0, asked.targets[None, :])
        bend[items, columns] = 0.0
        known = torch.bincount(columns, minlength=logits.shape[1])
        bend /= (logits.shape[0] - known).clamp(min=1)
        return bend.scatter_(0, asked.targets[None, :], chosen) * moves

    def _known(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return (columns, items) of what can be no negative: the user's items and the target."""
        first = self.indptr[asked.users]
        lengths = self.indptr[asked.users + 1] - first
        _, positions = ranges(first, lengths)
        columns = np.concatenate([np.repeat(np.arange(asked.users.size), lengths), np.arange(lengths.size)])
        items = np.concatenate([self.items[positions], asked.targets.numpy()])
        column, item = np.divmod(np.unique(columns * self.n_items + items), self.n_items)
        return torch.from_numpy(column), torch.from_numpy(item)


class Sampled(TransitionLoss):
    """The published binary loss: one uniform negative per sample, outside the user's items in `train`.

    `users` are the users of all rows: a negative belongs to its row, whatever the batch. Another seed gives
    almost unrelated influence scores, so this exists for comparison only.
    """

    name: ClassVar[str] = "sampled-bce"

    def __init__(self, train: Dataset, users: IntArray, rng: np.random.Generator) -> None:
        keys = np.unique(train.rows.astype(np.int64) * train.n_items + train.items)
        self.negatives = uniform_negatives(users, keys, train.n_items, rng)

    def values(self, states: Tensor, table: Tensor, asked: Asked) -> Tensor:
        """Return the losses, (b,)."""
        return losses.binary_loss(states, table, asked.targets, self._negatives(asked))

    def gradients(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed loss by states and table."""
        items, pulls = self._pulls(states, table, asked)
        to_table = torch.zeros_like(table)
        for item, pull in zip(items, pulls, strict=True):
            to_table.index_add_(0, item, states * pull[:, None])
        return (table[items] * pulls[:, :, None]).sum(dim=0), to_table

    def slopes(
        self, states: Tensor, table: Tensor, d_states: Tensor, d_table: Tensor | None, asked: Asked
    ) -> Tensor:
        """Return each loss's slope along (d_states, d_table)."""
        items, pulls = self._pulls(states, table, asked)
        moves = (table[items] * d_states).sum(dim=2)
        if d_table is not None:
            moves = moves + (d_table[items] * states).sum(dim=2)
        return (moves * pulls).sum(dim=0)

    def _negatives(self, asked: Asked) -> Tensor:
        return torch.from_numpy(self.negatives[asked.rows])

    def _pulls(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return target and negative, (2, b), and the gradient of the loss by their scores, (2, b)."""
        items = torch.stack([asked.targets, self._negatives(asked)])
        logits = (table[items] * states).sum(dim=2)
        return items, torch.stack([-torch.sigmoid(-logits[0]), torch.sigmoid(logits[1])])


def _buffer(states: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(table.shape[0] * min(BLOCK, states.shape[0]))


def _room(buffer: Tensor, table: Tensor, part: slice) -> Tensor:
    width = part.stop - part.start
    return buffer[: table.shape[0] * width].view(table.shape[0], width)


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _part(asked: Asked, part: slice) -> Asked:
    return Asked(users=asked.users[part], targets=asked.targets[part], rows=asked.rows[part])


LOSSES = ("softmax", "expected-bce", "sampled-bce")
"""Names of the losses."""


def transition_loss(name: str, train: Dataset, users: IntArray, seed: int) -> TransitionLoss:
    """Return the loss called `name` for rows of the given users, (n,).

    Raises:
        ConfigError: If there is no such loss.
    """
    if name == Softmax.name:
        return Softmax()
    if name == ExpectedBCE.name:
        return ExpectedBCE(train)
    if name == Sampled.name:
        return Sampled(train, users, generator(seed, "influence", "negatives"))
    raise ConfigError(f"unknown loss {name!r} for influence; choose one of {', '.join(LOSSES)}.")
