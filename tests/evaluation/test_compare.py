import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.compare import average_seeds, difference, interval, paired
from frugalrec.types import Evaluation


def arm(name, users, values, metric="m"):
    return Evaluation(
        arm=name, users=np.array(users, dtype=np.int32), values={metric: np.array(values, dtype=float)}
    )


def naive_bootstrap(values, resamples, seed):
    rng = np.random.default_rng(seed)
    return np.quantile([rng.choice(values, values.size).mean() for _ in range(resamples)], [0.025, 0.975])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["few distinct values", "all distinct"])
def test_interval_agrees_with_drawing_users_one_by_one(kind):
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.2) / np.log2(2 + rng.integers(1, 4, 400))
    if kind == "all distinct":
        values = rng.gamma(2.0, size=400)
    ours = interval(values, resamples=8000, seed=1)
    low, high = naive_bootstrap(values, 8000, 2)
    spread = high - low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(low, abs=0.06 * spread)
    assert ours.high == pytest.approx(high, abs=0.06 * spread)
    # Second oracle: the normal approximation, mean +- 1.96 standard errors.
    error = 1.96 * values.std() / np.sqrt(values.size)
    assert spread == pytest.approx(2 * error, rel=0.1)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_the_order_of_users_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    a = arm("a", rng.permutation(50), rng.integers(3, size=50) / 2)
    b = arm("b", rng.permutation(50), rng.integers(3, size=50) / 2)
    order = rng.permutation(50)
    moved = arm("a", a.users[order], a.values["m"][order])
    assert difference(a, b, "m", resamples=200) == difference(moved, b, "m", resamples=200)
    assert interval(a.values["m"], resamples=200) == interval(moved.values["m"], resamples=200)


def test_seeds_decide_the_draws():
    values = np.random.default_rng(0).random(30)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_undefined_users_are_left_out():
    assert interval(np.array([1.0, np.nan, 1.0])).to_dict() == {
        "mean": 1.0, "low": 1.0, "high": 1.0, "level": 0.95, "n": 2
    }  # fmt: skip
    nothing = interval(np.array([np.nan]))
    assert nothing.n == 0
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_pairs_are_users_defined_in_both():
    a = arm("a", [4, 1, 2, 9], [0.4, 0.1, np.nan, 0.9])
    b = arm("b", [1, 9, 2, 5], [0.3, 0.7, 0.5, 0.0])
    first, second = paired(a, b, "m")
    assert first.tolist() == [0.1, 0.9]
    assert second.tolist() == [0.3, 0.7]
    result = difference(a, b, "m")
    assert (result.n, result.wins, result.losses) == (2, 0.5, 0.5)
    assert result.mean == pytest.approx((0.1 - 0.3 + 0.9 - 0.7) / 2)
    assert (result.mean_a, result.mean_b) == (0.5, 0.5)
    json.dumps(result.to_dict())


def test_a_clear_gain_excludes_zero_and_its_mirror_mirrors():
    rng = np.random.default_rng(0)
    base = rng.random(300)
    a, b = arm("a", range(300), base + 0.05 + 0.1 * rng.standard_normal(300)), arm("b", range(300), base)
    forth, back = difference(a, b, "m"), difference(b, a, "m")
    assert 0 < forth.low < forth.mean < forth.high
    assert forth.p_value == pytest.approx(2 / 2001)
    assert back.mean == -forth.mean
    assert back.high < 0
    assert (back.wins, back.losses) == (forth.losses, forth.wins)


def test_equal_arms_differ_by_nothing():
    a = arm("a", range(5), [0, 1, 0, 1, 1])
    result = difference(a, arm("b", range(5), a.values["m"]), "m")
    assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1.0)


@pytest.mark.slow
def test_without_a_difference_five_percent_of_intervals_miss_zero():
    rng = np.random.default_rng(7)
    missed = 0
    for trial in range(400):
        a, b = arm("a", range(80), rng.random(80)), arm("b", range(80), rng.random(80))
        result = difference(a, b, "m", resamples=400, seed=trial)
        missed += not result.low <= 0 <= result.high
        assert (result.p_value < 0.04) <= (not result.low <= 0 <= result.high)
    # Expected 20 of 400, standard deviation 4.4 (and a little more, as n is only 80).
    assert 8 <= missed <= 38


def test_seeds_are_averaged_user_by_user():
    runs = [arm("a", [3, 1, 2], [0.3, 0.1, np.nan]), arm("a", [1, 2, 3, 7], [0.3, 0.2, 0.5, 1.0])]
    result = average_seeds(runs)
    assert result.users.tolist() == [1, 2, 3]
    np.testing.assert_allclose(result.values["m"], [0.2, np.nan, 0.4])
    assert result.details["n_seeds"] == 2
    assert result.details["seed_means"]["m"] == pytest.approx([0.2, 0.5])
    assert result.details["seed_sd"]["m"] == pytest.approx(np.std([0.2, 0.5], ddof=1))
    assert average_seeds(runs[:1]).details["seed_sd"]["m"] is None


def test_bad_input_is_named():
    a, b = arm("a", [1], [0.5]), arm("b", [2], [0.5])
    with pytest.raises(DataError, match="share no user"):
        difference(a, b, "m")
    with pytest.raises(DataError, match="has no 'auc'; it has m"):
        difference(a, b, "auc")
    with pytest.raises(ConfigError, match=r"got 95"):
        interval(np.array([1.0]), level=95)
    with pytest.raises(ConfigError, match="resamples must be at least 1"):
        interval(np.array([1.0]), resamples=0)
    with pytest.raises(DataError, match=r"\['a', 'b'\]"):
        average_seeds([a, b])
    with pytest.raises(DataError, match=r"\[\]"):
        average_seeds([])
