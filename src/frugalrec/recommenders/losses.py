"""Losses over next items: full softmax, sampled softmax, binary, and distributionally robust.

The plain functions return one value per position and differentiate in both modes; they are what
influence scores use. `catalogue_loss` is the training path for the two losses that need every item:
it computes value and gradient in one pass over blocks of positions, so the ``(positions, n_items)``
logits never exist (the idea of fused linear cross-entropy kernels, here for any hardware), and its
result equals that of the plain function.

Shapes: hidden ``(n, width)``, weight ``(n_items, width)``, targets ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frugalrec.data.dataset import Dataset
from frugalrec.types import IntArray, LongArray

BlockLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes logits (n_items, b) and targets (b,), returns (losses (b,), scale (b,)) and leaves in the
logits the gradient of each loss divided by its scale."""

LossFunction = Callable[[Tensor, Tensor, Tensor, IntArray, np.random.Generator], Tensor]
"""Takes hidden (n, width), item embeddings (n_items, width), targets (n,), the user of each position
(n,) and a generator for negatives; returns the mean loss."""

_NO_OVERFLOW = 60.0  # exp(60) summed over 10^11 items still fits float32


def softmax_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return ``-log softmax(hidden @ weight.T)[target]``, (n,)."""
    logits = hidden @ weight.T
    return torch.logsumexp(logits, dim=1) - logits.gather(1, targets[:, None])[:, 0]


def sampled_softmax_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor, log_expected: Tensor
) -> Tensor:
    """Return the softmax loss with the sum over items estimated from shared `negatives` (s,), (n,).

    A negative's logit is lowered by the log of the count at which it is expected among the negatives,
    `log_expected` (n_items,), so the sum is an unbiased estimate of the full one and the loss tends to
    `softmax_loss` as s grows (Bengio and Senecal, 2008). A negative that is the target is left out.
    """
    # One look-up for both: the gradient of each look-up is as large as the embedding.
    chosen = torch.nn.functional.embedding(torch.cat([targets, negatives]), weight)
    positive = (hidden * chosen[: targets.shape[0]]).sum(dim=1)
    logits = hidden @ chosen[targets.shape[0] :].T - log_expected[negatives]
    logits = logits.masked_fill(negatives[None, :] == targets[:, None], -torch.inf)
    total = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    return total - positive


def binary_loss(hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Return ``-log sigmoid(s[target]) - log sigmoid(-s[negative])``, (n,); negatives (n,)."""
    chosen = torch.nn.functional.embedding(torch.stack([targets, negatives]), weight)
    positive, negative = (hidden * chosen).sum(dim=2)
    softplus = torch.nn.functional.softplus
    return softplus(-positive) + softplus(negative)


def robust_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, log_popularity: Tensor, temperature: float
) -> Tensor:
    r"""Return the KL-robust loss over items, (n,).

    ``temperature * log sum_i p_i exp((sigmoid(s_i) - y_i)^2 / temperature)`` with y_i = 1 for the
    target and 0 else: the closed form of the worst expectation of the squared error over item
    distributions in a KL ball around the popularity p (Yang et al., SIGIR 2023, doi
    10.1145/3539618.3591624).
    """
    error = torch.sigmoid(hidden @ weight.T)
    error = error - torch.nn.functional.one_hot(targets, weight.shape[0]).to(error.dtype)
    return temperature * torch.logsumexp(error.square() / temperature + log_popularity, dim=1)


def softmax_block(safe: bool) -> BlockLoss:
    """Return the block form of `softmax_loss`; `safe` logits (see `bounded`) need no maximum taken off."""

    def block(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = logits.gather(0, targets[None, :])
        if not safe:
            top = logits.amax(dim=0, keepdim=True)
            logits.sub_(top)
            chosen -= top
        total = logits.exp_().sum(dim=0, keepdim=True)
        losses = total.log() - chosen
        logits.scatter_add_(0, targets[None, :], -total)
        return losses[0], total[0].reciprocal()

    return block


def robust_block(main: BlockLoss, log_popularity: Tensor, temperature: float, strength: float) -> BlockLoss:
    """Return the block form of `main` plus `strength` times `robust_loss`."""

    def block(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.sigmoid(logits)
        slope = error * (1 - error) * (2 * strength)
        error.scatter_add_(0, targets[None, :], -error.new_ones(1, targets.shape[0]))
        exponent = (error.square() / temperature).add_(log_popularity[:, None])
        log_total = torch.logsumexp(exponent, dim=0)
        losses, scale = main(logits, targets)
        logits.mul_(scale).add_(slope.mul_(error).mul_(exponent.sub_(log_total).exp_()))
        return losses + strength * temperature * log_total, torch.ones_like(scale)

    return block


def no_loss_block(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return zero losses and gradients: the main part where another loss supplies it."""
    logits.zero_()
    return logits.new_zeros(targets.shape), logits.new_ones(targets.shape)


def catalogue_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    block: BlockLoss | None = None,
    block_size: int = 128,
) -> Tensor:
    """Return the mean loss over positions, with memory for `block_size` columns of logits only.

    Args:
        hidden: States of the positions, (n, width).
        weight: Item embeddings, (n_items, width).
        targets: The next items, (n,).
        block: A block loss; default: the softmax.
        block_size: Positions at once; the fastest of 32 to 512 on CPUs.
    """
    if block is None:
        block = softmax_block(bounded(hidden, weight))
    value: Tensor = _CatalogueLoss.apply(hidden, weight, targets, block, block_size)  # type: ignore[no-untyped-call]
    return value


def bounded(hidden: Tensor, weight: Tensor) -> bool:
    """Say whether no logit can overflow the exponential: |h||w| bounds every product."""
    with torch.no_grad():
        return float(hidden.norm(dim=1).max() * weight.norm(dim=1).max()) < _NO_OVERFLOW


class _CatalogueLoss(torch.autograd.Function):
    """Value and gradients of a catalogue-wide loss in one pass over blocks of positions."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, block: BlockLoss, block_size: int
    ) -> Tensor:
        n = targets.shape[0]
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        losses = hidden.new_empty(n)
        # Logits are kept items by positions: that way round all three products run about 1.5 times
        # faster on CPUs, and the buffer is allocated once.
        buffer = hidden.new_empty(weight.shape[0] * min(block_size, n))
        for start in range(0, n, block_size):
            rows = slice(start, min(start + block_size, n))
            states = hidden[rows]
            width = states.shape[0]
            logits = buffer[: weight.shape[0] * width].view(weight.shape[0], width)
            torch.mm(weight, states.T, out=logits)
            losses[rows], scale = block(logits, targets[rows])
            scale = (scale / n)[:, None]
            to_hidden[rows] = torch.mm(weight.T, logits).T * scale
            to_weight.addmm_(logits, states * scale)
        ctx.save_for_backward(to_hidden, to_weight)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * grads[0], to_weight * grads[0], None, None, None


def sampled_training_loss(train: Dataset, n_negatives: int) -> LossFunction:
    """Return the sampled softmax with shared negatives drawn by training count + 1."""
    share = (train.item_counts + 1.0) / (train.n + train.n_items)
    cumulative = np.cumsum(share)
    log_expected = torch.from_numpy(np.log(share * n_negatives)).float()

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, users: IntArray, rng: np.random.Generator
    ) -> Tensor:
        drawn = np.searchsorted(cumulative, rng.random(n_negatives) * cumulative[-1], side="right")
        negatives = torch.from_numpy(drawn)
        return sampled_softmax_loss(hidden, weight, targets, negatives, log_expected).mean()

    return loss


def binary_training_loss(train: Dataset) -> LossFunction:
    """Return the binary loss with one uniform negative a position, outside the user's history."""
    keys = np.unique(train.rows.astype(np.int64) * train.n_items + train.items)

    def loss(
        hidden: Tensor, weight: Tensor, targets: Tensor, users: IntArray, rng: np.random.Generator
    ) -> Tensor:
        negatives = torch.from_numpy(uniform_negatives(users, keys, train.n_items, rng))
        return binary_loss(hidden, weight, targets, negatives).mean()

    return loss


def uniform_negatives(
    users: IntArray, keys: LongArray, n_items: int, rng: np.random.Generator, rounds: int = 100
) -> LongArray:
    """Return one uniform item per entry of `users` that the user has not seen, (n,).

    Args:
        users: User codes.
        keys: Sorted ``user * n_items + item`` of all interactions.
        n_items: Size of the catalogue.
        rng: The stream.
        rounds: Redraws at most; a user who has seen everything gets a seen item.
    """
    drawn = rng.integers(n_items, size=users.size)
    base = users.astype(np.int64) * n_items
    pending = np.arange(users.size)
    for _ in range(rounds):
        wanted = base[pending] + drawn[pending]
        place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
        pending = pending[keys[place] == wanted]
        if pending.size == 0:
            break
        drawn[pending] = rng.integers(n_items, size=pending.size)
    return drawn
