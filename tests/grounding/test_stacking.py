"""The stack: against scikit-learn, a naive cross-validation, and invariances."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.pointwise import auc, calibration_error
from frugalrec.grounding.stacking import Scale, Stacker, logistic_regression


def draw(n=120, seed=0):
    """Two signals that matter, one that does not, labels from the first two, and users of unlike size."""
    rng = np.random.default_rng(seed)
    signals = {"llm": rng.normal(3, 2, n), "rate": rng.normal(-1, 0.1, n), "noise": rng.normal(size=n)}
    odds = 0.8 * (signals["llm"] - 3) + 10 * (signals["rate"] + 1)
    labels = rng.random(n) < 1 / (1 + np.exp(-odds))
    return signals, labels, np.minimum(rng.geometric(0.2, n), 12)


def oracle(columns, labels, l2):
    model = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    return model.fit(columns, labels)


@pytest.mark.parametrize("l2", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_regression_equals_scikit_learn(l2, seed):
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(60, 4)) * [1, 5, 0.2, 1]
    labels = rng.random(60) < 1 / (1 + np.exp(-columns[:, 0] - 2))
    weights, intercept = logistic_regression(columns, labels, l2)
    expected = oracle(columns, labels, l2)
    np.testing.assert_allclose(weights, expected.coef_[0], atol=1e-6)
    assert intercept == pytest.approx(expected.intercept_[0], abs=1e-6)


def test_regression_survives_separable_labels_and_wild_columns():
    columns = np.array([[-1e6], [-1.0], [1.0], [1e6]])
    labels = np.array([0, 0, 1, 1])
    weights, intercept = logistic_regression(columns, labels, 1e-3)
    chances = 1 / (1 + np.exp(-np.clip(columns @ weights + intercept, -500, 500)))
    gradient = columns.T @ (chances - labels) + 1e-3 * weights
    assert np.abs(gradient).max() < 1e-6 and abs((chances - labels).sum()) < 1e-6


def test_the_stack_is_the_naive_one():
    signals, labels, users = draw()
    stacked = Stacker(strengths=(1.0, 30.0), folds=4).fit(signals, labels, users)
    # Naive: deal users to folds, largest first; standardise and fit without the fold; mean log loss.
    sizes = {user: int((users == user).sum()) for user in set(users.tolist())}
    filled, home = [0] * 4, {}
    for user in sorted(sizes, key=lambda user: (-sizes[user], user)):
        home[user] = filled.index(min(filled))
        filled[home[user]] += sizes[user]
    losses, held_out = {}, {}
    for l2 in (1.0, 30.0):
        odds = np.empty(len(labels))
        for fold in range(4):
            inside = np.array([home[user] == fold for user in users.tolist()])
            raw = np.column_stack(list(signals.values()))
            mean, deviation = raw[~inside].mean(axis=0), raw[~inside].std(axis=0)
            model = oracle((raw[~inside] - mean) / deviation, labels[~inside], l2)
            odds[inside] = model.decision_function((raw[inside] - mean) / deviation)
        losses[l2] = np.mean(np.log(1 + np.exp(np.where(labels, -odds, odds))))
        held_out[l2] = odds
    assert stacked.losses == pytest.approx(losses, abs=1e-6)
    assert stacked.l2 == min(losses, key=losses.get) and stacked.log_loss == min(stacked.losses.values())
    np.testing.assert_allclose(stacked.held_out, held_out[stacked.l2], atol=1e-5)
    raw = np.column_stack(list(signals.values()))
    model = oracle((raw - raw.mean(axis=0)) / raw.std(axis=0), labels, stacked.l2)
    assert list(stacked.coefficients.values()) == pytest.approx(model.coef_[0].tolist(), abs=1e-6)
    np.testing.assert_allclose(
        stacked.score(signals),
        model.decision_function((raw - raw.mean(axis=0)) / raw.std(axis=0)),
        atol=1e-5,
    )


@pytest.mark.parametrize("by_user", [True, False])
def test_neither_the_order_of_rows_nor_the_unit_of_a_signal_matters(by_user):
    signals, labels, users = draw()
    signals["rate"][::7] = np.nan
    groups = users if by_user else None
    plain = Stacker().fit(signals, labels, groups)
    expected = plain.score(signals)
    order = np.random.default_rng(5).permutation(len(labels))
    shuffled = {name: values[order] for name, values in signals.items()}
    other = Stacker().fit(shuffled, labels[order], None if groups is None else groups[order])
    assert other.losses == pytest.approx(plain.losses, abs=1e-9)
    np.testing.assert_allclose(other.score(signals), expected, atol=1e-8)
    np.testing.assert_allclose(other.held_out, plain.held_out[order], atol=1e-8)
    units = {"llm": 5 - 0.001 * signals["llm"], "rate": 1e6 * signals["rate"], "noise": signals["noise"]}
    again = Stacker().fit(units, labels, groups)
    assert again.losses == pytest.approx(plain.losses, abs=1e-7)
    np.testing.assert_allclose(again.score(units), expected, atol=1e-6)
    assert again.coefficients["llm"] == pytest.approx(-plain.coefficients["llm"], abs=1e-6)


def test_users_stay_together():
    # A signal that names the user tells all about rows of a known user, and nothing about a new one.
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(12), 10)
    signals = {f"is user {user}": (users == user).astype(float) for user in range(12)}
    labels = rng.random(12)[users] > 0.5
    apart = Stacker(strengths=(0.1,)).fit(signals, labels, users).log_loss
    mixed = Stacker(strengths=(0.1,)).fit(signals, labels).log_loss
    assert mixed < 0.4 < 0.6 < apart


def test_what_matters_gets_the_weight_and_chances_are_meant():
    signals, labels, users = draw(4000)
    stacked = Stacker().fit(signals, labels, users)
    assert stacked.coefficients["llm"] == pytest.approx(1.6, abs=0.15)  # 0.8 a unit, 2 units a deviation
    assert stacked.coefficients["rate"] == pytest.approx(1.0, abs=0.15)
    assert abs(stacked.coefficients["noise"]) < 0.1
    test, answers, _ = draw(4000, seed=1)
    odds = stacked.score(test)
    assert auc(odds, answers) > auc(test["llm"], answers) + 0.02
    assert calibration_error(1 / (1 + np.exp(-odds)), answers) < 0.03


def test_missing_values_count_as_average_and_are_flagged():
    values = np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0]])
    scale = Scale.learn(["a", "b"], values)
    assert scale.columns == ("a", "b", "a is missing")
    assert scale.apply(values).tolist() == [[-1, 0, 0], [0, 0, 1], [1, 0, 0]]
    # A value that was never missing in the fit has no flag; all missing counts as average.
    whole = Scale.learn(["a"], np.array([[1.0], [3.0]]))
    assert whole.apply(np.array([[np.nan], [4.0]])).tolist() == [[0.0], [2.0]]
    never = Scale.learn(["a"], np.full((3, 1), np.nan))
    assert never.columns == ("a",) and never.apply(np.array([[7.0]])).tolist() == [[7.0]]


def test_absence_can_be_informative():
    signals, labels, _ = draw(400)
    signals["llm"] = np.where(labels & (np.arange(400) % 2 == 0), np.nan, 0.0)
    stacked = Stacker().fit(signals, labels)
    assert stacked.coefficients["llm is missing"] > 1
    row = {"llm": [np.nan, 0.0], "rate": [-1.0, -1.0], "noise": [0.0, 0.0]}
    present, absent = stacked.score({name: np.array(value) for name, value in row.items()})[::-1]
    assert absent > present + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signals": {}}, "at least one signal"),
        ({"signals": {"a": np.ones(3), "b": np.ones(4)}}, "one number a row"),
        ({"signals": {"a": np.full(120, np.inf)}}, "'a' is infinite"),
        ({"labels": np.ones(3)}, r"shape \(3,\), but the signals have 120"),
        ({"labels": np.full(120, 2)}, r"0 or 1, not \[2\]"),
        ({"labels": np.ones(120)}, "do not suffice"),
        ({"groups": np.zeros(120)}, "5 folds by user"),
        ({"groups": np.zeros(7)}, "groups have shape"),
    ],
)
def test_unfit_rows_are_refused(change, message):
    signals, labels, users = draw()
    with pytest.raises(DataError, match=message):
        Stacker().fit(**{"signals": signals, "labels": labels, "groups": users} | change)


def test_misuse_is_explained():
    signals, labels, _ = draw()
    for options in ({"strengths": ()}, {"strengths": (0.0, 1.0)}, {"folds": 1}):
        with pytest.raises(ConfigError, match="strengths above 0 and at least 2 folds"):
            Stacker(**options).fit(signals, labels)
    stacked = Stacker().fit(signals, labels)
    with pytest.raises(DataError, match="rate is not given"):
        stacked.score({"llm": signals["llm"]})
