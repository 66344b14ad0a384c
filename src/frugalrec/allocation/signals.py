"""What is known of a user before any answer: history, the cheap model's certainty, agreement, texts.

A signal may look at histories and lists, never at held-out items, so that it exists for every user to be
served. A past *result* of the same fold as the gain to be predicted is no signal: whoever had a bad result
by chance gains by chance (regression to the mean), and a model would learn that illusion first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.alignment import positions
from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import standard_scores
from frugalrec.types import PAD, BoolArray, DoubleArray, IntArray, Ranking

DAY_S = 86_400.0
PERSISTENCE = 0.9
"""Weight of place d + 1 relative to place d in the rank-biased overlap."""
CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Signals:
    """One row of numbers a user; NaN where a signal is unknown for the user."""

    users: IntArray
    """User codes, (n,), each once."""
    names: tuple[str, ...]
    values: DoubleArray
    """(n, len(names))."""

    def __post_init__(self) -> None:
        """Check shapes and names."""
        if self.values.shape != (self.users.size, len(self.names)) or len(set(self.names)) < len(self.names):
            raise DataError(
                f"signals need users (n,), distinct names (f,) and values (n, f); got {self.users.shape}, "
                f"{self.names} and {self.values.shape}."
            )

    def at(self, users: NDArray[Any]) -> Signals:
        """Return the signals of some users, in their order; an unknown user is an error."""
        rows = positions(self.users, users, "the table of signals")
        return Signals(users=self.users[rows], names=self.names, values=self.values[rows])

    def column(self, name: str) -> DoubleArray:
        """Return one signal, (n,)."""
        if name not in self.names:
            raise ConfigError(f"no signal {name!r}; there are {', '.join(self.names)}.")
        return self.values[:, self.names.index(name)]

    def with_column(self, name: str, values: NDArray[Any]) -> Signals:
        """Return the table with a signal of your own, (n,), which must not look at held-out items."""
        column = np.asarray(values, dtype=np.float64)
        if column.shape != self.users.shape:
            raise DataError(
                f"the signal {name!r} needs one value a user, {self.users.shape}, not {column.shape}."
            )
        both = np.concatenate([self.values, column[:, None]], axis=1)
        return Signals(users=self.users, names=(*self.names, name), values=both)

    def only(self, names: tuple[str, ...]) -> Signals:
        """Return some of the signals, in the order given."""
        columns = np.stack([self.column(name) for name in names], axis=1)
        return Signals(users=self.users, names=tuple(names), values=columns)


def user_signals(
    histories: Dataset,
    ranking: Ranking,
    *,
    m: int = 20,
    second: Ranking | None = None,
    now: float | None = None,
) -> Signals:
    """Return the signals of the users of a ranking.

    ``log_length`` (1 + interactions), ``history_popularity`` (mean log count of the history's items),
    ``margin`` (first over second score, in standard deviations of the first m) and ``entropy`` (of the
    softmax of their standard scores, 1 if all are alike): both free of the scores' scale. With a second
    recommender, ``overlap`` and ``rank_overlap`` (rank-biased) of the two lists; ``titled_history`` and
    ``titled_candidates``, the shares of items that have a title; ``idle_days`` (log of 1 + days since the
    last interaction) where there are times.

    Args:
        histories: What is known of the users now, such as ``split.history("valid")``.
        ranking: The cheap model's lists.
        m: Places of the lists that the LLM would see.
        second: Another recommender's lists for the same users, in any order.
        now: Unix seconds to count idle days from; default: the last interaction in `histories`.
    """
    if not 1 <= m <= ranking.k:
        raise ConfigError(f"m={m} must lie in 1..{ranking.k}, the length of the lists.")
    titled = np.array([bool(title) for title in histories.item_text[TITLE].to_list()], dtype=np.float64)
    lengths = histories.lengths[ranking.users]
    popularity = np.log1p(histories.item_counts.astype(np.float64))
    head = ranking.items[:, :m]
    columns = {
        "log_length": np.log1p(lengths),
        "history_popularity": _history_mean(histories, ranking.users, popularity),
        **_certainty(ranking.scores[:, :m], head != PAD),
        "titled_history": _history_mean(histories, ranking.users, titled),
        "titled_candidates": _row_mean(titled[head], head != PAD),
    }
    if second is not None:
        other = second.take(positions(second.users, ranking.users, "the second ranking"))
        columns["overlap"], columns["rank_overlap"] = agreement(head, other.items[:, :m])
    if histories.times is not None:
        columns["idle_days"] = _idle_days(histories, ranking.users, now)
    return Signals(
        users=ranking.users,
        names=tuple(columns),
        values=np.stack(list(columns.values()), axis=1).astype(np.float64),
    )


def agreement(a: IntArray, b: IntArray, persistence: float = PERSISTENCE) -> tuple[DoubleArray, DoubleArray]:
    """Return how far two lists of each user agree: (overlap (n,), rank-biased overlap (n,)), both 0 to 1.

    The rank-biased overlap (Webber, Moffat and Zobel 2010) is the mean over depths d of the share of items
    common to the first d places, with weights persistence ** (d - 1), cut at the lists' length.

    Args:
        a: Item codes, (n, m), padded with -1.
        b: The same of the other recommender, (n, m').
        persistence: How slowly the weights fall with depth.
    """
    depth = min(a.shape[1], b.shape[1])
    weights = persistence ** np.arange(depth)
    weights /= weights.sum()
    shared = np.zeros((a.shape[0], depth))
    for start in range(0, a.shape[0], CHUNK):
        x, y = a[start : start + CHUNK, :depth], b[start : start + CHUNK, :depth]
        row, i, j = np.nonzero((x[:, :, None] == y[:, None, :]) & (x != PAD)[:, :, None])
        # A common item counts from the depth on at which both lists have shown it.
        np.add.at(shared, (row + start, np.maximum(i, j)), 1.0)
    shared = np.cumsum(shared, axis=1) / np.arange(1, depth + 1)
    return shared[:, -1], shared @ weights


@dataclass(frozen=True, kw_only=True)
class Standardiser:
    """Signals as standard scores of the calibration users; unknown values become their mean, 0."""

    names: tuple[str, ...]
    means: DoubleArray
    scales: DoubleArray
    """Standard deviations; 0 where a signal is constant, which then comes out as 0."""

    @classmethod
    def fit(cls, calibration: Signals) -> Self:
        """Learn means and deviations from the calibration users, and from nobody else."""
        known = np.isfinite(calibration.values)
        count = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, calibration.values, 0.0)
        means = filled.sum(axis=0) / count
        scales = np.sqrt((np.where(known, filled - means, 0.0) ** 2).sum(axis=0) / count)
        flat = scales <= 1e-9 * np.abs(filled).max(axis=0, initial=0.0)
        return cls(names=calibration.names, means=means, scales=np.where(flat, 0.0, scales))

    def __call__(self, signals: Signals) -> DoubleArray:
        """Return standard scores, (n, f)."""
        if signals.names != self.names:
            raise DataError(
                f"fitted on the signals {', '.join(self.names)}, and asked about {', '.join(signals.names)}; "
                f"give the same, in the same order."
            )
        centred = np.where(np.isfinite(signals.values), signals.values - self.means, 0.0)
        return np.divide(centred, self.scales, out=np.zeros_like(centred), where=self.scales > 0)


def _certainty(scores: NDArray[Any], present: BoolArray) -> dict[str, DoubleArray]:
    known = present & np.isfinite(scores)
    z = standard_scores(scores, known)
    count = known.sum(axis=1)
    best = np.sort(np.where(known, z, -np.inf), axis=1)[:, ::-1]
    margin = np.full(count.size, np.nan)
    if best.shape[1] > 1:
        np.subtract(best[:, 0], best[:, 1], out=margin, where=count > 1)
    weights = np.where(known, np.exp(z - np.where(known, z, 0.0).max(axis=1, keepdims=True)), 0.0)
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    bits = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    entropy = np.divide(bits, np.log(np.maximum(count, 2)), out=np.full(count.size, np.nan), where=count > 1)
    return {"margin": margin, "entropy": entropy}


def _history_mean(histories: Dataset, users: IntArray, item_values: DoubleArray) -> DoubleArray:
    sums = np.bincount(histories.rows, weights=item_values[histories.items], minlength=histories.n_users)
    total = sums[users]
    lengths = histories.lengths[users]
    means: DoubleArray = np.divide(total, lengths, out=np.full(users.size, np.nan), where=lengths > 0)
    return means


def _row_mean(values: DoubleArray, known: BoolArray) -> DoubleArray:
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    means: DoubleArray = np.divide(total, count, out=np.full(count.size, np.nan), where=count > 0)
    return means


def _idle_days(histories: Dataset, users: IntArray, now: float | None) -> DoubleArray:
    times = histories.times
    if times is None or times.size == 0:
        return np.full(users.size, np.nan)
    end = histories.indptr[users + 1]
    last = times[np.maximum(end - 1, 0)].astype(np.float64)
    seconds = np.maximum((float(times.max()) if now is None else now) - last, 0.0)
    return np.where(histories.lengths[users] > 0, np.log1p(seconds / DAY_S), np.nan)
