"""Residual k-means: vectors as sums of centres, each level quantising what the levels before left over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frugalrec.grounding.item_ids.grouping import kmeans
from frugalrec.types import DoubleArray, LongArray


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Vectors as codes."""

    codes: LongArray
    """Centre of each vector at each level, (n, n_levels)."""
    unexplained: tuple[float, ...]
    """Share of the squared distances from the mean that is left after each level."""


def residual_kmeans(
    vectors: DoubleArray, levels: int, size: int, rng: np.random.Generator, *, iterations: int = 25
) -> tuple[Quantised, list[DoubleArray]]:
    """Quantise vectors, (n, d), at some levels of at most `size` centres; return codes and centres."""
    left, first = vectors, first_alike(vectors)
    total = float(np.square(vectors - vectors.mean(axis=0)).sum())
    codes, centres, unexplained = [], [], []
    for _ in range(levels):
        groups = kmeans(left, min(size, left.shape[0]), rng, iterations=iterations)
        labels = groups.labels[first]
        left = left - groups.centres[labels]
        codes.append(labels)
        centres.append(groups.centres)
        unexplained.append(float(np.square(left).sum()) / total if total else 0.0)
    return Quantised(codes=np.stack(codes, axis=1), unexplained=tuple(unexplained)), centres


def first_alike(vectors: DoubleArray) -> LongArray:
    """Return, for each row, the first row equal to it, (n,).

    Rounding in matrix products depends on where a row stands, so that equal rows between two centres may
    fall to either side; each takes what the first of them got.
    """
    _, first, inverse = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    found: LongArray = first[inverse.reshape(-1)]
    return found
