"""Item graphs of a data set, and light graph convolution over them as lists of neighbours.

A light convolution (He et al., SIGIR 2020) has no weights of its own: a layer replaces every embedding
by a weighted sum of its neighbours', and the result is the mean over layers, the untouched embedding
included. All of that is linear, so any number of layers is one matrix, computed once; of each of its
rows the largest entries are kept, and a batch pays for the items it holds only.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from frugalrec.data.dataset import Dataset
from frugalrec.types import DoubleArray, LongArray


def transitions(dataset: Dataset) -> sp.csr_array:
    """Return how often an item (column) directly followed another (row), (n_items, n_items)."""
    next_to = (dataset.rows[:-1] == dataset.rows[1:]) & (dataset.items[:-1] != dataset.items[1:])
    pairs = (dataset.items[:-1][next_to], dataset.items[1:][next_to])
    shape = (dataset.n_items, dataset.n_items)
    return sp.csr_array((np.ones(pairs[0].size), pairs), shape=shape)


def co_interactions(dataset: Dataset) -> sp.csr_array:
    """Return how many users have both of two different items, (n_items, n_items), symmetric."""
    users = dataset.matrix()
    known = sp.csr_array((np.ones(users.indices.size), users.indices, users.indptr), shape=users.shape)
    pairs = sp.coo_array(known.T @ known)
    rows, columns = pairs.coords
    apart = rows != columns
    return sp.csr_array((pairs.data[apart], (rows[apart], columns[apart])), shape=pairs.shape)


def convolution(
    counts: sp.csr_array, layers: int, neighbours: int, *, block_size: int = 2048
) -> tuple[LongArray, DoubleArray]:
    """Return the light convolution over a graph as (links, strengths), both (n_items, neighbours).

    The convolved embedding of item i is ``strengths[i] @ embeddings[links[i]]``. Where an item has
    fewer neighbours, strengths are zero and links mean nothing.

    Args:
        counts: Edge weights; an edge is divided by the square roots of the sums at its two ends.
        layers: Steps from an item that its neighbours may be away.
        neighbours: Largest entries kept of each row, of the graph and of the result.
        block_size: Rows convolved at once.
    """
    n_items = counts.shape[0]
    leaving, arriving = (np.asarray(counts.sum(axis=axis)).ravel() for axis in (1, 0))
    rows, columns = sp.coo_array(counts).coords
    scaled = sp.coo_array(counts).data / np.sqrt(leaving[rows] * arriving[columns])
    links, strengths = strongest(sp.csr_array((scaled, (rows, columns)), shape=counts.shape), neighbours)
    edges = matrix(links, strengths)
    parts = []
    for start in range(0, n_items, block_size):
        power = total = sp.csr_array(sp.eye_array(n_items, format="csr")[start : start + block_size])
        for _ in range(layers):
            power = power @ edges
            total = total + power
        parts.append(strongest(sp.csr_array(total / (layers + 1)), neighbours))
    return np.concatenate([one[0] for one in parts]), np.concatenate([one[1] for one in parts])


def strongest(weights: sp.csr_array, width: int) -> tuple[LongArray, DoubleArray]:
    """Return (columns, values) of each row's `width` largest entries, ties by column, padded with zeros."""
    rows, columns = sp.coo_array(weights).coords
    values = sp.coo_array(weights).data
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    counts = np.bincount(rows, minlength=weights.shape[0])
    place = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < width
    links = np.zeros((weights.shape[0], width), dtype=np.int64)
    strengths = np.zeros((weights.shape[0], width))
    links[rows[kept], place[kept]] = columns[kept]
    strengths[rows[kept], place[kept]] = values[kept]
    return links, strengths


def matrix(links: LongArray, strengths: DoubleArray) -> sp.csr_array:
    """Return lists of neighbours as a matrix, (n_items, n_items)."""
    n_items, width = links.shape
    owner = np.repeat(np.arange(n_items), width)
    return sp.csr_array((strengths.ravel(), (owner, links.ravel())), shape=(n_items, n_items))


def overlap(first: sp.csr_array, second: sp.csr_array) -> DoubleArray:
    """Return the cosine between the rows of two matrices, (n,); 0 where one is empty."""
    product, one, two = (
        np.asarray(left.multiply(right).sum(axis=1), dtype=np.float64).ravel()
        for left, right in ((first, second), (first, first), (second, second))
    )
    cosine: DoubleArray = product / np.sqrt(np.maximum(one * two, 1e-24))
    return cosine
