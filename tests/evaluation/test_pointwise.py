import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.pointwise import auc, auc_interval, log_loss, user_auc
from frugalrec.rng import generator


def rows(seed, levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 80))
    return (
        rng.integers(levels, size=n) / levels,
        rng.integers(2, size=n),
        rng.integers(3, 9, size=n),
        rng.permutation(n),
    )


def test_hand_computed_example():
    # User 7: positives .8 .3, negatives .3 .1: pairs 1, 1, 1/2, 1 of 4 = 3.5/4. User 2 has only positives.
    # User 5: positive .2 below negative .6: 0 of 1.
    scores = np.array([0.2, 0.8, 0.9, 0.3, 0.3, 0.6, 0.1])
    labels = np.array([1, 1, 1, 0, 1, 0, 0])
    users = np.array([5, 7, 2, 7, 7, 5, 7])
    result = user_auc(scores, labels, users)
    assert result.users.tolist() == [2, 5, 7]
    assert result.rows.tolist() == [1, 2, 4]
    assert result.n_undefined == 1
    np.testing.assert_allclose(result.values, [np.nan, 0, 3.5 / 4])
    assert result.mean() == pytest.approx((2 * 0 + 4 * 3.5 / 4) / 6)
    assert result.mean("users") == pytest.approx((0 + 3.5 / 4) / 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_equal_to_scikit_learn_in_any_row_order(seed, levels):
    scores, labels, users, order = rows(seed, levels)
    if 0 < labels.sum() < labels.size:
        assert auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
        assert auc(np.exp(3 * scores), labels.astype(bool)) == pytest.approx(auc(scores, labels))
    result = user_auc(scores, labels, users)
    for user, value in zip(result.users, result.values, strict=True):
        mine = users == user
        if labels[mine].min() == labels[mine].max():
            assert np.isnan(value)
        else:
            assert value == pytest.approx(sklearn_metrics.roc_auc_score(labels[mine], scores[mine]))
    shuffled = user_auc(scores[order], labels[order], users[order])
    np.testing.assert_array_equal(shuffled.values, result.values)
    chances = np.clip(scores, 0.01, 0.99)
    expected = sklearn_metrics.log_loss(labels, chances, labels=[0, 1])
    assert log_loss(chances, labels) == pytest.approx(expected)


def test_one_label_or_no_rows_are_undefined():
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))
    assert np.isnan(user_auc(np.array([0.1]), np.array([0]), np.array([3])).mean())
    assert np.isnan(user_auc(np.array([]), np.array([]), np.array([])).mean("users"))
    assert np.isnan(log_loss(np.array([]), np.array([])))


def test_a_sure_mistake_stays_finite():
    assert log_loss(np.array([0.0]), np.array([1])) == pytest.approx(-np.log(1e-15))


def test_bad_input_is_named():
    good = np.array([0.1, 0.2])
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        auc(np.array([0.1, np.nan]), np.array([0, 1]))
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        auc(good, np.array([1, 5]))
    with pytest.raises(DataError, match=r"labels \(3,\)"):
        auc(good, np.array([1, 0, 1]))
    with pytest.raises(DataError, match="one user a row"):
        user_auc(good, np.array([1, 0]), np.array([1]))
    with pytest.raises(DataError, match="probabilities"):
        log_loss(np.array([-0.5, 2.0]), np.array([1, 0]))
    with pytest.raises(ConfigError, match="choose rows or users"):
        user_auc(good, np.array([1, 0]), np.array([1, 1])).mean("pairs")


def test_interval_of_an_auc_draws_whole_users():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(12), 5)
    labels = rng.random(60) < 0.5
    scores = labels + rng.normal(size=60)
    found = auc_interval(scores, labels, users, resamples=300, seed=3)
    assert found.mean == pytest.approx(auc(scores, labels))
    assert found.n == 12
    # by hand: the same draws of users, rows repeated as often as their user was drawn
    counts = generator(3, "evaluation", "auc_interval").multinomial(12, np.full(12, 1 / 12), size=300)
    by_hand = [auc(np.repeat(scores, count[users]), np.repeat(labels, count[users])) for count in counts]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))
    order = rng.permutation(60)
    again = auc_interval(scores[order], labels[order], users[order], resamples=300, seed=3)
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    alone = auc_interval(scores, labels, resamples=300)
    assert alone.n == 60


def test_difference_of_aucs_is_paired_and_averages_runs():
    rng = np.random.default_rng(1)
    labels = rng.random(200) < 0.4
    noise = rng.normal(size=200)
    base = labels + noise
    better = np.stack([2 * labels + noise, 2.2 * labels + noise])
    found = auc_interval(better, labels, minus=base, resamples=400)
    assert found.mean == pytest.approx(
        (auc(better[0], labels) + auc(better[1], labels)) / 2 - auc(base, labels)
    )
    wide = auc_interval(better, labels, resamples=400)
    assert found.low > 0
    assert found.high - found.low < wide.high - wide.low + 0.05
    assert auc_interval(base, labels, minus=base).to_dict() | {"n": 0} == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "level": 0.95,
        "n": 0,
    }


def test_interval_of_an_auc_refuses_users_of_another_length():
    with pytest.raises(DataError, match="3 labels need as many users, not 2"):
        auc_interval(np.ones(3), np.array([0, 1, 0]), np.zeros(2))
