"""Semantic item ids: items with similar texts share the beginning of their ids.

Text vectors are quantised level by level, by residual k-means or by a trained residual autoencoder (TIGER,
Rajput et al., NeurIPS 2023); items that share all levels get one more symbol.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError, require
from frugalrec.grounding.item_ids.assembly import LETTERS, assembled, working_order
from frugalrec.grounding.item_ids.base import ItemIds
from frugalrec.grounding.item_ids.residuals import Quantised, residual_kmeans
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, LongArray


def semantic(
    vectors: NDArray[Any], item_ids: NDArray[np.str_], *, levels: int = 3, size: int = 256, seed: int = 0
) -> ItemIds:
    """Return ids from residual k-means on text vectors.

    Args:
        vectors: Text vector of each item code, (n_items, d), of the item's text alone: a text that names
            the item's number, or was written from interactions, takes what it knows into the id.
        item_ids: External id of each item code, (n_items,).
        levels: Symbols of an id, before the one that tells equal items apart.
        size: Symbols of a level.
        seed: Seed.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If vectors are not finite, or not one for each item.
    """
    points, order = _prepared(vectors, item_ids, "semantic", levels, size, seed)
    found, _ = residual_kmeans(points, levels, size, generator(seed, "item-ids", "semantic", "centres"))
    return _named("semantic", found, item_ids, order, seed, {"levels": levels, "size": size})


def semantic_rqvae(
    vectors: NDArray[Any],
    item_ids: NDArray[np.str_],
    *,
    levels: int = 3,
    size: int = 256,
    width: int = 32,
    epochs: int = 100,
    seed: int = 0,
) -> ItemIds:
    """Return ids from a residual-quantised autoencoder of text vectors, trained here on the CPU.

    Args:
        vectors: As in `semantic`.
        item_ids: External id of each item code, (n_items,).
        levels: Symbols of an id, before the one that tells equal items apart.
        size: Symbols of a level.
        width: Width of the quantised space.
        epochs: Passes over the items.
        seed: Seed.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If vectors are not finite, or not one for each item.
        MissingExtraError: If torch is not installed.
    """
    require("torch", "llm")
    from frugalrec.grounding.item_ids.rqvae import quantised

    if width < 1 or epochs < 0:
        raise ConfigError(f"width={width} must be at least 1 and epochs={epochs} not negative.")
    points, order = _prepared(vectors, item_ids, "semantic-rqvae", levels, size, seed)
    found = quantised(points, levels=levels, size=size, width=width, epochs=epochs, seed=seed)
    options = {"levels": levels, "size": size, "width": width, "epochs": epochs}
    return _named("semantic-rqvae", found, item_ids, order, seed, options)


def _prepared(
    vectors: NDArray[Any], item_ids: NDArray[np.str_], kind: str, levels: int, size: int, seed: int
) -> tuple[DoubleArray, LongArray]:
    if not 1 <= levels < len(LETTERS) or size < 2:
        raise ConfigError(f"levels={levels} must lie in 1..{len(LETTERS) - 1} and size={size} be 2 or more.")
    points = np.asarray(vectors, dtype=np.float64)
    if points.ndim != 2 or points.shape[0] != len(item_ids) or not points.shape[1]:
        raise DataError(f"{len(item_ids)} items need vectors ({len(item_ids)}, d), not {points.shape}.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise DataError(f"the vector of item {bad[0]} holds NaN or an infinite number; {bad.size} items do.")
    order = working_order(item_ids, kind, seed)
    return points[order], order


def _named(
    kind: str,
    found: Quantised,
    item_ids: NDArray[np.str_],
    order: LongArray,
    seed: int,
    options: dict[str, Any],
) -> ItemIds:
    evidence = {**options, "unexplained": [round(share, 6) for share in found.unexplained]}
    return assembled(kind, found.codes, item_ids=item_ids, order=order, seed=seed, evidence=evidence)
