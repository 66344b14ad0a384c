"""Adaptive user sampling: important users, from all groups of users, nobody twice before all once.

The sampling of RecRanker (Luo et al., TOIS 2024, arXiv 2312.16018): users with more interactions are more
likely, clusters of users all get their part, and a user drawn before is passed over. The paper draws from
two weighted distributions and multiplies the weights of repeated users down; here the draws go around the
clusters, so that the parts are equal by construction, and repetition waits until everybody had a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import DataError
from frugalrec.ledger import measure
from frugalrec.rng import generator
from frugalrec.selection.base import parse_budget
from frugalrec.selection.clusters import check_groups, finite, kmeans, rank_within
from frugalrec.selection.surrogates import SurrogateScorer
from frugalrec.types import DoubleArray, FloatArray, IntArray, LongArray, Selection

if TYPE_CHECKING:
    from frugalrec.recommenders.sequential import SequentialRecommender

GROUPS = 32
"""Groups of users where nothing else is said."""


class RecRanker(SurrogateScorer):
    """Rows of users drawn by importance from every cluster in turn.

    The score is importance times coverage: the logarithm of the user's number of interactions, times how
    much more likely than by chance a user of this cluster is when clusters take turns. Clusters are of
    users' last states in the surrogate; several surrogates stand side by side in a user's vector. A user
    without interactions has no score. `choose` draws, so it needs the rows that `score` saw.
    """

    name: ClassVar[str] = "recranker"
    prefers: ClassVar[str] = "users with many interactions, and users unlike most others"

    def __init__(self, *, clusters: int | None = None, **surrogate: Any) -> None:
        """Store the options.

        Args:
            clusters: Groups of users; default: 32, or one for ten users where these are fewer.
            **surrogate: As in `SurrogateScorer`.
        """
        super().__init__(**surrogate)
        self.clusters = clusters

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        users, place = np.unique(examples.users, return_inverse=True)
        known = np.flatnonzero(dataset.lengths[users] > 0)
        groups = self._groups(known.size)
        with measure() as training:
            models = self._trained(dataset)
        with measure() as grouping:
            rng = generator(self.seed, "selection", "recranker", "clusters")
            vectors = _user_vectors(models, users[known], dataset)
            finite(vectors, "recranker: the surrogate's states of users (did its training diverge?)")
            found = kmeans(vectors, groups, rng)
        self.costs_ = {"surrogate": training.usage, self.name: grouping.usage}
        sizes = np.bincount(found.labels)
        coverage = found.labels.size / (sizes.size * sizes[found.labels])
        scores = np.full(users.size, np.nan, dtype=np.float32)
        scores[known] = np.log(dataset.lengths[users[known]]) * coverage
        labels = np.full(users.size, -1, dtype=np.int64)
        labels[known] = found.labels
        self.users_: IntArray = examples.users
        self.labels_: LongArray = labels[place]
        if self.progress is not None:
            self.progress(len(examples), len(examples))
        per_row: FloatArray = scores[place]
        return per_row

    def choose(self, scores: FloatArray, budget: int | float | str, *, seed: int = 0) -> Selection:
        """Return a draw of exactly as many rows as the budget says.

        All first rows of users come before all second ones; among these, clusters take turns; in a
        cluster, the chance to come next is proportional to the score. Rows whose score is 0 (users with
        one interaction) come behind the others of their cluster, those without a score last of all.
        """
        scores = np.asarray(scores, dtype=np.float32)
        if not hasattr(self, "users_") or self.users_.shape != scores.shape:
            raise DataError(
                f"recranker: these {scores.size} scores are not of the rows that this scorer saw last; "
                f"call score on the rows first."
            )
        size = parse_budget(budget, scores.size)
        rng = generator(seed, "selection", "recranker", "draw")
        kept = draw_in_turns(scores, self.users_, self.labels_, size, rng)
        return Selection(kept=np.sort(kept), scores=scores, scorer=self.name, budget=size, seed=seed)

    def _groups(self, n: int) -> int:
        if n == 0:
            raise DataError("recranker: no user of these rows has an interaction; give other rows.")
        if self.clusters is None:
            return min(GROUPS, max(n // 10, 1))
        check_groups(self.clusters, n, "users")
        return self.clusters


def _user_vectors(models: Sequence[SequentialRecommender], users: IntArray, dataset: Dataset) -> DoubleArray:
    """Return the users' states after their whole histories, those of all models side by side."""
    from frugalrec.recommenders.batching import last_states, recent

    states = [last_states(m.network_, *recent(dataset, users, m.max_length)) for m in models]
    return np.concatenate([one.double().numpy() for one in states], axis=1)


def draw_in_turns(
    weights: FloatArray, users: IntArray, groups: LongArray, size: int, rng: np.random.Generator
) -> LongArray:
    """Return `size` rows in the order in which they are drawn.

    Args:
        weights: Chance of each row among those of its group, (n,), at least 0; NaN goes last.
        users: User of each row, (n,).
        groups: Group of each row, (n,).
        size: Rows to draw.
        rng: The stream.
    """
    undefined = np.isnan(weights)
    # The least of exponential waiting times is a draw by weight (Efraimidis and Spirakis, 2006).
    with np.errstate(divide="ignore"):
        wait = rng.exponential(size=weights.size) / np.where(undefined, 0, weights)
    chance = rng.permutation(weights.size)
    repetition = rank_within(users, wait, chance)
    _, stratum = np.unique(np.stack([undefined, repetition, groups]), axis=1, return_inverse=True)
    turn = rank_within(stratum.reshape(-1), wait, chance)
    order = np.lexsort((chance, turn, repetition, undefined))
    return order[:size].astype(np.int64)
