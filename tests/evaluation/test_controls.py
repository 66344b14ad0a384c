import itertools

import numpy as np
import pytest
from coded import dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError
from frugalrec.evaluation.controls import headroom, oracle_rerank, popularity_rerank, random_permutation
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.types import PAD, Ranking


def lists(items, users=None):
    items = np.array(items, dtype=np.int32)
    users = np.arange(len(items)) if users is None else users
    scores = np.where(items == PAD, -np.inf, -np.arange(items.shape[1])).astype(np.float32)
    return Ranking(users=np.array(users, dtype=np.int32), items=items, scores=scores)


def test_permutation_moves_only_the_first_places():
    ranking = lists(np.tile(np.arange(12), (200, 1)))
    mixed = random_permutation(ranking, 5, seed=1)
    assert np.array_equal(mixed.items[:, 5:], ranking.items[:, 5:])
    assert np.array_equal(np.sort(mixed.items[:, :5], axis=1), ranking.items[:, :5])
    assert np.array_equal(mixed.scores, ranking.scores)
    assert not np.array_equal(mixed.items, ranking.items)
    assert not np.array_equal(mixed.items, random_permutation(ranking, 5, seed=2).items)


@given(st.integers(0, 2**31), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_a_users_permutation_does_not_depend_on_the_others(seed, shuffle):
    rng = np.random.default_rng(shuffle)
    ranking = lists(rng.permuted(np.tile(np.arange(9), (6, 1)), axis=1), users=[4, 0, 77, 5, 2, 1])
    rows = rng.permutation(6)[:4]
    whole, part = random_permutation(ranking, 6, seed), random_permutation(ranking.take(rows), 6, seed)
    assert np.array_equal(whole.items[rows], part.items)


def test_every_order_is_equally_likely():
    n = 24_000
    mixed = random_permutation(lists(np.tile(np.arange(4), (n, 1))), 4, seed=3).items
    codes = mixed @ np.array([64, 16, 4, 1])
    expected = n / 24  # 4! orders
    counts = [int((codes == np.dot(p, [64, 16, 4, 1])).sum()) for p in itertools.permutations(range(4))]
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert sum(counts) == n
    assert chi_square < 49.7  # 99.9 % point of chi-square with 23 degrees of freedom


def test_padding_stays_at_the_end():
    ranking = lists([[7, 8, PAD, PAD], [PAD, PAD, PAD, PAD]])
    for changed in (
        random_permutation(ranking, 4, seed=0),
        popularity_rerank(ranking, np.arange(10), 4),
        oracle_rerank(ranking, dataset([[8], [0]], 10), 4),
    ):
        assert sorted(changed.items[0, :2].tolist()) == [7, 8]
        assert (changed.items[0, 2:] == PAD).all()
        assert (changed.items[1] == PAD).all()


def test_popularity_order_keeps_ties_as_they_were():
    counts = np.array([5, 9, 5, 1, 9])
    changed = popularity_rerank(lists([[3, 2, 0, 4, 1]]), counts, 4)
    assert changed.items.tolist() == [[4, 2, 0, 3, 1]]  # 9, 5, 5 (2 was ahead of 0), 1 | untouched 1


def test_headroom_of_a_hand_computed_example():
    # User 0 holds out 2 (place 3 of the list) and 9 (not listed); user 1 holds out 4 (place 4, outside m).
    ranking, targets = lists([[0, 1, 2, 3], [1, 2, 3, 4]]), dataset([[2, 9], [4]], 10)
    best = oracle_rerank(ranking, targets, 3)
    assert best.items.tolist() == [[2, 0, 1, 3], [1, 2, 3, 4]]
    result = headroom(ranking, targets, 3, "mrr@4", seen=None)
    assert result.values["mrr@4"].tolist() == [1, 1 / 4]
    assert result.details["oracle"] is True
    assert result.details["current"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert result.details["ceiling"] == pytest.approx((1 + 1 / 4) / 2)
    assert result.details["headroom"] == pytest.approx((1 - 1 / 3) / 2)
    assert result.details["share_with_hit"] == 0.5


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_no_order_beats_the_oracle(seed, m):
    rng = np.random.default_rng(seed)
    ranking = lists(rng.permuted(np.tile(np.arange(10), (8, 1)), axis=1)[:, :6])
    targets = dataset([rng.integers(10, size=3).tolist() for _ in range(8)], 10)
    for metric in ("ndcg@6", "map@3", "mrr@4", "recall@2"):
        ceiling = headroom(ranking, targets, m, metric, seen=None).values[metric]
        for control in (ranking, random_permutation(ranking, m, seed % 97)):
            own = evaluate_ranking("x", control, targets, [metric], seen=None).values[metric]
            assert (own <= ceiling + 1e-12).all()


def test_m_must_fit_the_lists():
    with pytest.raises(ConfigError, match=r"m=5 must lie in 1\.\.2"):
        random_permutation(lists([[1, 2]]), 5, seed=0)
    with pytest.raises(ConfigError, match=r"m=0"):
        popularity_rerank(lists([[1, 2]]), np.arange(3), 0)
