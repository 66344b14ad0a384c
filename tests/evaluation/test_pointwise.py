import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.pointwise import auc, log_loss, user_auc


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
