"""Exact ranks of held-out items against the whole catalogue, in bounded memory.

A metric needs only a few numbers a user: how many candidates score above each held-out item, and how
many tie with it. So scores are made a block of users at a time, counted while they are in the
processor's cache, and thrown away: no sorting, no (users x items) array.

Ties are never broken in a model's favour. `better` and `tied` give the places that a held-out item
can take, `better + 1` to `better + tied + 1`; the metrics average over them, so that a model that
scores all items alike gets exactly what random order gets.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.counting import (
    Pairs,
    among,
    best,
    checked_block,
    count,
    distinct,
    from_keys,
    gather,
    pairs_of,
)
from frugalrec.types import PAD, BoolArray, DoubleArray, IntArray, LongArray, Ranking

Score = Callable[[IntArray], NDArray[Any]]
"""User codes (b,) -> scores of all items (b, n_items), higher is better; +-inf allowed, NaN is not."""

BLOCK_BYTES = 16 << 20
"""Memory for one block of scores of one thread, where no `batch_size` is given."""
MAX_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where each user's held-out items came out; best first inside a user."""

    users: IntArray
    """User codes, (n_users,)."""
    indptr: LongArray
    """Row pointers, (n_users + 1,): user row r owns ``indptr[r]:indptr[r + 1]``."""
    items: IntArray
    """Held-out item codes, (m,); an item that a user took twice counts once."""
    better: DoubleArray
    """Candidates scored above the item, (m,), other held-out items included; inf for an item that is
    not on a cut list."""
    tied: DoubleArray
    """Other candidates with the same score, (m,)."""
    n_candidates: LongArray
    """Items that could have been listed, (n_users,): the catalogue without the seen items."""
    n_items: int
    """Size of the catalogue."""
    n_repeats: int = 0
    """Held-out interactions left out of the targets because their item is masked as seen."""
    lists: IntArray | None = None
    """The best items of each user, (n_users, k), ties in order of item code, padded with -1."""

    @cached_property
    def n_relevant(self) -> LongArray:
        """Held-out items per user, (n_users,)."""
        return np.diff(self.indptr)

    @cached_property
    def rows(self) -> LongArray:
        """Row (position in `users`) of each held-out item, (m,)."""
        return np.repeat(np.arange(self.users.size), self.n_relevant)

    @cached_property
    def ranks(self) -> DoubleArray:
        """Mid-ranks, (m,), 1 is best: one more than the better ones and half of the tied ones."""
        return 1.0 + self.better + self.tied / 2.0

    def where(self, mask: BoolArray) -> Ranks:
        """Return the ranks with only some held-out items (m,) as targets; their places stay."""
        counts = np.bincount(self.rows[mask], minlength=self.users.size)
        return replace(
            self,
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            items=self.items[mask],
            better=self.better[mask],
            tied=self.tied[mask],
        )


class FactorScores:
    """Scores of a factor model, ``user_factors[u] @ item_factors.T``, laid out for speed."""

    def __init__(self, user_factors: NDArray[Any], item_factors: NDArray[Any]) -> None:
        self.user_factors = np.ascontiguousarray(user_factors)
        # (d, n_items): with few users in a block this layout multiplies up to twice as fast.
        self.item_factors_t = np.ascontiguousarray(np.asarray(item_factors).T)
        self.finite = self._finite()
        """Whether no score can be NaN, by the size of the factors."""

    def _finite(self) -> bool:
        if not (self.user_factors.size and self.item_factors_t.size):
            return True
        largest = [float(np.abs(factors).max()) for factors in (self.user_factors, self.item_factors_t)]
        bound = self.user_factors.shape[1] * largest[0] * largest[1]  # NaN and inf stay in it
        dtype = np.result_type(self.user_factors, self.item_factors_t, np.float16)
        return bool(bound < float(np.finfo(dtype).max))

    def __call__(self, users: IntArray) -> NDArray[Any]:
        """Return the scores of all items, (len(users), n_items)."""
        scores: NDArray[Any] = self.user_factors[users] @ self.item_factors_t
        return scores


def factor_scores(user_factors: NDArray[Any], item_factors: NDArray[Any]) -> FactorScores:
    """Return a score function for `target_ranks` from factors (n_users, d) and (n_items, d)."""
    if user_factors.ndim != 2 or item_factors.ndim != 2 or user_factors.shape[1] != item_factors.shape[1]:
        raise DataError(
            f"factors must be (n_users, d) and (n_items, d) with one d; "
            f"got {user_factors.shape} and {item_factors.shape}."
        )
    return FactorScores(user_factors, item_factors)


def target_ranks(
    score: Score,
    users: NDArray[Any],
    targets: Dataset,
    *,
    seen: Dataset | None = None,
    lists: int = 0,
    batch_size: int | None = None,
    threads: int = 1,
) -> Ranks:
    """Rank each user's held-out items among all items.

    Args:
        score: Scores of all items for a batch of users. It is called from several threads if
            `threads` is above 1, with BLAS held to one thread each. What it returns is only read.
        users: User codes, each once. Users without held-out items keep an empty row.
        targets: The held-out interactions.
        seen: Interactions whose items are no candidates for their user. A held-out item that is
            among them cannot be recommended, so it is no target either (`Ranks.n_repeats` counts
            these). None masks nothing.
        lists: If above 0, also keep each user's best `lists` items.
        batch_size: Users scored at once; default: as many as fit in `BLOCK_BYTES`, at most 256.
        threads: Blocks scored and counted at the same time.

    Raises:
        DataError: If scores have the wrong shape or hold NaN, or users repeat or do not exist.
    """
    codes = _checked_users(users, targets)
    n_items = targets.n_items
    batch = min(MAX_BATCH, BLOCK_BYTES // (4 * n_items)) or 1 if batch_size is None else batch_size
    if batch < 1 or threads < 1 or not 0 <= lists <= n_items:
        raise ConfigError(
            f"batch_size={batch_size} and threads={threads} must be at least 1, and lists={lists} "
            f"must lie in 0..{n_items} (the number of items)."
        )
    known = pairs_of(seen, codes, n_items)
    wanted, n_repeats = _targets(targets, codes, known)
    counts = np.zeros((2, wanted.items.size))
    top = np.full((codes.size, lists), PAD, dtype=np.int32)
    # Users with many held-out items first, as the counting wants it.
    order = np.argsort(-wanted.sizes, kind="stable")
    finite = isinstance(score, FactorScores) and score.finite
    if not lists:
        order = order[wanted.sizes[order] > 0]

    def work(start: int) -> None:
        rows = order[start : start + batch]
        block = checked_block(score(codes[rows]), codes[rows], n_items)
        masked = known.take(rows)
        counts[:, wanted.positions(rows)], broken = count(block, wanted.take(rows), masked, finite=finite)
        _refuse_nan(codes[rows], broken)
        if lists:
            top[rows] = best(block, masked, lists)

    _run(work, range(0, order.size, batch), threads)
    return _ranks(codes, wanted, counts, known, n_repeats, top if lists else None)


def ranks_from_ranking(ranking: Ranking, targets: Dataset, *, seen: Dataset | None = None) -> Ranks:
    """Rank each user's held-out items by their place in a list; an item not listed is missed (inf).

    Args:
        ranking: Lists as shown; a listed item that is in `seen` keeps its place.
        targets: The held-out interactions.
        seen: As in `target_ranks`: held-out items among them are no targets.

    Raises:
        DataError: If a list holds an item twice.
    """
    codes = _checked_users(ranking.users, targets)
    n_items = targets.n_items
    known = pairs_of(seen, codes, n_items)
    wanted, n_repeats = _targets(targets, codes, known)
    row, place = np.nonzero(ranking.items != PAD)
    keys = row * np.int64(n_items) + ranking.items[row, place]
    order = np.argsort(keys, kind="stable")
    keys, place = keys[order], place[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.size:
        bad = int(keys[twice[0]])
        raise DataError(
            f"the list of user {codes[bad // n_items]} holds item {bad % n_items} twice; "
            f"keep the first and close the gap."
        )
    at = np.searchsorted(keys, wanted.keys)
    at = np.minimum(at, max(keys.size - 1, 0))
    found = keys[at] == wanted.keys if keys.size else np.zeros(wanted.keys.size, dtype=bool)
    counts = np.zeros((2, wanted.items.size))
    counts[0] = np.where(found, place[at] if keys.size else 0, np.inf)
    return _ranks(codes, wanted, counts, known, n_repeats, ranking.items)


def _targets(targets: Dataset, users: IntArray, known: Pairs) -> tuple[Pairs, int]:
    keys = gather(targets, users)
    repeat = among(keys, known.keys)
    return from_keys(distinct(keys[~repeat]), users.size, targets.n_items), int(repeat.sum())


def _checked_users(users: NDArray[Any], targets: Dataset) -> IntArray:
    codes = np.asarray(users, dtype=np.int32)
    if codes.size and (codes.min() < 0 or codes.max() >= targets.n_users):
        raise DataError(
            f"user codes must lie in 0..{targets.n_users - 1}; got {int(codes.min())}..{int(codes.max())}."
        )
    if np.unique(codes).size != codes.size:
        raise DataError("some users are listed more than once; evaluate each user once.")
    return codes


def _refuse_nan(users: IntArray, broken: BoolArray) -> None:
    if broken.any():
        raise DataError(
            f"the scores of user {int(users[broken][0])} hold NaN, which has no rank "
            f"({int(broken.sum())} of {users.size} users in this batch). Mend the model, or give such "
            f"items -inf."
        )


def _run(work: Callable[[int], None], starts: range, threads: int) -> None:
    if threads == 1:
        for start in starts:
            work(start)
        return
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, starts):
            pass


def _ranks(
    users: IntArray, wanted: Pairs, counts: DoubleArray, known: Pairs, n_repeats: int, lists: IntArray | None
) -> Ranks:
    order = np.lexsort((wanted.items, counts[0], wanted.rows))
    return Ranks(
        users=users,
        indptr=wanted.indptr,
        items=wanted.items[order],
        better=counts[0, order],
        tied=counts[1, order],
        n_candidates=wanted.n_items - known.sizes,
        n_items=wanted.n_items,
        n_repeats=n_repeats,
        lists=lists,
    )
