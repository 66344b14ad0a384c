"""Losses of single transitions: the softmax over the catalogue, and the published binary loss.

All are deterministic but for `Sampled`. What they share is in `catalogue_losses`; shapes as there.
"""

from __future__ import annotations

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
from frugalrec.selection.catalogue_losses import (
    Asked,
    CatalogueLoss,
    Fixes,
    PairLogits,
    Slopes,
    TransitionLoss,
)
from frugalrec.types import IntArray


class Softmax(CatalogueLoss):
    """``-log softmax(scores)[target]`` over the whole catalogue: what the surrogates train on."""

    name: ClassVar[str] = "softmax"

    def values(self, states: Tensor, table: Tensor, asked: Asked) -> Tensor:
        """Return the losses, (b,)."""
        return losses.softmax_loss(states, table, asked.targets)

    def weigh(self, logits: Tensor, top: Tensor | None) -> Tensor:
        """Take the exponential."""
        return (logits if top is None else logits.sub_(top)).exp_()

    def settle(self, totals: Tensor, logits_of: PairLogits, asked: Asked) -> tuple[Tensor, Fixes]:
        """Divide by the sum; the target's share is one too high."""
        samples = torch.arange(totals.shape[0])
        return totals.reciprocal(), (samples, asked.targets, -torch.ones_like(totals))

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

    def weigh(self, logits: Tensor, top: Tensor | None) -> Tensor:
        """Take the sigmoid."""
        return logits.sigmoid_()

    def settle(self, totals: Tensor, logits_of: PairLogits, asked: Asked) -> tuple[Tensor, Fixes]:
        """Divide by the number of negatives; take off what is none, and the target's sigmoid minus one."""
        columns, items = self._known(asked)
        known = torch.bincount(columns, minlength=totals.shape[0])
        scale = (self.n_items - known).clamp(min=1).to(totals.dtype).reciprocal()
        samples = torch.arange(totals.shape[0])
        surplus = torch.sigmoid(logits_of(columns, items)) * -scale[columns]
        missing = -torch.sigmoid(-logits_of(samples, asked.targets))
        pairs = torch.cat([columns, samples]), torch.cat([items, asked.targets])
        return scale, (*pairs, torch.cat([surplus, missing]))

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

    def slopes(self, table: Tensor, d_table: Tensor | None) -> Slopes:
        """Return a function that gives slopes."""

        def found(states: Tensor, d_states: Tensor, asked: Asked) -> Tensor:
            items, pulls = self._pulls(states, table, asked)
            moves = (table[items] * d_states).sum(dim=2)
            if d_table is not None:
                moves = moves + (d_table[items] * states).sum(dim=2)
            return (moves * pulls).sum(dim=0)

        return found

    def _negatives(self, asked: Asked) -> Tensor:
        return torch.from_numpy(self.negatives[asked.rows])

    def _pulls(self, states: Tensor, table: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Return target and negative, (2, b), and the gradient of the loss by their scores, (2, b)."""
        items = torch.stack([asked.targets, self._negatives(asked)])
        logits = (table[items] * states).sum(dim=2)
        return items, torch.stack([-torch.sigmoid(-logits[0]), torch.sigmoid(logits[1])])


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
