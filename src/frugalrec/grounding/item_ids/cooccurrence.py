"""Collaborative item ids: items that the same people choose share the beginning of their ids.

The graph of items that users have together is split by spectral clustering (Ng, Jordan and Weiss, NIPS
2001), each part again, until a part is small; an id is the way through the parts and a number in the last
one. After the collaborative indexing of Hua et al. (SIGIR-AP 2023), with parts of nearly equal size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import TRAIN
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.item_ids.assembly import LETTERS, assembled, working_order
from frugalrec.grounding.item_ids.base import ItemIds
from frugalrec.grounding.item_ids.grouping import kmeans
from frugalrec.recommenders.graphs import co_interactions
from frugalrec.recommenders.spectral import leading_eigenpairs
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, LongArray

DENSE = 512
"""Graphs of at most this many items are decomposed exactly."""
ROUNDS = 30
"""Steps of block power iteration on larger ones."""


def collaborative(train: Dataset, *, branches: int = 32, leaf: int = 32, seed: int = 0) -> ItemIds:
    """Return ids from co-occurrence in training.

    Items that nobody has with another say nothing; they take the room that is left in each part.

    Args:
        train: The training fold, never the whole data set.
        branches: Parts that a part is split into.
        leaf: A part of at most this many items is not split.
        seed: Seed of the clustering and of the numbers in the last part.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the data hold validation or test interactions, as published folds say.
    """
    if branches < 2 or leaf < 1:
        raise ConfigError(f"branches={branches} must be at least 2 and leaf={leaf} at least 1.")
    if train.folds is not None and (train.folds != TRAIN).any():
        held_out = int((train.folds != TRAIN).sum())
        raise DataError(
            f"{train.name} holds {held_out:,} held-out interactions; give the train fold of a split."
        )
    order = working_order(train.item_ids, "collaborative", seed)
    graph = sp.csr_array(co_interactions(train)[order][:, order])
    graph.sort_indices()  # sums must not depend on the items' codes
    levels = _tree(graph, branches, leaf, seed)
    evidence: dict[str, Any] = {"branches": branches, "leaf": leaf, **_together(graph, levels[:, 0])}
    return assembled(
        "collaborative", levels, item_ids=train.item_ids, order=order, seed=seed, evidence=evidence
    )


def _tree(graph: sp.csr_array, branches: int, leaf: int, seed: int) -> LongArray:
    """Return the part of each item at each level, (n_items, n_levels), padded with -1."""
    n = graph.shape[0]
    levels = np.full((n, len(LETTERS)), -1, dtype=np.int64)
    open_parts: list[tuple[LongArray, tuple[int, ...]]] = [(np.arange(n), ())]
    while open_parts:
        members, path = open_parts.pop()
        if members.size <= leaf and path:
            continue
        k = min(branches, members.size)
        rng = generator(seed, "item-ids", "collaborative", *path)
        vectors = spectral_vectors(sp.csr_array(graph[members][:, members]), k, rng)
        labels = kmeans(vectors, k, rng, room=-(-members.size // k)).labels
        levels[members, len(path)] = labels
        open_parts += [(members[labels == part], (*path, part)) for part in range(k)]
    return levels[:, : int((levels >= 0).sum(axis=1).max())]


def spectral_vectors(graph: sp.csr_array, k: int, rng: np.random.Generator) -> DoubleArray:
    """Return one vector of length one a node, (n, k), near for nodes well connected; zero for isolated ones.

    Args:
        graph: Edge weights, symmetric, none negative.
        k: Leading eigenvectors of the graph divided by the square roots of its degrees.
        rng: Draws the start of the iteration on large graphs.
    """
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    scale = sp.diags_array(1 / np.sqrt(np.maximum(degrees, 1e-12)))
    # Halved and shifted, all eigenvalues lie in 0..1, so that the largest are also the largest in size.
    shifted = sp.csr_array((scale @ graph @ scale + sp.eye_array(graph.shape[0])) / 2)
    if graph.shape[0] <= DENSE:
        _, vectors = np.linalg.eigh(shifted.toarray())
        vectors = vectors[:, ::-1][:, :k]
    else:
        _, vectors = leading_eigenpairs(shifted, k, rng, iterations=ROUNDS)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: DoubleArray = np.where((lengths > 1e-9) & (degrees > 0)[:, None], vectors, 0.0)
    return found / np.where(lengths > 1e-9, lengths, 1.0)


def _together(graph: sp.csr_array, parts: LongArray) -> dict[str, float]:
    """Return the share of co-occurrences inside first parts, and what parts of these sizes have by chance."""
    pairs = sp.coo_array(graph)
    rows, columns = pairs.coords
    inside = float(pairs.data[parts[rows] == parts[columns]].sum() / max(pairs.data.sum(), 1))
    shares = np.bincount(parts) / parts.size
    return {"together": round(inside, 6), "together_by_chance": round(float((shares**2).sum()), 6)}
