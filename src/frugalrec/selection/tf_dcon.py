"""Training-free condensation: one row for each of as many groups as the budget has rows.

After TF-DCon (Wu et al. 2023, arXiv 2310.09874), which condenses data sets for content-based
recommendation without training: it lets an LLM rewrite the contents into fewer words, and replaces users
by representatives of clusters. Here is the second half alone. No LLM is asked, no content is rewritten, and
what is kept are real rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import DataError
from frugalrec.grounding.questions import known_titles
from frugalrec.ledger import measure
from frugalrec.rng import generator
from frugalrec.selection.base import Scorer, parse_budget
from frugalrec.selection.clusters import check_groups, finite, kmeans, rank_within
from frugalrec.selection.title_vectors import title_vectors
from frugalrec.types import DoubleArray, FloatArray, Selection


class TFDCon(Scorer):
    """The rows nearest to the centres of groups of rows with similar titles.

    A row's vector is the mean of its titles' vectors, history and target alike. How many groups there are
    is known only with the budget, so `score` keeps the vectors, in `rows_`, and `choose` groups them: a
    scorer that scored nothing cannot choose. The score itself tells how ordinary a row is, the negative
    distance from the mean of all rows; it is undefined where no title has a word, and such rows are kept
    only where the budget exceeds the others.
    """

    name: ClassVar[str] = "tf-dcon"
    prefers: ClassVar[str] = "rows whose titles are like those of many others"
    takes: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __init__(
        self, *, vectors: Any = None, dimensions: int = 64, clusters: int | None = None, seed: int = 0
    ) -> None:
        """Store the options.

        Args:
            vectors: Own vectors of the items, (n_items, d), for example of a sentence encoder; default:
                TF-IDF of the titles, reduced (see `title_vectors`).
            dimensions: The most numbers in a default vector.
            clusters: Groups of rows; default: as many as the budget has rows.
            seed: Seed of the default vectors; that of the groups is given to `choose`.
        """
        self.vectors, self.dimensions, self.clusters, self.seed = vectors, dimensions, clusters, seed

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        with measure() as meter:
            scores = self._typicality(examples, dataset)
        self.costs_ = {self.name: meter.usage}
        return scores

    def _typicality(self, examples: Examples, dataset: Dataset) -> FloatArray:
        if self.clusters is not None:
            check_groups(self.clusters, len(examples), "rows")
        if self.vectors is None:
            rng = generator(self.seed, "selection", "tf-dcon", "vectors")
            items = title_vectors(known_titles(None, dataset), self.dimensions, rng)
        else:
            items = finite(self.vectors, "tf-dcon: vectors of the items", (dataset.n_items, None))
        self.rows_ = row_vectors(examples, items)
        known = np.asarray(~np.isnan(self.rows_).any(axis=1))
        if not known.any():
            raise DataError("tf-dcon: no title has a word, so rows have no vectors; give vectors=.")
        gaps = np.linalg.norm(self.rows_ - self.rows_[known].mean(axis=0), axis=1)
        scores: FloatArray = -gaps.astype(np.float32)
        return scores

    def choose(self, scores: FloatArray, budget: int | float | str, *, seed: int = 0) -> Selection:
        """Return the rows nearest to the centres: exactly as many as the budget says.

        Every group gives its nearest row before any gives its second. So the size is exact where there
        are fewer groups than asked for, because rows are equal, too.
        """
        if not hasattr(self, "rows_") or len(self.rows_) != np.size(scores):
            raise DataError(
                f"tf-dcon: these {np.size(scores)} scores are not of the rows that this scorer saw last; "
                f"call score on the rows first."
            )
        size = parse_budget(budget, self.rows_.shape[0])
        known = np.flatnonzero(~np.isnan(self.rows_).any(axis=1))
        rng = generator(seed, "selection", "tf-dcon")
        groups = min(size if self.clusters is None else self.clusters, known.size)
        found = kmeans(self.rows_[known], groups, rng)
        chance = rng.permutation(known.size)
        turn = rank_within(found.labels, found.distances, chance)
        best = known[np.lexsort((chance, turn))]
        rest = rng.permutation(np.setdiff1d(np.arange(len(self.rows_)), known))
        kept = np.sort(np.concatenate([best, rest])[:size]).astype(np.int64)
        return Selection(kept=kept, scores=scores, scorer=self.name, budget=size, seed=seed)


def row_vectors(examples: Examples, items: DoubleArray) -> DoubleArray:
    """Return the mean vector of each row's items, history and target, (n, d).

    Items without a vector (NaN) do not count; a row with no other items has none.
    """
    n = len(examples)
    lengths = np.diff(examples.indptr)
    rows = np.concatenate([np.repeat(np.arange(n), lengths), np.arange(n)])
    codes = np.concatenate([examples.items, examples.targets])
    known = np.asarray(~np.isnan(items).any(axis=1))
    keep = known[codes]
    table = sp.coo_array((np.ones(int(keep.sum())), (rows[keep], codes[keep])), shape=(n, len(items)))
    sums: DoubleArray = table.tocsr() @ np.where(known[:, None], items, 0)
    counts = np.bincount(rows[keep], minlength=n).astype(np.float64)
    counts[counts == 0] = np.nan
    return sums / counts[:, None]
