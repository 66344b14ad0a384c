"""The published label of weak users (Kaur and Shah 2024), for comparison only, behind a warning.

Their per-user AUC compares the order of a user's ratings with the order of the scores *among the items
that the user rated in the test fold*, and a user without two different ratings counts as 0, the worst.
Users are weak where it is at most 0.5 (Eq. 5; below 0.5 in the code that counted them, which leaves out
those with one pair of two in the right order) and they are less active than the mean. So a label rests on
about ten ratings, is read off the fold on which the result is then reported, and holds people about
whom nothing is known. `benchmarks/weak_users.py` shows that a random scorer finds as many weak users,
and that a random order "heals" two fifths of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.weakness import Threshold, Weakness
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Fold, Split
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.ranks import Score
from frugalrec.rng import generator
from frugalrec.types import BoolArray, DoubleArray, IntArray, LongArray

PAIRS = 4_000_000
"""Pairs of rated items compared at once (about 100 MB)."""
BATCH = 256
Rule = Literal["at-most", "below"]
"""Whether a user at exactly 0.5 is weak (`at-most`, Eq. 5) or not (`below`, the published code)."""

WARNING = (
    "the published label of weak users says little: it compares the order of about ten ratings a user, "
    "counts users with equal ratings as the weakest, and is read off the fold that it is reported on. A "
    "random scorer finds as many weak users. Use it for comparison, never to decide who gets the LLM."
)


class PublishedLabelWarning(UserWarning):
    """Says what is wrong with the published label wherever it is computed."""


@dataclass(frozen=True, kw_only=True)
class RatedScores:
    """Each user's held-out ratings and the scores of those items."""

    users: IntArray
    """User codes, (n_users,)."""
    rows: LongArray
    """Position in `users` of each rating, ascending, (n,)."""
    ratings: DoubleArray
    """(n,)."""
    scores: DoubleArray
    """(n,)."""


def rated_scores(score: Score, users: NDArray[np.int32], targets: Dataset) -> RatedScores:
    """Gather the scores of each user's rated held-out items.

    Args:
        score: User codes (b,) -> scores of all items (b, n_items).
        users: User codes, each once.
        targets: Held-out interactions with values.

    Raises:
        DataError: If the data hold no ratings.
    """
    if targets.values is None:
        raise DataError(
            f"{targets.name}: the published metric compares ratings, and the data have none. "
            f"Map a value column, or use the proper AUC of frugalrec.allocation.weakness."
        )
    codes = np.asarray(users, dtype=np.int32)
    lengths = targets.lengths[codes]
    rows = np.repeat(np.arange(codes.size), lengths)
    first = np.cumsum(lengths) - lengths
    at = np.repeat(targets.indptr[codes] - first, lengths) + np.arange(rows.size)
    found = np.empty(rows.size)
    for start in range(0, codes.size, BATCH):
        inside = slice(*np.searchsorted(rows, [start, start + BATCH]))
        block = score(codes[start : start + BATCH])
        found[inside] = block[rows[inside] - start, targets.items[at[inside]]]
    return RatedScores(users=codes, rows=rows, ratings=targets.values[at].astype(np.float64), scores=found)


def rating_order_auc(rated: RatedScores, *, degenerate: float = 0.0) -> DoubleArray:
    """Return the share of pairs of different ratings that the scores order alike, (n_users,).

    Args:
        rated: Ratings and scores; tied scores count half.
        degenerate: Value of a user without two different ratings: 0 as published (CatBoost's
            ``AUC:type=Ranking``), or NaN to say that nothing is known.
    """
    n_users = rated.users.size
    sizes = np.bincount(rated.rows, minlength=n_users)
    right, pairs = np.zeros(n_users), np.zeros(n_users)
    last = np.cumsum(sizes)
    before = np.concatenate([[0], np.cumsum(sizes.astype(np.int64) ** 2)])
    start = 0
    while start < n_users:
        stop = max(start + 1, int(np.searchsorted(before, before[start] + PAIRS, "right")) - 1)
        own = slice(last[start] - sizes[start], last[stop - 1])
        rows, ratings, scores = rated.rows[own], rated.ratings[own], rated.scores[own]
        i, j = _pairs(sizes[start:stop])
        lower = ratings[i] < ratings[j]
        i, j = i[lower], j[lower]
        good = (scores[i] < scores[j]) + 0.5 * (scores[i] == scores[j])
        right += np.bincount(rows[i], weights=good, minlength=n_users)
        pairs += np.bincount(rows[i], minlength=n_users)
        start = stop
    values: DoubleArray = np.divide(right, pairs, out=np.full(n_users, degenerate), where=pairs > 0)
    return values


def paper_weak_users(score: Score, split: Split, fold: Fold = "test", rule: Rule = "at-most") -> Weakness:
    """Label weak users exactly as published (Eq. 5), with a warning.

    Args:
        score: User codes (b,) -> scores of all items (b, n_items), of a model fitted on `split.train`.
        split: The folds; the publication cuts each user's ratings at random, 80/10/10.
        fold: The fold whose ratings are looked at; published: `test`.
        rule: `at-most` 0.5 as in Eq. 5, or `below` it as in the published code.

    Returns:
        Users of `fold`; activity counts all ratings, those held out too, as the published code does.
    """
    warnings.warn(WARNING, PublishedLabelWarning, stacklevel=2)
    users = np.flatnonzero(split.targets(fold).lengths > 0).astype(np.int32)
    rated = rated_scores(score, users, split.targets(fold))
    return label(rated, _all_lengths(split)[users], split.train.n_items, fold, rule)


def label(
    rated: RatedScores, lengths: LongArray, n_items: int, fold: Fold = "test", rule: Rule = "at-most"
) -> Weakness:
    """Return the published label from gathered scores; `lengths` are all ratings of the users, (n_users,)."""
    values = rating_order_auc(rated)
    sparsity = 1.0 - lengths / n_items
    t_s = Threshold.mean().of(sparsity)
    inactive, low = sparsity > t_s, _low(values, rule)
    return Weakness(
        users=rated.users,
        metric="rating order AUC (as published)",
        fold=fold,
        performance=values,
        shrunk=values,
        undefined=np.isnan(rating_order_auc(rated, degenerate=np.nan)),
        sparsity=sparsity,
        inactive=inactive,
        low=low,
        t_s=t_s,
        t_p=0.5,
        kappa=0.0,
        kappa_from="none: published values are not shrunk",
    )


@dataclass(frozen=True, kw_only=True)
class PublishedChange:
    """The published count before and after treating the weak users, with its control."""

    before: int
    after: int
    control: float
    """Weak users left after *random scores* for the same users, mean over draws."""
    control_sd: float
    auc_before: float
    auc_after: float
    auc_control: float
    """Mean over draws of the mean AUC of all users."""

    def __str__(self) -> str:
        """Return both counts in one sentence."""
        return (
            f"weak users {self.before} -> {self.after} ({_percent(self.after, self.before)}); a random order "
            f"for the same users: {self.before} -> {self.control:.0f} ({_percent(self.control, self.before)})"
        )


def published_change(
    rated: RatedScores,
    treated: DoubleArray,
    lengths: LongArray,
    n_items: int,
    *,
    rule: Rule = "at-most",
    draws: int = 20,
    seed: int = 0,
) -> PublishedChange:
    """Count weak users before and after as the publication does, beside a random order of the same lists.

    Args:
        rated: Held-out ratings and the cheap model's scores.
        treated: The new model's score of every rated item, (n,); used for the weak users alone.
        lengths: All ratings of the users, (n_users,).
        n_items: Size of the catalogue.
        rule: As in `paper_weak_users`.
        draws: Random orders.
        seed: Seed of the random orders.
    """
    if draws < 1:
        raise ConfigError(f"the control needs at least 1 random order, not {draws}.")
    first = label(rated, lengths, n_items, "test", rule)
    swap = first.weak[rated.rows]

    def outcome(scores: DoubleArray) -> tuple[int, float]:
        new = RatedScores(
            users=rated.users,
            rows=rated.rows,
            ratings=rated.ratings,
            scores=np.where(swap, scores, rated.scores),
        )
        values = rating_order_auc(new)
        return int((first.weak & _low(values, rule)).sum()), float(values.mean())

    rng = generator(seed, "allocation", "published-control")
    random = np.array([outcome(rng.random(rated.rows.size)) for _ in range(draws)])
    after, auc_after = outcome(np.asarray(treated, dtype=np.float64))
    return PublishedChange(
        before=int(first.weak.sum()),
        after=after,
        control=float(random[:, 0].mean()),
        control_sd=float(random[:, 0].std(ddof=1)) if draws > 1 else float("nan"),
        auc_before=float(first.performance.mean()),
        auc_after=auc_after,
        auc_control=float(random[:, 1].mean()),
    )


def _pairs(sizes: LongArray) -> tuple[LongArray, LongArray]:
    """Return all ordered pairs (i, j) of positions inside the same user."""
    sizes = sizes.astype(np.int64)
    i = np.repeat(np.arange(sizes.sum()), np.repeat(sizes, sizes))
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    width = np.repeat(sizes, sizes)
    within = np.arange(i.size) - np.repeat(np.cumsum(width) - width, width)
    return i, starts[i] + within


def _all_lengths(split: Split) -> LongArray:
    return split.train.lengths + split.valid.lengths + split.test.lengths


def _low(values: DoubleArray, rule: Rule) -> BoolArray:
    return values <= 0.5 if rule == "at-most" else values < 0.5


def _percent(after: float, before: float) -> str:
    return "-" if before == 0 else f"{round(100 * (after - before) / before):+d} %"
