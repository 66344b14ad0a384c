"""Item-to-item models: nearest neighbours by cosine, and EASE, its closed-form linear relative."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lapack

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.base import Recommender, history_matrix, top_k
from frugalrec.types import FloatArray, IntArray

BLOCK = 512
"""Items whose similarities are dense at the same time."""


class ItemKNN(Recommender):
    """Every item of a history votes for its nearest neighbours, with their similarity as weight.

    The similarity is the cosine of the items' binary user vectors, damped for rare items:
    ``co / (sqrt(n_i * n_j) + shrink)``. Equal similarities at the edge of the neighbourhood are cut
    in order of item code.
    """

    name: ClassVar[str] = "item-knn"
    similarity_: sp.csr_array[Any, tuple[int, int]]
    """Row i holds the k nearest neighbours of item i, (n_items, n_items) float32."""

    def __init__(self, *, k: int = 100, shrink: float = 0.0) -> None:
        """Store the options.

        Args:
            k: Neighbours of each item.
            shrink: Added to the denominator: a similarity that rests on few users counts less.
        """
        self.k = k
        self.shrink = shrink

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        if self.k < 1 or self.shrink < 0:
            raise ConfigError(f"item-knn: k={self.k} must be at least 1 and shrink={self.shrink} at least 0.")
        matrix = train.matrix()
        by_item = matrix.T.tocsr()
        norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
        blocks = [
            self._nearest(by_item[start : start + BLOCK] @ matrix, norms, start)
            for start in range(0, train.n_items, BLOCK)
        ]
        self.similarity_ = sp.vstack(blocks, format="csr")

    def _nearest(self, together: Any, norms: FloatArray, start: int) -> Any:
        """Return the sparse k nearest neighbours of a block of items from their co-occurrences."""
        co = together.tocsr()  # (block, n_items): users who took both
        rows = np.repeat(np.arange(co.shape[0]), np.diff(co.indptr))
        other = co.indices != rows + start
        rows, items = rows[other], co.indices[other]
        values = co.data[other] / (norms[rows + start] * norms[items] + np.float32(self.shrink))
        # Most items of a sparse data set have few co-taken ones: only the others need choosing.
        wide = np.bincount(rows, minlength=co.shape[0]) > self.k
        chosen, kept = np.flatnonzero(wide), ~wide[rows]
        all_pairs = sp.csr_array((values, (rows, items)), shape=co.shape)
        best, best_values = top_k(all_pairs[chosen].toarray(), self.k)
        nearest = sp.csr_array(
            (
                np.concatenate([values[kept], best_values.ravel()]),
                (
                    np.concatenate([rows[kept], np.repeat(chosen, best.shape[1])]),
                    np.concatenate([items[kept], best.ravel()]),
                ),
            ),
            shape=co.shape,
        )
        nearest.sort_indices()  # sums then run in one order, before and after saving
        return nearest

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        scores: FloatArray = (history_matrix(histories, users) @ self.similarity_).toarray()
        return scores

    def _state(self) -> dict[str, NDArray[Any]]:
        matrix = self.similarity_
        return {"indptr": matrix.indptr, "indices": matrix.indices, "values": matrix.data}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        n_items = state["indptr"].size - 1
        self.similarity_ = sp.csr_array(
            (state["values"], state["indices"], state["indptr"]), shape=(n_items, n_items)
        )


class EASE(Recommender):
    """The linear item-item model with zero diagonal that reconstructs histories best.

    Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019 (arXiv 1905.03375): with
    ``P = (X'X + reg * I)^-1`` the weights are ``B_ij = -P_ij / P_jj`` off the diagonal. One dense
    float32 array of n_items squared is held and inverted in place (17,332 items: 1.2 GB).
    """

    name: ClassVar[str] = "ease"
    weights_: FloatArray
    """Column j holds what each item of a history adds to item j, (n_items, n_items)."""

    def __init__(self, *, reg: float = 250.0, max_items: int = 20_000) -> None:
        """Store the options.

        Args:
            reg: The L2 penalty.
            max_items: Refuse larger catalogues; memory grows with the square (20,000 items: 1.6 GB).
        """
        self.reg = reg
        self.max_items = max_items

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        if self.reg <= 0:
            raise ConfigError(f"ease: reg must be above 0, not {self.reg}.")
        if train.n_items > self.max_items:
            gigabytes = 4 * train.n_items**2 / 1e9
            raise DataError(
                f"ease: {train.name} has {train.n_items:,} items, and a dense item-item matrix of them takes "
                f"{gigabytes:.1f} GB; the limit is max_items={self.max_items:,}. Raise max_items if the "
                f"memory is there, or use item-knn or als."
            )
        matrix = train.matrix()
        # The inverse is symmetric, so its transpose is the same numbers in C order, without a copy.
        weights = _inverse((matrix.T @ matrix).toarray(order="F"), self.reg).T
        weights /= -np.diagonal(weights)[None, :]
        np.fill_diagonal(weights, 0.0)
        self.weights_ = weights

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        scores: FloatArray = history_matrix(histories, users) @ self.weights_
        return scores

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"weights": self.weights_}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.weights_ = state["weights"]


def _inverse(gram: NDArray[np.float32], reg: float) -> NDArray[np.float32]:
    """Return ``(gram + reg * I)^-1`` by Cholesky, in the memory of `gram` (Fortran order)."""
    gram[np.diag_indices_from(gram)] += np.float32(reg)
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    if failed:
        raise ConfigError(f"ease: reg={reg} is too small to invert the item matrix in float32; raise it.")
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    _mirror(inverse)
    return np.asarray(inverse, dtype=np.float32)


def _mirror(matrix: NDArray[np.float32]) -> None:
    """Copy the lower triangle onto the upper one, a block of rows at a time."""
    n = matrix.shape[0]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        corner = np.tril(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner + np.tril(corner, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
