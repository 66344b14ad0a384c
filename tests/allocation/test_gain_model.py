import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.allocation.gain import FEWEST, GainModel, Gains, calibration_slice
from frugalrec.allocation.learners import STRENGTHS, fit_ridge, fit_trees
from frugalrec.allocation.signals import Signals, Standardiser
from frugalrec.errors import ConfigError, DataError, LeakError, MissingExtraError, NotFittedError
from frugalrec.types import Evaluation

NOBODY = np.array([], dtype=np.int32)


def world(n=400, features=6, slope=0.1, noise=0.3, seed=0):
    """Signals, and gains whose mean rises with the first signal by `slope`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features))
    truth = 0.02 + slope * x[:, 0]
    users = rng.permutation(10 * n)[:n].astype(np.int32)
    names = tuple(f"s{i}" for i in range(features))
    gains = Gains(users=users, values=truth + noise * rng.standard_normal(n), metric="ndcg@10", fold="valid")
    return Signals(users=users, names=names, values=x), gains, truth


# --- the slice


@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 50))
def test_slice_holds_every_level_of_activity_in_its_share(n_users, n, seed):
    rng = np.random.default_rng(seed)
    users = rng.permutation(1000)[:n_users]
    lengths = rng.integers(1, 30, n_users)
    drawn = calibration_slice(users, lengths, n, seed)
    assert drawn.size == min(n, n_users) == np.unique(drawn).size
    assert set(drawn) <= set(users.tolist())
    length = dict(zip(users.tolist(), lengths.tolist(), strict=True))
    own = np.array([length[user] for user in drawn.tolist()])
    for cut in (5, 10, 20):
        expected = (lengths <= cut).sum() * drawn.size / n_users
        assert abs((own <= cut).sum() - expected) <= 1 + 1e-9
    order = rng.permutation(n_users)
    assert calibration_slice(users[order], lengths[order], n, seed).tolist() == drawn.tolist()


def test_slice_draws_everybody_equally_often():
    users, lengths = np.arange(50), np.arange(50) % 7
    counts = np.zeros(50)
    for seed in range(600):
        counts[calibration_slice(users, lengths, 13, seed)] += 1
    # 600 draws with probability 13/50: mean 156, standard deviation 10.7; five of them
    assert (np.abs(counts - 156) < 54).all()


def test_slice_refuses_nonsense():
    with pytest.raises(ConfigError, match="at least 1 user, not 0"):
        calibration_slice([1, 2], [1, 1], 0)
    with pytest.raises(DataError, match="one length per user"):
        calibration_slice([1, 2], [1], 1)


# --- the ridge


@pytest.mark.parametrize("strength", [0.3, 10.0])
def test_leave_one_out_in_closed_form_equals_refitting(strength, monkeypatch):
    signals, gains, _ = world(n=40)
    x, y = Standardiser.fit(signals)(signals), gains.values
    monkeypatch.setattr("frugalrec.allocation.learners.STRENGTHS", (strength,))
    found = fit_ridge(x, y)
    errors = []
    for out in range(y.size):
        kept = np.arange(y.size) != out
        centre, mean = x[kept].mean(axis=0), y[kept].mean()
        z = x[kept] - centre
        weights = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y[kept] - mean))
        errors.append(y[out] - mean - (x[out] - centre) @ weights)
    assert found.loo_error == pytest.approx(np.mean(np.square(errors)))
    z = x - x.mean(axis=0)
    weights = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    np.testing.assert_allclose(found.weights, weights)
    inverse = np.linalg.inv(z.T @ z + strength * np.eye(z.shape[1]))
    np.testing.assert_allclose(found.covariance, found.loo_error * inverse)


def test_everybody_gets_the_mean_where_signals_say_nothing():
    signals, gains, _ = world(slope=0.0, seed=3)
    constant = Signals(users=signals.users, names=("c",), values=np.ones((400, 1)))
    found = GainModel().fit(constant, gains, test_users=NOBODY)
    estimate = found.predict(constant)
    np.testing.assert_allclose(estimate.mean, gains.values.mean())
    assert found.learned.strength == np.inf == STRENGTHS[-1]
    # The error of a mean: sd / sqrt(n), leave-one-out inflates it by n / (n - 1)
    np.testing.assert_allclose(estimate.se, gains.values.std() / np.sqrt(400) * 400 / 399)
    assert found.evidence.rank_correlation.mean == 0 and not found.evidence.predictable


def test_noise_shrinks_towards_the_mean_and_is_called_unpredictable():
    informative = 0
    for seed in range(6):
        signals, gains, _ = world(slope=0.0, seed=seed)
        model = GainModel(seed=seed).fit(signals, gains, test_users=NOBODY)
        assert model.predict(signals).mean.std() < 0.5 * 0.3 / np.sqrt(400) * np.sqrt(6) * 3
        informative += model.evidence.predictable
    assert informative <= 1  # a 2.5 % error each


def test_a_real_signal_is_found():
    signals, gains, truth = world()
    model = GainModel().fit(signals, gains, test_users=NOBODY)
    estimate = model.predict(signals)
    assert np.corrcoef(estimate.mean, truth)[0, 1] > 0.95
    assert model.evidence.predictable
    assert model.evidence.r2.low < model.evidence.r2.mean < model.evidence.r2.high
    assert "for whom can be predicted" in str(model.evidence)
    np.testing.assert_allclose(estimate.lower, estimate.mean - estimate.se)


@pytest.mark.slow
@pytest.mark.parametrize(("z", "nominal"), [(1.0, 0.841), (1.645, 0.95)])
def test_lower_bounds_cover_the_expected_gain(z, nominal):
    """One-sided coverage of the true expected gain, over worlds with no, weak, middling and strong signals."""
    covered = {slope: [] for slope in (0.0, 0.02, 0.08, 0.2)}
    for slope, shares in covered.items():
        for seed in range(150):
            signals, gains, truth = world(n=150, slope=slope, seed=int(1000 * slope) * 1000 + seed)
            x = Standardiser.fit(signals)(signals)
            mean, se = fit_ridge(x, gains.values)(x)
            shares.append((mean - z * se <= truth).mean())
    assert np.mean(list(covered.values())) == pytest.approx(nominal, abs=0.03)
    # The prior fits a signal of middling strength least: there the bound is a little bold.
    assert min(np.mean(shares) for shares in covered.values()) > nominal - 0.07


def test_out_of_fold_predictions_are_truly_out_of_fold():
    """Changing a user's outcome changes every prediction but those of the user's own fold."""
    signals, gains, _ = world(n=60)
    order = np.argsort(gains.users)
    first = GainModel(folds=5).fit(signals, gains, test_users=NOBODY)
    row = int(order[7])  # the eighth user in order of code
    moved = gains.values.copy()
    moved[row] += 3.0
    changed = Gains(users=gains.users, values=moved, metric=gains.metric, fold="valid")
    second = GainModel(folds=5).fit(signals, changed, test_users=NOBODY)
    same = np.isclose(first.evidence.out_of_fold, second.evidence.out_of_fold, atol=1e-12)
    assert same[row]
    assert same.sum() == 12  # 60 users in 5 folds: the user's fold, and no other


def test_result_does_not_depend_on_the_order_of_users():
    signals, gains, _ = world(n=80)
    order = np.random.default_rng(1).permutation(80)
    shuffled = Gains(users=gains.users[order], values=gains.values[order], metric=gains.metric, fold="valid")
    one = GainModel().fit(signals, gains, test_users=NOBODY)
    two = GainModel().fit(signals.at(gains.users[order][::-1]), shuffled, test_users=NOBODY)
    np.testing.assert_allclose(one.predict(signals).mean, two.predict(signals).mean)
    np.testing.assert_allclose(one.evidence.out_of_fold[order], two.evidence.out_of_fold)  # as given


# --- trees


def test_trees_find_a_step_and_their_errors_are_not_0():
    pytest.importorskip("lightgbm", reason="needs frugalrec[rank]")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    truth = np.where((x[:, 0] > 0) & (x[:, 1] > 0), 0.4, 0.0)  # no ridge can draw this corner
    y = truth + 0.2 * rng.standard_normal(400)
    trees = fit_trees(x, y)
    guess, se = trees(x)
    assert np.corrcoef(guess, truth)[0, 1] > 0.8 > np.corrcoef(fit_ridge(x, y)(x)[0], truth)[0, 1]
    assert (se > 0).all() and trees.slope > 0.5
    again, _ = fit_trees(x, y)(x)
    np.testing.assert_array_equal(guess, again)


@pytest.mark.slow
def test_trees_shrink_to_the_mean_without_a_signal():
    pytest.importorskip("lightgbm", reason="needs frugalrec[rank]")
    slopes, spreads = [], []
    for seed in range(6):
        signals, gains, _ = world(n=200, slope=0.0, seed=seed)
        trees = fit_trees(signals.values, gains.values, seed=seed)
        slopes.append(trees.slope)
        spreads.append(trees(signals.values)[0].std() / gains.values.std())
    # Chance alone lifts a slope above its error in one world of six.
    assert np.median(slopes) == 0 and np.mean(slopes) < 0.2
    assert np.median(spreads) < 1e-12


def test_trees_are_a_gain_model_too():
    pytest.importorskip("lightgbm", reason="needs frugalrec[rank]")
    signals, gains, truth = world(n=150, slope=0.3, noise=0.2)
    model = GainModel(method="trees", folds=2).fit(signals, gains, test_users=NOBODY)
    assert model.evidence.predictable
    estimate = model.predict(signals)
    assert np.corrcoef(estimate.mean, truth)[0, 1] > 0.8 and (estimate.se > 0).all()


def test_trees_without_their_library_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    signals, gains, _ = world(n=30)
    with pytest.raises(MissingExtraError, match=r"frugalrec\[rank\]"):
        GainModel(method="trees").fit(signals, gains, test_users=NOBODY)


# --- guards


def test_calibration_users_who_are_test_users_are_a_leak():
    signals, gains, _ = world(n=40)
    with pytest.raises(LeakError, match=f"1 calibration user.*code {gains.users[3]}, are test users too"):
        GainModel().fit(signals, gains, test_users=np.array([gains.users[3], 10**6]))
    late = Gains(users=gains.users, values=gains.values, metric="ndcg@10", fold="test")
    with pytest.raises(LeakError, match="come from the test fold"):
        GainModel().fit(signals, late, test_users=NOBODY)


def test_gains_pair_two_arms_by_user():
    def arm(name, users, values):
        return Evaluation(
            arm=name, users=np.array(users, dtype=np.int32), values={"ndcg@10": np.array(values)}
        )

    llm = arm("llm", [3, 1, 2, 9], [0.5, 0.2, np.nan, 1.0])
    cheap = arm("cheap", [1, 2, 3], [0.3, 0.1, 0.1])
    gains = Gains.between(llm, cheap, "ndcg@10", "valid")
    assert gains.users.tolist() == [1, 3]
    np.testing.assert_allclose(gains.at([3, 1]), [0.4, -0.1])
    with pytest.raises(DataError, match="no 'mrr'"):
        Gains.between(llm, cheap, "mrr", "valid")
    with pytest.raises(DataError, match="nothing of user 2"):
        gains.at([2])


def test_bad_input():
    signals, gains, _ = world(n=FEWEST - 1)
    with pytest.raises(DataError, match="too few for a gain model"):
        GainModel().fit(signals, gains, test_users=NOBODY)
    with pytest.raises(NotFittedError, match="call fit"):
        GainModel().predict(signals)
    with pytest.raises(ConfigError, match="'svm' of the gain model; choose ridge or trees"):
        GainModel(method="svm").fit(signals, gains, test_users=NOBODY)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 100), st.floats(-5, 5))
def test_units_of_signals_do_not_matter(seed, scale, shift):
    signals, gains, _ = world(n=50, seed=seed)
    other = Signals(users=signals.users, names=signals.names, values=signals.values * scale + shift)
    one = GainModel(folds=2).fit(signals, gains, test_users=NOBODY).predict(signals)
    two = GainModel(folds=2).fit(other, gains, test_users=NOBODY).predict(other)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-9)
    np.testing.assert_allclose(one.se, two.se, atol=1e-9)
