"""Nearest vectors: exact distances to a whole catalogue, or a FAISS index of the nearest ones.

Exact search is one matrix product: 17,000 titles of width 576 take 9.8 million multiplications a query.
Its cost grows with the catalogue; an approximate index (HNSW, Malkov and Yashunin, arXiv 1603.09320) is
there for catalogues where that is too slow.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from frugalrec.errors import ConfigError, DataError, require
from frugalrec.types import FloatArray, LongArray

Metric = Literal["l2", "cosine"]


def prepared(vectors: FloatArray, metric: Metric) -> FloatArray:
    """Return vectors (n, width) as float32, of length one for cosine; a vector of zeros stays.

    Raises:
        ConfigError: If the metric is unknown.
        DataError: If a vector holds numbers that are not finite.
    """
    if metric not in get_args(Metric):
        raise ConfigError(f"the metric must be one of {', '.join(get_args(Metric))}, not {metric!r}.")
    found = np.array(vectors, dtype=np.float32)
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        raise DataError(f"vector {int(broken.argmax())} holds numbers that are not finite; embed in float32.")
    if metric == "cosine":
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.where(lengths > 0, lengths, 1.0)
    return found


def all_distances(queries: FloatArray, catalogue: FloatArray) -> FloatArray:
    """Return Euclidean distances, (n_queries, n_vectors) float32.

    Language-model vectors share a large mean. It is taken off first: distances stay, and the
    differences of large squares that would swallow them become small.
    """
    mean = catalogue.mean(axis=0, dtype=np.float64).astype(np.float32)
    left, right = queries - mean, catalogue - mean
    squares = np.einsum("nw,nw->n", right, right)
    found: FloatArray = np.einsum("nw,nw->n", left, left)[:, None] + squares - 2.0 * (left @ right.T)
    return np.sqrt(np.maximum(found, 0.0, out=found), out=found)


class ApproximateIndex:
    """A FAISS HNSW graph over vectors (n, width); needs the extra `ann`."""

    def __init__(self, vectors: FloatArray, *, links: int = 32, effort: int = 128) -> None:
        faiss = require("faiss", "ann")
        self.size = len(vectors)
        self._effort = effort
        self._parameters = faiss.SearchParametersHNSW
        self._index: Any = faiss.IndexHNSWFlat(vectors.shape[1], links)
        self._index.hnsw.efConstruction = max(effort, 2 * links)
        self._index.add(np.ascontiguousarray(vectors))

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, LongArray]:
        """Return the n nearest vectors of each query, nearest first: distances and numbers, (n_queries, n).

        Numbers are -1, at distance +inf, where the graph has found fewer.
        """
        parameters = self._parameters(efSearch=max(self._effort, 2 * n))
        squares, numbers = self._index.search(np.ascontiguousarray(queries), n, params=parameters)
        found = np.sqrt(np.maximum(squares, 0.0))
        found[numbers < 0] = np.inf
        return found.astype(np.float32), numbers.astype(np.int64)
