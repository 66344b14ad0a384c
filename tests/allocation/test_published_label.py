import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.allocation import published
from frugalrec.allocation.published import (
    PublishedLabelWarning,
    RatedScores,
    label,
    paper_weak_users,
    published_change,
    rated_scores,
    rating_order_auc,
)
from frugalrec.data.splits import Split
from frugalrec.errors import ConfigError, DataError
from frugalrec.testing.toys import cycle_dataset


def rated(rows, ratings, scores, n_users=None):
    rows = np.asarray(rows, dtype=np.int64)
    n_users = int(rows.max(initial=-1)) + 1 if n_users is None else n_users
    return RatedScores(
        users=np.arange(n_users, dtype=np.int32),
        rows=rows,
        ratings=np.asarray(ratings, dtype=float),
        scores=np.asarray(scores, dtype=float),
    )


def naive(table):
    values = []
    for user in range(table.users.size):
        own = np.flatnonzero(table.rows == user)
        pairs = [(i, j) for i in own for j in own if table.ratings[i] < table.ratings[j]]
        right = [
            (table.scores[i] < table.scores[j]) + 0.5 * (table.scores[i] == table.scores[j]) for i, j in pairs
        ]
        values.append(sum(right) / len(pairs) if pairs else 0.0)
    return np.array(values)


def test_published_metric_by_hand():
    # user 0: ratings 1, 3, 5 with scores .2, .1, .3: pairs 1<3 wrong, 1<5 right, 3<5 right: 2/3
    # user 1: equal ratings; user 2: one rating; user 3: tied scores: one half; user 4: nothing rated
    table = rated([0, 0, 0, 1, 1, 2, 3, 3], [1, 3, 5, 4, 4, 4, 2, 5], [0.2, 0.1, 0.3, 1, 2, 1, 7, 7], 5)
    np.testing.assert_allclose(rating_order_auc(table), [2 / 3, 0, 0, 0.5, 0])
    undefined = np.isnan(rating_order_auc(table, degenerate=np.nan))
    assert undefined.tolist() == [False, True, True, False, True]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 3)), max_size=40),
    st.integers(1, 60),
)
def test_vectorised_pairs_equal_a_plain_loop_in_chunks_of_any_size(rows, chunk):
    rows = sorted(rows, key=lambda row: row[0])
    table = rated([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], 6)
    before, published.PAIRS = published.PAIRS, chunk
    try:
        np.testing.assert_allclose(rating_order_auc(table), naive(table))
    finally:
        published.PAIRS = before


def folds(seed=0):
    data = cycle_dataset(n_users=300, n_items=40, length=20, seed=seed)
    rng = np.random.default_rng(seed)
    fold = rng.choice(3, size=data.n, p=[0.4, 0.3, 0.3])
    fold[data.indptr[:-1]] = 0
    train, valid, test = (data.where(fold == f) for f in range(3))
    return Split(method="random", train=train, valid=valid, test=test)


def test_paper_mode_warns_and_counts_degenerate_users_as_the_weakest():
    split = folds()
    scores = np.random.default_rng(1).random((300, 40))
    with pytest.warns(PublishedLabelWarning, match="random scorer finds as many weak users"):
        found = paper_weak_users(lambda u: scores[u], split)
    assert found.fold == "test"
    assert (found.performance[found.undefined] == 0).all()
    lengths = (split.train.lengths + split.valid.lengths + split.test.lengths)[found.users]
    sparsity = 1 - lengths / 40
    np.testing.assert_array_equal(found.weak, (sparsity > sparsity.mean()) & (found.performance <= 0.5))


def test_a_user_at_exactly_one_half_is_weak_in_the_paper_and_not_in_its_code():
    table = rated([0, 0, 1, 1, 2, 2], [1, 2, 1, 2, 1, 2], [5, 5, 2, 1, 1, 2])
    lengths = np.array([2, 2, 20])
    assert label(table, lengths, 30).weak.tolist() == [True, True, False]
    assert label(table, lengths, 30, rule="below").weak.tolist() == [False, True, False]


def test_scores_are_gathered_for_each_users_own_items():
    split = folds()
    users = np.arange(300, dtype=np.int32)
    table = rated_scores(lambda u: u[:, None] * 100.0 + np.arange(40)[None, :], users, split.test)
    for user in (0, 7, 299):
        own = table.rows == user
        np.testing.assert_array_equal(table.scores[own], user * 100.0 + split.test.history(user))
    with pytest.raises(DataError, match="compares ratings, and the data have none"):
        rated_scores(lambda u: np.zeros((u.size, 40)), users, replace(split.test, values=None))


def test_a_random_order_heals_published_weak_users_although_nothing_was_learned():
    """The false gain of the published protocol: base and treatment are both random scores."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(600), 8)
    table = rated(rows, rng.integers(1, 6, rows.size), rng.random(rows.size))
    lengths = rng.integers(10, 60, 600)
    change = published_change(table, rng.random(rows.size), lengths, 1000)
    # About half of all inactive users are weak; of those a new draw leaves about half, and lifts the mean.
    assert change.control < 0.65 * change.before
    assert change.auc_control > change.auc_before + 0.03
    # The "treatment" is as good as the control, and the sentence shows both.
    assert abs(change.after - change.control) < 5 * change.control_sd
    assert f"{change.before} -> {change.after}" in str(change) and "a random order" in str(change)
    with pytest.raises(ConfigError, match="at least 1 random order, not 0"):
        published_change(table, table.scores, lengths, 1000, draws=0)


def test_no_warning_from_the_parts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label(rated([0, 0], [1, 2], [1, 2]), np.array([5]), 10)
