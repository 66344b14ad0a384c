"""Item embeddings from co-occurrence, where sequence networks start instead of at noise.

Two items that stand near each other in histories get similar embeddings: the leading eigenvectors of
the positive pointwise mutual information of items at most `reach` steps apart (Levy and Goldberg, NIPS
2014: what word embeddings factorise). With tied weights and residual blocks an untrained network then
scores items by their similarity to the last one, so training starts from an item-to-item model. It
takes about a second and saves the epochs that a random start spends on getting there.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from frugalrec.data.dataset import Dataset
from frugalrec.types import DoubleArray, FloatArray


def spectral_embeddings(
    dataset: Dataset, size: int, rng: np.random.Generator, *, reach: int = 10, norm: float = 1.0
) -> FloatArray:
    """Return item embeddings, (n_items, size), of equal length `norm` before noise.

    Equal lengths let rare items start level with popular ones; how popular an item is, training finds
    out. Items without neighbours, and dimensions beyond what the matrix offers, hold only the small
    noise (deviation 0.02) that is added everywhere so that no two items start out equal.

    Args:
        dataset: The training data.
        size: Width of the embeddings.
        rng: Draws the start of the eigenvector iteration, and the noise.
        reach: The most steps between two items of a history that count, with weight 1 / steps.
        norm: Length of an embedding.
    """
    information = neighbour_information(dataset, reach)
    values, vectors = leading_eigenpairs(information, min(size, dataset.n_items), rng)
    found = vectors * np.sqrt(np.maximum(values, 0.0))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    embeddings = rng.normal(scale=0.02, size=(dataset.n_items, size))
    # A length this far below the usual is an item without neighbours and a rounding error.
    embeddings[:, : found.shape[1]] += norm * found / np.where(lengths > 1e-9, lengths, np.inf)
    return embeddings.astype(np.float32)


def neighbour_information(dataset: Dataset, reach: int, smoothing: float = 0.75) -> sp.csr_array:
    """Return the positive pointwise mutual information of near items, (n_items, n_items), symmetric.

    Item frequencies are smoothed half way to the power `smoothing`, which keeps rare pairs in check.
    """
    shape = (dataset.n_items, dataset.n_items)
    counts = sp.csr_array(shape, dtype=np.float64)
    for steps in range(1, min(reach, dataset.n - 1) + 1):
        together = dataset.rows[:-steps] == dataset.rows[steps:]
        pair = (dataset.items[:-steps][together], dataset.items[steps:][together])
        counts = counts + sp.csr_array((np.full(pair[0].size, 1 / steps), pair), shape=shape)
    both = sp.coo_array(counts + counts.T)
    total = both.data.sum()
    frequency = np.bincount(both.coords[0], weights=both.data, minlength=dataset.n_items)
    smooth = frequency**smoothing
    expected = np.sqrt(frequency * smooth * total / max(smooth.sum(), 1e-300))
    rows, columns = both.coords
    information = np.log(both.data * total / (expected[rows] * expected[columns]))
    keep = information > 0
    return sp.csr_array((information[keep], (rows[keep], columns[keep])), shape=shape)


def leading_eigenpairs(
    matrix: sp.csr_array, k: int, rng: np.random.Generator, *, iterations: int = 8, spare: int = 16
) -> tuple[DoubleArray, DoubleArray]:
    """Return the k largest eigenvalues, descending, and their vectors, of a symmetric matrix.

    Block power iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
    """
    width = min(k + spare, matrix.shape[0])
    basis = rng.standard_normal((matrix.shape[0], width))
    for _ in range(iterations):
        basis, _ = np.linalg.qr(matrix @ basis)
    values, vectors = np.linalg.eigh(basis.T @ (matrix @ basis))
    order = np.argsort(-values)[:k]
    return values[order], basis @ vectors[:, order]
