import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.pointwise import (
    auc,
    auc_interval,
    calibration_error,
    log_loss,
    user_auc,
    user_auc_interval,
)
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


@pytest.mark.slow
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


def test_calibration_error_by_hand():
    # Bins of width 1/2: {0.2, 0.4} with one positive, gap |0.3 - 0.5| over 2 rows; {0.5, 1.0} with
    # two, gap |0.75 - 1| over 2 rows; 0.5 belongs to the upper bin and 1.0 to the last one.
    chances, labels = np.array([0.2, 0.4, 0.5, 1.0]), np.array([0, 1, 1, 1])
    assert calibration_error(chances, labels, bins=2) == pytest.approx((2 * 0.2 + 2 * 0.25) / 4)
    assert calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    assert calibration_error(np.array([0.0, 1.0]), np.array([1, 0])) == 1
    assert np.isnan(calibration_error(np.array([]), np.array([])))
    with pytest.raises(DataError, match=r"calibration_error needs probabilities"):
        calibration_error(np.array([1.5]), np.array([1]))
    with pytest.raises(ConfigError, match="bins must be at least 1, not 0"):
        calibration_error(chances, labels, bins=0)


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=30)
def test_calibration_error_is_the_naive_one(seed, bins):
    rng = np.random.default_rng(seed)
    chances, labels = rng.random(50), rng.integers(2, size=50)
    total = 0.0
    for number in range(bins):
        inside = [i for i in range(50) if number <= chances[i] * bins < number + 1]
        if inside:
            total += len(inside) / 50 * abs(np.mean(chances[inside]) - np.mean(labels[inside]))
    assert calibration_error(chances, labels, bins=bins) == pytest.approx(total)
    order = rng.permutation(50)
    assert calibration_error(chances[order], labels[order], bins=bins) == pytest.approx(total)


def test_interval_within_users_weighs_by_rows_and_leaves_out_users_of_one_label():
    users = np.repeat([3, 5, 9], [4, 8, 2])
    labels = np.array([0, 1, 0, 1, *[0, 1] * 4, 1, 1])
    scores = np.random.default_rng(0).normal(size=14)
    found = user_auc_interval(scores, labels, users, resamples=500)
    values = user_auc(scores, labels, users)
    assert found.n == 2
    assert found.mean == pytest.approx(values.mean())
    one, other = values.values[:2]
    # two users: a draw holds one of them twice, or both; so the bounds are the users' own values
    assert (found.low, found.high) == pytest.approx((min(one, other), max(one, other)))
    both = user_auc_interval(np.stack([scores, -scores]), labels, users, resamples=10)
    assert both.mean == pytest.approx(0.5)
    assert np.isnan(user_auc_interval(scores[-2:], labels[-2:], users[-2:]).mean)


def test_interval_of_an_auc_needs_rows():
    with pytest.raises(DataError, match="there are none"):
        auc_interval(np.empty(0), np.empty(0))
