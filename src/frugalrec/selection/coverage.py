"""Stratified choice over the range of scores: high ones, and everything else a little.

Coverage-centric selection (Zheng et al., ICLR 2023, arXiv 2210.15809), as DEALRec uses it (Algorithm 2
of arXiv 2401.17197): groups of scores get equal shares of the budget, smallest group first; what a small
group cannot use goes to the larger ones. With groups of equal width, a skewed score makes small groups
at its tails, which are then taken whole; groups of equal size (`quantile`) do not have that bias.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from frugalrec.errors import ConfigError, DataError
from frugalrec.rng import generator
from frugalrec.selection.base import parse_budget
from frugalrec.selection.combination import checked
from frugalrec.types import DoubleArray, FloatArray, LongArray

Bins = Literal["quantile", "width"]


def stratified(
    scores: FloatArray | DoubleArray,
    budget: int | float | str,
    *,
    groups: int = 50,
    bins: Bins = "quantile",
    prune_top: float = 0.0,
    prune_bottom: float = 0.0,
    seed: int = 0,
) -> LongArray:
    """Return the kept rows, ascending: exactly as many as the budget says.

    Args:
        scores: One score per row, (n,); rows with NaN are never kept.
        budget: As in `parse_budget`, of all n rows.
        groups: Groups of scores; empty ones (equal widths) get nothing.
        bins: Groups of equal size (`quantile`) or of equal score range (`width`).
        prune_top: Share of the highest scores that is left out first (the published code: 0.1).
        prune_bottom: Share of the lowest scores that is left out first.
        seed: Seed of the draw inside groups, and of ties between groups and at the pruned ends.

    Raises:
        ConfigError: If an option is out of range, or the budget or the groups exceed the rows left.
        DataError: If scores are infinite, all undefined, or all equal.
    """
    values = np.asarray(scores, dtype=np.float64)
    defined = np.flatnonzero(checked(values))
    rng = generator(seed, "selection", "stratified")
    shuffled = rng.permutation(defined)  # equal scores are told apart by chance, not by row number
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    if values[order[0]] == values[order[-1]]:
        raise DataError(
            f"all {order.size} scores are {values[order[0]]:g}, so they make no groups; choose at random."
        )
    low, high = _pruned(order.size, prune_bottom, prune_top)
    left = order[low : order.size - high]
    if bins not in get_args(Bins):
        raise ConfigError(f"unknown bins {bins!r}; choose {' or '.join(get_args(Bins))}.")
    if not isinstance(groups, int) or not 1 <= groups <= left.size:
        raise ConfigError(
            f"groups={groups!r} must be a whole number in 1..{left.size}, the rows with a score."
        )
    size = parse_budget(budget, values.size)
    if size > left.size:
        raise ConfigError(
            f"the budget of {size} rows exceeds the {left.size} rows that have a score and are not pruned "
            f"(of {values.size}); lower the budget or the pruned shares."
        )
    return np.sort(_draw(_groups(values, left, groups, bins), size, rng))


def _pruned(n: int, bottom: float, top: float) -> tuple[int, int]:
    if not (0 <= bottom and 0 <= top and bottom + top < 1):
        raise ConfigError(
            f"prune_bottom={bottom} and prune_top={top} must be at least 0 and below 1 together."
        )
    return int(bottom * n), int(top * n)


def _groups(values: DoubleArray, ascending: LongArray, groups: int, bins: Bins) -> list[LongArray]:
    if bins == "quantile":
        return list(np.array_split(ascending, groups))
    known = values[ascending]
    edges = np.linspace(known[0], known[-1], groups + 1)
    number = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, groups - 1)
    return np.split(ascending, np.flatnonzero(np.diff(number)) + 1)


def _draw(parts: list[LongArray], size: int, rng: np.random.Generator) -> LongArray:
    # Groups of one size in random order: the last ones get what rounding left.
    order = rng.permutation(len(parts))
    order = order[np.argsort([parts[number].size for number in order], kind="stable")]
    kept: list[LongArray] = []
    for place, number in enumerate(order):
        share = size // (len(order) - place)
        taken = rng.permutation(parts[number])[:share]
        kept.append(taken)
        size -= taken.size
    return np.concatenate(kept)
