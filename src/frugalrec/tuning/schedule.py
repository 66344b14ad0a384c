"""The order of training rows and the learning rate: both are settled before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from frugalrec.rng import generator


@dataclass(frozen=True, kw_only=True)
class Course:
    """The batches of all epochs, in their final order, and how steps are taken with them."""

    order: Sequence[Sequence[int]]
    """Numbers of the items of each batch."""
    ends: Sequence[int]
    """Steps after which an epoch is over, rising; the last is the number of batches."""
    learning_rate: float
    """Peak rate of AdamW."""
    constant: bool = False
    """Take the peak rate in every step; default: see `rate`."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Longest gradient; longer ones are shortened to it. 0 for no limit."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; default: never."""
    patience_resets: bool = True
    """Count such epochs anew after each better one; off, all of them count together."""

    def exhausted(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the epochs judged so far, each with its `loss`, leave no patience.

        >>> course = Course(order=[], ends=[], learning_rate=1e-3, patience=2)
        >>> course.exhausted([{"loss": loss} for loss in (3, 4, 2, 3)])
        False
        """
        losses = [entry["loss"] for entry in history]
        better = [n for n, loss in enumerate(losses) if n == 0 or loss < min(losses[:n])]
        if self.patience is None or not losses:
            return False
        idle = len(losses) - 1 - better[-1] if self.patience_resets else len(losses) - len(better)
        return idle >= self.patience


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak: a tenth rises, the rest falls to 0.

    >>> [round(rate(step, 20), 2) for step in (0, 1, 2, 11, 19)]
    [0.33, 0.67, 1.0, 0.5, 0.06]
    """
    warm = steps // 10
    return min((step + 1) / (warm + 1), (steps - step) / (steps - warm))


def batches(lengths: Sequence[int], size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs: seeded order, items of similar length together.

    Args:
        lengths: Tokens of each item.
        size: Items in a batch; the last of an epoch may be smaller.
        epochs: Passes over the items.
        seed: Seed of the order; each epoch has its own.
    """
    order: list[list[int]] = []
    for epoch in range(epochs):
        rng = generator(seed, "tuning", "order", epoch)
        shuffled = rng.permutation(len(lengths))
        # Sorting inside pools of eight batches saves most padding and keeps the order random enough.
        pools = [shuffled[i : i + 8 * size] for i in range(0, shuffled.size, 8 * size)]
        similar = np.concatenate([sorted(pool, key=lambda i: -lengths[i]) for pool in pools])
        cut = [similar[i : i + size].tolist() for i in range(0, similar.size, size)]
        order += [cut[i] for i in rng.permutation(len(cut))]
    return order


def shares(batch: Sequence[int], weights: Sequence[float], parts: int) -> list[tuple[list[int], float]]:
    """Split a batch into so many parts, each with the factor that makes the mean of means exact.

    A step then stays the same, whether one process computes it at once, in several passes, or several
    processes do. A part that would be empty repeats the first item at the factor 0.

    >>> shares([4, 7, 9], [1.0] * 10, 2)
    [([4, 7], 1.3333333333333333), ([9], 0.6666666666666666)]

    Args:
        batch: Numbers of the items, sorted by length, so that a part is padded little.
        weights: How much each item counts.
        parts: Passes over all processes.
    """
    total = sum(weights[item] for item in batch)
    found = []
    for piece in np.array_split(np.array(batch), parts):
        items = piece.tolist()
        weight = sum(weights[item] for item in items)
        found.append((items or [batch[0]], weight * parts / total if total else 0.0))
    return found
