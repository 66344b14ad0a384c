"""What teachers say of the next item, position by position: a few items with their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.batching import Windows, grouped_positions, position_states
from frugalrec.recommenders.losses import BlockLoss
from frugalrec.recommenders.sequential import SequentialRecommender
from frugalrec.types import FloatArray, IntArray, Ranking

BLOCK = 512
"""Positions whose scores of all items are in memory at once."""
WINDOWS = 64
"""Windows whose states are."""


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """The items that a teacher finds likeliest at each training position."""

    items: IntArray
    """Item codes, (n_positions, k)."""
    probabilities: FloatArray
    """Their probabilities, (n_positions, k); a row sums to 1."""

    def __post_init__(self) -> None:
        """Check shapes and sums.

        Raises:
            DataError: If items and probabilities are not of one shape, or a row is no distribution.
        """
        if self.items.shape != self.probabilities.shape or self.items.ndim != 2:
            raise DataError(
                f"soft targets need items and probabilities of one shape (n_positions, k), "
                f"not {self.items.shape} and {self.probabilities.shape}."
            )
        sums = self.probabilities.sum(axis=1)
        wrong = np.flatnonzero(~(np.abs(sums - 1) < 1e-3) | (self.probabilities < 0).any(axis=1))
        if wrong.size:
            raise DataError(
                f"soft targets of position {wrong[0]} are no distribution (sum {sums[wrong[0]]:.4f})."
            )

    @classmethod
    def of_ranking(cls, ranking: Ranking, temperature: float = 1.0) -> SoftTargets:
        """Return a list's scores as probabilities: of beams, of candidates, of any recommender's best.

        Args:
            ranking: One list a training row; empty places (-1) get nothing.
            temperature: What scores are divided by before the softmax.

        Raises:
            DataError: If a list is empty.
        """
        known = ranking.items >= 0
        if not known.any(axis=1).all():
            row = int(np.argmin(known.any(axis=1)))
            raise DataError(f"list {row} is empty, so it teaches nothing; leave its row out.")
        scores = np.where(known, ranking.scores / temperature, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        items = np.where(known, ranking.items, 0)
        return cls(items=items, probabilities=shares.astype(np.float32))


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, soft: SoftTargets, rows: Sequence[int], weight: float
) -> Tensor:
    """Return ``(1 - w) (-log softmax(s)_y) + w (-sum_i q_i log softmax(s)_i)`` of some rows, (b,).

    Args:
        logits: Scores of all items, (b, n_items).
        targets: The item that came next, (b,).
        soft: The teacher's targets of all rows.
        rows: The rows' numbers.
        weight: w, the teacher's share, from 0 to 1.
    """
    logs = torch.log_softmax(logits, dim=1)
    items = torch.from_numpy(soft.items[list(rows)].astype(np.int64)).to(logs.device)
    shares = torch.from_numpy(soft.probabilities[list(rows)]).to(logs.device)
    own = logs.gather(1, targets.to(logs.device)[:, None])[:, 0]
    return -(1 - weight) * own - weight * (shares * logs.gather(1, items)).sum(dim=1)


def teach(
    teachers: Sequence[SequentialRecommender],
    windows: Windows,
    *,
    k: int = 64,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> SoftTargets:
    """Return the mean of the teachers' next-item distributions at each training position, cut to k items.

    Args:
        teachers: Fitted sequence models of one catalogue; their probabilities are averaged.
        windows: The training windows of the student.
        k: Items kept; their probabilities are scaled to sum to 1.
        temperature: What scores are divided by before the softmax; above 1 evens out.
        progress: Is told of (windows done, windows in all).

    Raises:
        ConfigError: If there is no teacher, or an option is out of range.
    """
    if not teachers or k < 1 or temperature <= 0:
        raise ConfigError(
            f"soft targets need a teacher, k >= 1 and a temperature above 0, not {len(teachers)} teachers, "
            f"k={k} and {temperature}."
        )
    n = int(windows.indptr[-1])
    n_items = int(teachers[0].network_.items.weight.shape[0])
    k = min(k, n_items)
    items, kept = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32)
    for start in range(0, len(windows), WINDOWS):
        rows = np.arange(start, min(start + WINDOWS, len(windows)))
        _, _, positions = grouped_positions(windows, rows)
        with torch.no_grad():
            networks = [teacher.network_.eval() for teacher in teachers]
            states = [position_states(network, windows, rows)[0] for network in networks]
            weights = [network.items.weight for network in networks]
            for part in range(0, positions.size, BLOCK):
                mean = torch.zeros(min(BLOCK, positions.size - part), n_items)
                for state, weight in zip(states, weights, strict=True):
                    mean += torch.softmax(state[part : part + BLOCK] @ weight.T / temperature, dim=1)
                best = mean.topk(k, dim=1)
                at = positions[part : part + BLOCK]
                items[at] = best.indices.numpy()
                kept[at] = (best.values / best.values.sum(dim=1, keepdim=True)).numpy()
        if progress is not None:
            progress(int(rows[-1]) + 1, len(windows))
    return SoftTargets(items=items, probabilities=kept)


def distillation_block(
    soft: SoftTargets, hard: Tensor, weight: float, temperature: float, *, safe: bool
) -> BlockLoss:
    r"""Return the block form of cross-entropy against the truth and against a teacher.

    With s the scores, y the item that came next and q the teacher's distribution, the loss of a position is
    ``(1 - w) (-log softmax(s)_y) + w T^2 (-sum_i q_i log softmax(s / T)_i)``; its gradient in s is that of
    Hinton et al. (2015, arXiv 1503.02531), whose T^2 keeps both parts of one size. `catalogue_loss` gives
    the *numbers of positions* where other losses get targets.

    Args:
        soft: The teacher's targets of all positions.
        hard: The next item of all positions, (n_positions,).
        weight: w, from 0 to 1.
        temperature: T, the one that the teacher's scores were divided by.
        safe: Whether no exponential can overflow, of scores and of scores over T; see `losses.bounded`.
    """
    of_items = torch.from_numpy(soft.items.astype(np.int64))
    shares = torch.from_numpy(soft.probabilities)

    def block(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        truth = hard[positions][None, :]
        items, said = of_items[positions].T, shares[positions].T  # (k, b)
        chosen, listed = logits.gather(0, truth)[0], logits.gather(0, items)
        if not safe:
            top = logits.amax(dim=0, keepdim=True)
            logits.sub_(top)
            chosen, listed = chosen - top[0], listed - top
        if temperature == 1.0:
            total = logits.exp_().sum(dim=0, keepdim=True)
            losses = total.log()[0] - (1 - weight) * chosen - weight * (said * listed).sum(dim=0)
            logits.div_(total)
            logits.scatter_add_(0, truth, torch.full_like(truth, -(1 - weight), dtype=logits.dtype))
            logits.scatter_add_(0, items, -weight * said)
            return losses, torch.ones_like(chosen)
        cooled = torch.exp(logits / temperature)
        total, cool = logits.exp_().sum(dim=0, keepdim=True), cooled.sum(dim=0, keepdim=True)
        losses = (1 - weight) * (total.log()[0] - chosen) + weight * temperature**2 * (
            cool.log()[0] - (said * listed).sum(dim=0) / temperature
        )
        logits.mul_((1 - weight) / total).add_(cooled.mul_(weight * temperature / cool))
        logits.scatter_add_(0, truth, torch.full_like(truth, -(1 - weight), dtype=logits.dtype))
        logits.scatter_add_(0, items, -weight * temperature * said)
        return losses, torch.ones_like(chosen)

    return block
