"""The order of training rows and the learning rate: both are settled before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frugalrec.rng import generator


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
