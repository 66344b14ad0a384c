"""Features of (user, candidate) pairs for learning to rank: what cheap models and counts say of each.

Whatever is compared is compared inside a user's list: scores as standard scores, places as reciprocal
ranks, so that one model fits every user. Nothing here sees a held-out item: features are a function of
lists, models' scores and histories alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.base import Recommender
from frugalrec.types import PAD, BoolArray, DoubleArray, FloatArray, IntArray, Ranking

FIRST = "first"
"""The model that made the lists."""
RECENT = 0.1
"""Share of the interactions, the latest ones, that recent popularity counts."""


@dataclass(frozen=True, kw_only=True)
class CandidateFeatures:
    """Features of the candidates of some users."""

    names: tuple[str, ...]
    values: FloatArray
    """(n_users, m, n_features); NaN where a list is padded."""
    ranking: Ranking
    """The lists."""
    histories: Dataset
    """What the features know of the users: all of it must lie before what is to be predicted."""

    @property
    def present(self) -> BoolArray:
        """True where there is a candidate, (n_users, m)."""
        present: BoolArray = self.ranking.items != PAD
        return present

    def column(self, name: str) -> FloatArray:
        """Return one feature, (n_users, m)."""
        if name not in self.names:
            raise ConfigError(f"no feature {name!r}; there are {', '.join(self.names)}.")
        return self.values[:, :, self.names.index(name)]

    def check_before(self, targets: Dataset) -> None:
        """See that the histories lie before what is to be predicted.

        A user who comes back to an item is no fault. So a target in a history proves nothing by itself:
        something later does, and so does every user's history ending with his targets.

        Raises:
            DataError: If they hold something later than a user's first target, or all users' targets.
        """
        users = np.unique(self.ranking.users)
        users = users[(self.histories.lengths[users] > 0) & (targets.lengths[users] > 0)]
        late = [user for user in users.tolist() if _later(self.histories, targets, user)]
        if not late and any(_end_with(self.histories, targets, users, spare) for spare in (0, 1)):
            late = users.tolist()
        if late:
            raise DataError(
                f"the features of user {targets.user_ids[late[0]]} saw interactions from after the first "
                "target; make them from what was known before, split.history(fold)."
            )


def candidate_features(
    ranking: Ranking,
    histories: Dataset,
    scores: Mapping[str, NDArray[np.floating]] | None = None,
    *,
    vectors: NDArray[np.floating] | None = None,
    last: int = 5,
) -> CandidateFeatures:
    """Return the features of every candidate.

    ``first.score`` and ``first.rank`` speak of the model that made the lists, ``NAME.score`` and
    ``NAME.rank`` of each further one; ``popularity`` and ``popularity.recent`` are log counts of
    interactions, and of the latest tenth of them; ``together.latest``, ``together.mean`` and
    ``together.most`` say how often the candidate occurs with the user's latest items (cosine of their
    users); ``text.mean`` and ``text.most`` likewise compare item vectors; ``history`` is the log length of
    the user's history.

    Args:
        ranking: The lists of a cheap model, usually its top 20.
        histories: What is known of the users, as when the lists were made.
        scores: Further models' scores of the same candidates, (n_users, m) each; see `scores_of`.
        vectors: A vector an item, (n_items, width), of its title for example.
        last: How many of a user's latest items candidates are compared with.
    """
    if last < 1:
        raise ConfigError(f"last must be at least 1, not {last}.")
    present = ranking.items != PAD
    columns: dict[str, DoubleArray] = {}
    for name, values in {FIRST: ranking.scores, **(scores or {})}.items():
        if values.shape != ranking.items.shape or "." in name:
            raise DataError(
                f"scores of {name!r} have shape {values.shape}, not {ranking.items.shape}; give one score a "
                "candidate, under a name without a dot."
            )
        columns[f"{name}.score"] = standard_scores(values, present & np.isfinite(values))
        columns[f"{name}.rank"] = _reciprocal_ranks(values, present)
    codes = np.where(present, ranking.items, 0)
    columns["popularity"] = np.log1p(histories.item_counts)[codes]
    columns["popularity.recent"] = np.log1p(_recent_counts(histories))[codes]
    latest = [histories.history(int(user))[-last:] for user in ranking.users]
    for part, values in _together(histories, latest, codes).items():
        columns[f"together.{part}"] = values
    if vectors is not None:
        for part, values in _alike(vectors, histories, latest, codes).items():
            columns[f"text.{part}"] = values
    columns["history"] = np.repeat(np.log1p(histories.lengths[ranking.users])[:, None], ranking.k, axis=1)
    stacked = np.stack(list(columns.values()), axis=2)
    stacked[~present] = np.nan
    return CandidateFeatures(
        names=tuple(columns), values=stacked.astype(np.float32), ranking=ranking, histories=histories
    )


def scores_of(
    model: Recommender, ranking: Ranking, histories: Dataset | None = None, *, batch_size: int = 256
) -> FloatArray:
    """Return a fitted model's scores of the candidates of a ranking, (n_users, m); -inf at padding."""
    found = np.full(ranking.items.shape, -np.inf, dtype=np.float32)
    for start in range(0, ranking.users.size, batch_size):
        rows = slice(start, start + batch_size)
        items = ranking.items[rows]
        block = model.score(ranking.users[rows], histories)
        taken = np.take_along_axis(block, np.where(items == PAD, 0, items).astype(np.int64), axis=1)
        found[rows] = np.where(items == PAD, -np.inf, taken)
    return found


def standard_scores(values: NDArray[np.floating], known: NDArray[np.bool_]) -> DoubleArray:
    """Return z-scores along each row over the known entries; 0 elsewhere.

    Args:
        values: (n, m).
        known: (n, m), false for entries to leave out; they come out as 0, the mean.
    """
    filled = np.where(known, values, 0.0).astype(np.float64)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = np.where(known, filled - filled.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # Rounding leaves a row of equal values with a deviation of about 1e-17, not 0.
    flat = deviation <= 1e-9 * np.abs(filled).max(axis=1, keepdims=True, initial=0.0)
    scores: DoubleArray = np.divide(centred, deviation, out=np.zeros_like(centred), where=~flat)
    return scores


def _reciprocal_ranks(values: NDArray[np.floating], present: BoolArray) -> DoubleArray:
    """Return 1 / (1 + candidates with a higher score) inside each list."""
    ordered = np.where(present & np.isfinite(values), values, -np.inf).astype(np.float64)
    better = (ordered[:, None, :] > ordered[:, :, None]).sum(axis=2)
    ranks: DoubleArray = 1.0 / (1.0 + better)
    return ranks


def _recent_counts(histories: Dataset) -> NDArray[np.int64]:
    """Return how often each item occurs among the latest interactions; of each user where no times are."""
    if histories.times is not None:
        recent = histories.times >= np.quantile(histories.times, 1 - RECENT)
    else:
        place = np.arange(histories.n) - np.repeat(histories.indptr[:-1], histories.lengths)
        recent = place >= np.repeat(np.ceil(histories.lengths * (1 - RECENT)), histories.lengths)
    return np.bincount(histories.items[recent], minlength=histories.n_items).astype(np.int64)


def _together(
    histories: Dataset, latest: list[NDArray[np.int32]], codes: NDArray[np.int32]
) -> dict[str, DoubleArray]:
    by_item = sp.csr_array(histories.matrix().T)
    counts = np.maximum(by_item.sum(axis=1), 1.0)
    similar = []
    for items, candidates in zip(latest, codes, strict=True):
        shared = (by_item[candidates] @ by_item[items].T).toarray()  # (m, latest items)
        similar.append(shared / np.sqrt(np.outer(counts[candidates], counts[items])))
    return _summary(similar)


def _alike(
    vectors: NDArray[np.floating],
    histories: Dataset,
    latest: list[NDArray[np.int32]],
    codes: NDArray[np.int32],
) -> dict[str, DoubleArray]:
    if vectors.ndim != 2 or len(vectors) != histories.n_items:
        raise DataError(
            f"vectors need shape ({histories.n_items}, width), one row an item; got {vectors.shape}."
        )
    unit = vectors.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, lengths, out=np.zeros_like(unit), where=lengths > 0)
    found = _summary([unit[row] @ unit[items].T for items, row in zip(latest, codes, strict=True)])
    return {part: found[part] for part in ("mean", "most")}


def _summary(similar: list[DoubleArray]) -> dict[str, DoubleArray]:
    """Return what similarities (m, latest items) of each user say of the candidates, (n_users, m) each."""
    known = [values if values.shape[1] else np.zeros((len(values), 1)) for values in similar]
    return {
        "latest": np.stack([values[:, -1] for values in known]),
        "mean": np.stack([values.mean(axis=1) for values in known]),
        "most": np.stack([values.max(axis=1) for values in known]),
    }


def _later(histories: Dataset, targets: Dataset, user: int) -> bool:
    """Return whether a user's history holds something later than the first target."""
    if histories.times is None or targets.times is None:
        return False
    own, wanted = (slice(d.indptr[user], d.indptr[user + 1]) for d in (histories, targets))
    return bool(histories.times[own].max() > targets.times[wanted].min())


def _end_with(histories: Dataset, targets: Dataset, users: IntArray, spare: int) -> bool:
    """Return whether all users' histories end with their targets, or would without `spare` items at the end.

    That is what leave-last-out leaves of a history that was cut one fold too late, or not at all. Items
    say it where there are no times, and where the last ones are of the same moment.
    """
    for user in users.tolist():
        history, wanted = histories.history(user), targets.history(user)
        start = len(history) - spare - len(wanted)
        if start < 0 or not np.array_equal(history[start : start + len(wanted)], wanted):
            return False
    return users.size > 1  # one user may well have come back
