"""Vectors of titles without a language model: TF-IDF of their words, reduced by a truncated SVD.

Latent semantic analysis (Deerwester et al., JASIS 1990). Words are weighed by how rare they are among
titles, a title's weights have length 1, and the leading singular vectors of the titles-by-words matrix
bring words together that share titles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from frugalrec.errors import ConfigError
from frugalrec.types import DoubleArray

WORD = re.compile(r"\w+")


def title_vectors(titles: Sequence[str], dimensions: int, rng: np.random.Generator) -> DoubleArray:
    """Return one vector a title, (n, at most `dimensions`); NaN where a title has no word.

    The product of two vectors approximates that of the titles' TF-IDF weights, as well as any vectors of
    this width can.

    Args:
        titles: Any texts; case does not count.
        dimensions: The most numbers in a vector.
        rng: Draws where the singular vectors' iteration starts.

    Raises:
        ConfigError: If `dimensions` is below 1.
    """
    if not isinstance(dimensions, int) or dimensions < 1:
        raise ConfigError(f"dimensions must be a whole number of at least 1, not {dimensions!r}.")
    weights = tf_idf(titles)
    if min(weights.shape) <= dimensions:
        # No more singular vectors than asked for: all of them, in any basis.
        left, values, _ = np.linalg.svd(weights.toarray(), full_matrices=False)
    else:
        start = rng.standard_normal(min(weights.shape))
        left, values, _ = svds(weights, k=dimensions, v0=start, solver="arpack")
    found: DoubleArray = left * values
    found[np.diff(weights.indptr) == 0] = np.nan
    return found


def tf_idf(titles: Sequence[str]) -> sp.csr_array:
    """Return word weights, (titles, words): count times ``1 + ln((1 + n) / (1 + titles with it))``.

    Rows have length 1; those of titles without a word are empty.
    """
    known: dict[str, int] = {}
    words = [[known.setdefault(w, len(known)) for w in WORD.findall(title.lower())] for title in titles]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in words])]).astype(np.int64)
    columns = np.array([word for row in words for word in row], dtype=np.int64)
    counts = sp.csr_array((np.ones(columns.size), columns, indptr), shape=(len(words), max(len(known), 1)))
    counts.sum_duplicates()
    with_it = np.bincount(counts.indices, minlength=counts.shape[1])
    rarity = 1 + np.log((1 + len(words)) / (1 + with_it))
    values = counts.data * rarity[counts.indices]
    rows = np.repeat(np.arange(len(words)), np.diff(counts.indptr))
    lengths = np.sqrt(np.bincount(rows, weights=values**2, minlength=len(words)))
    return sp.csr_array((values / lengths[rows], counts.indices, counts.indptr), shape=counts.shape)
