import tracemalloc

import numpy as np
import pytest
from coded import dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation import ranks as ranks_module
from frugalrec.evaluation.ranks import factor_scores, ranks_from_ranking, target_ranks
from frugalrec.recommenders.base import top_k
from frugalrec.types import PAD, Ranking


def lookup(scores):
    return lambda users: scores[users]


def naive(scores, targets, seen, users):
    """Count by loops: {(user, item): (better, tied)} among the items that are not seen."""
    counts = {}
    for user in users:
        candidates = [i for i in range(scores.shape[1]) if i not in set(seen[user])]
        for item in set(targets[user]) - set(seen[user]):
            others = [i for i in candidates if i != item]
            counts[user, item] = (
                sum(scores[user, i] > scores[user, item] for i in others),
                sum(scores[user, i] == scores[user, item] for i in others),
            )
    return counts


def as_dict(ranks):
    users = ranks.users[ranks.rows]
    return {
        (int(u), int(i)): (b, t)
        for u, i, b, t in zip(users, ranks.items, ranks.better, ranks.tied, strict=True)
    }


@st.composite
def worlds(draw):
    n_users, n_items = draw(st.integers(1, 7)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 12))  # few levels: many ties
    scores = rng.integers(levels, size=(n_users, n_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.05] = np.inf
    rows = [
        [rng.integers(n_items, size=rng.integers(0, 5)).tolist() for _ in range(n_users)] for _ in range(2)
    ]
    return scores, rows[0], rows[1]


def test_hand_computed_example():
    # User 0: scores .9 .5 .5 .5 .1 .7; item 0 is seen, so the candidates are 5 (.7), 1 2 3 (.5), 4 (.1).
    # Held out are 2 and 4. Item 2: one better (5), two tied (1, 3), mid-rank 1 + 1 + 2/2 = 3.
    # Item 4: four better, none tied, rank 5. User 1 has nothing held out.
    scores = np.array([[0.9, 0.5, 0.5, 0.5, 0.1, 0.7], [0, 0, 0, 0, 0, 0]])
    ranks = target_ranks(
        lookup(scores), np.array([0, 1]), dataset([[4, 2], []], 6), seen=dataset([[0, 0], [1]], 6), lists=3
    )
    assert ranks.items.tolist() == [2, 4]
    assert ranks.better.tolist() == [1, 4]
    assert ranks.tied.tolist() == [2, 0]
    assert ranks.ranks.tolist() == [3, 5]
    assert ranks.n_candidates.tolist() == [5, 5]
    assert ranks.n_relevant.tolist() == [2, 0]
    assert ranks.lists.tolist() == [[5, 1, 2], [0, 2, 3]]


@given(worlds(), st.integers(1, 9), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_counts_equal_loops_whatever_the_batch_and_threads(world, batch_size, threads):
    scores, targets, seen = world
    users = np.arange(scores.shape[0])
    n_items = scores.shape[1]
    ranks = target_ranks(
        lookup(scores),
        users,
        dataset(targets, n_items),
        seen=dataset(seen, n_items),
        batch_size=batch_size,
        threads=threads,
    )
    assert as_dict(ranks) == naive(scores, targets, seen, users)
    assert ranks.n_candidates.tolist() == [n_items - len(set(row)) for row in seen]
    repeats = sum(item in seen[user] for user in users for item in targets[user])
    assert ranks.n_repeats == repeats


@given(worlds(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_relabelling_and_monotone_transforms_change_nothing(world, seed):
    scores, targets, seen = world
    n_users, n_items = scores.shape
    rng = np.random.default_rng(seed)
    users, items = rng.permutation(n_users), rng.permutation(n_items)  # new code of each old code
    plain = target_ranks(
        lookup(scores), np.arange(n_users), dataset(targets, n_items), seen=dataset(seen, n_items)
    )
    moved = np.empty_like(scores)
    moved[users[:, None], items[None, :]] = np.arctan(scores * 0.5)  # strictly increasing, also at +-inf
    rows = [[None] * n_users, [None] * n_users]
    for user in range(n_users):
        for fold, taken in enumerate((targets, seen)):
            rows[fold][users[user]] = [int(items[i]) for i in taken[user]]
    other = target_ranks(
        lookup(moved),
        rng.permutation(n_users),
        dataset(rows[0], n_items),
        seen=dataset(rows[1], n_items),
    )
    expected = {(int(users[u]), int(items[i])): counts for (u, i), counts in as_dict(plain).items()}
    assert as_dict(other) == expected


@given(worlds(), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_lists_equal_those_that_a_recommender_shows(world, k):
    scores, targets, seen = world
    n_users, n_items = scores.shape
    k = min(k, n_items)
    allowed = np.ones(scores.shape, dtype=bool)
    for user, row in enumerate(seen):
        allowed[user, row] = False
    expected, _ = top_k(scores, k, allowed)
    ranks = target_ranks(
        lookup(scores), np.arange(n_users), dataset(targets, n_items), seen=dataset(seen, n_items), lists=k
    )
    assert np.array_equal(ranks.lists, expected)


@pytest.mark.parametrize("k", [1, 10, 30])
def test_long_lists_equal_a_full_sort(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(300, size=(5, 1003)).astype(np.float32)
    ranks = target_ranks(lookup(scores), np.arange(5), dataset([[]] * 5, 1003), lists=k)
    full = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(ranks.lists, full)


def test_a_target_scored_minus_infinity_ties_only_with_candidates():
    scores = np.array([[1.0, -np.inf, -np.inf, -np.inf]])
    ranks = target_ranks(lookup(scores), np.array([0]), dataset([[1]], 4), seen=dataset([[2]], 4))
    assert (ranks.better.tolist(), ranks.tied.tolist()) == ([1], [1])  # tied with 3, not with the seen 2


def test_scores_are_only_read_and_integers_are_taken():
    scores = np.arange(12).reshape(2, 6)
    scores.setflags(write=False)
    ranks = target_ranks(
        lambda users: scores[: users.size], np.array([0, 1]), dataset([[4], [0]], 6), lists=2
    )
    assert ranks.better.tolist() == [1, 5]
    assert ranks.lists.tolist() == [[5, 4], [5, 4]]


def test_factor_scores_are_the_matrix_product():
    rng = np.random.default_rng(0)
    users, items = rng.integers(-5, 5, (7, 4)).astype(float), rng.integers(-5, 5, (9, 4)).astype(float)
    assert np.array_equal(factor_scores(users, items)(np.array([3, 1])), (users @ items.T)[[3, 1]])
    with pytest.raises(DataError, match=r"got \(7, 4\) and \(9, 3\)"):
        factor_scores(users, items[:, :3])


def test_memory_stays_bounded():
    n_users, n_items = 300, 40_000  # all scores at once: 300 * 40,000 * 4 bytes = 48 MB
    row = np.random.default_rng(0).random(n_items, dtype=np.float32)
    sizes = []

    def score(users):
        sizes.append(users.size)
        return np.tile(row, (users.size, 1))

    targets = dataset([[u] for u in range(n_users)], n_items)
    tracemalloc.start()
    target_ranks(score, np.arange(n_users), targets, lists=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) * n_items * 4 <= ranks_module.BLOCK_BYTES
    assert peak < 3 * ranks_module.BLOCK_BYTES
    assert sum(sizes) == n_users


def test_bad_input_is_named():
    targets = dataset([[1], [2]], 3)
    scores = np.zeros((2, 3))
    with pytest.raises(DataError, match="user 1 hold NaN"):
        target_ranks(lookup(np.array([[1, 2, 3], [1, np.nan, 2]])), np.array([0, 1]), targets)
    with pytest.raises(DataError, match="user 1 hold NaN"):
        target_ranks(lookup(np.array([[1, 2, 3], [1, np.nan, 2]])), np.array([0, 1]), targets, threads=2)
    with pytest.raises(DataError, match=r"shape \(2, 2\); expected \(2, 3\)"):
        target_ranks(lookup(scores[:, :2]), np.array([0, 1]), targets)
    with pytest.raises(DataError, match="more than once"):
        target_ranks(lookup(scores), np.array([1, 1]), targets)
    with pytest.raises(DataError, match=r"0\.\.1; got 0\.\.5"):
        target_ranks(lookup(scores), np.array([0, 5]), targets)
    with pytest.raises(DataError, match="different vocabularies"):
        target_ranks(lookup(scores), np.array([0, 1]), targets, seen=dataset([[1], [2]], 4))
    for options in ({"batch_size": -1}, {"threads": 0}, {"lists": 4}, {"lists": -1}):
        with pytest.raises(ConfigError, match="must"):
            target_ranks(lookup(scores), np.array([0, 1]), targets, **options)


def test_factors_that_can_make_nan_are_looked_at():
    items = np.array([[1.0, -1.0], [0.0, 1.0]], dtype=np.float32)
    for last in (np.nan, np.inf):
        users = np.array([[1.0, 1.0], [last, last]], dtype=np.float32)
        score = factor_scores(users, items)
        assert not score.finite
        with np.errstate(all="ignore"), pytest.raises(DataError, match="user 1 hold NaN"):
            target_ranks(score, np.array([0, 1]), dataset([[1], [1]], 2))
    assert factor_scores(users[:1], items).finite
    assert not factor_scores(users[:1] * np.float32(3e38), 2 * items).finite  # sums may overflow


def test_no_users_give_no_ranks():
    ranks = target_ranks(lookup(np.zeros((2, 3))), np.array([], dtype=int), dataset([[1], [2]], 3))
    assert ranks.items.size == 0
    assert ranks.indptr.tolist() == [0]


def rankings(items):
    items = np.array(items, dtype=np.int32)
    scores = np.where(items == PAD, -np.inf, -np.arange(items.shape[1])).astype(np.float32)
    return Ranking(users=np.arange(len(items), dtype=np.int32), items=items, scores=scores)


def test_places_on_a_list():
    # User 0 holds out 4, 2 and 7; the list 3 2 4 shows 2 at place 2, 4 at place 3, and misses 7.
    # User 1 holds out 5, which was seen before: no target. User 2's list is empty: 1 is missed.
    ranking = rankings([[3, 2, 4], [5, 6, 7], [PAD, PAD, PAD]])
    ranks = ranks_from_ranking(ranking, dataset([[4, 2, 7], [5], [1]], 8), seen=dataset([[0], [5, 5], []], 8))
    assert ranks.items.tolist() == [2, 4, 7, 1]
    assert ranks.ranks.tolist() == [2, 3, np.inf, np.inf]
    assert ranks.n_relevant.tolist() == [3, 0, 1]
    assert ranks.n_repeats == 1
    assert ranks.n_candidates.tolist() == [7, 7, 8]


@given(worlds())
@settings(deadline=None, max_examples=40)
def test_a_complete_list_gives_the_ranks_of_its_scores(world):
    shape = world[0].shape
    scores = np.random.default_rng(0).permutation(shape[0] * shape[1]).reshape(shape).astype(np.float64)
    targets, seen = dataset(world[1], shape[1]), dataset(world[2], shape[1])
    users = np.arange(shape[0])
    full = target_ranks(lookup(scores), users, targets, seen=seen, lists=shape[1])
    listed = ranks_from_ranking(rankings(full.lists), targets, seen=seen)
    assert as_dict(full) == as_dict(listed)
    assert np.array_equal(full.items, listed.items)


def test_a_list_with_an_item_twice_is_refused():
    with pytest.raises(DataError, match="list of user 1 holds item 3 twice"):
        ranks_from_ranking(rankings([[1, 2], [3, 3]]), dataset([[1], [2]], 4))


def test_all_lists_empty():
    ranks = ranks_from_ranking(rankings([[PAD]]), dataset([[1]], 4))
    assert ranks.better.tolist() == [np.inf]


def test_where_keeps_places_and_drops_targets():
    scores = np.array([[5.0, 4.0, 3.0, 2.0]])
    ranks = target_ranks(lookup(scores), np.array([0]), dataset([[1, 3]], 4))
    part = ranks.where(ranks.items == 3)
    assert (part.items.tolist(), part.better.tolist(), part.n_relevant.tolist()) == ([3], [3], [1])
