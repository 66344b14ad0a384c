import numpy as np
import pytest

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.factors import ALS, BPR, products
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset


class TestALS(RecommenderContract):
    def make(self) -> Recommender:
        return ALS(factors=8, iterations=3)


class TestBPR(RecommenderContract):
    def make(self) -> Recommender:
        return BPR(factors=8, iterations=5)


def test_als_solves_each_users_factors_exactly() -> None:
    data = cycle_dataset(noise=0.3)
    model = ALS(factors=6, iterations=2, regularization=0.3, alpha=2.0)
    model.fit(data)
    y = model.item_factors_.astype(np.float64)
    for user in (0, 11):
        taken = np.unique(data.history(user))
        confidence = np.ones(data.n_items)
        confidence[taken] = 2.0
        preference = np.isin(np.arange(data.n_items), taken).astype(np.float64)
        # Hu et al. 2008, eq. 4: x_u = (Y' C Y + reg I)^-1 Y' C p
        left = y.T @ (confidence[:, None] * y) + 0.3 * np.eye(6)
        expected = y @ np.linalg.solve(left, y.T @ (confidence * preference))
        np.testing.assert_allclose(model.score(np.array([user]))[0], expected, rtol=1e-3, atol=1e-4)


def test_als_follows_a_longer_history_without_refitting() -> None:
    parts = split(cycle_dataset(noise=0.0), "leave-last-out")
    model = ALS(factors=8, iterations=3).fit(parts.train)
    users = parts.users("test")
    changed = model.score(users, parts.history("test")) != model.score(users)
    assert changed.any(axis=1).all()


def test_als_does_not_depend_on_the_threads() -> None:
    data, users = cycle_dataset(), np.arange(20)
    one = ALS(factors=8, iterations=3, threads=1).fit(data).score(users)
    two = ALS(factors=8, iterations=3, threads=2).fit(data).score(users)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", [ALS, BPR])
def test_another_seed_gives_another_model(kind) -> None:
    data, users = cycle_dataset(), np.arange(20)
    first, other = (kind(factors=8, iterations=2, seed=seed).fit(data).score(users) for seed in (0, 1))
    assert not np.allclose(first, other)


def test_bpr_keeps_fitted_users_and_folds_in_newcomers() -> None:
    data = cycle_dataset(noise=0.3)
    train = data.where(data.rows != 5)
    model = BPR(factors=8, iterations=5)
    model.fit(train)
    users, items = model.user_factors_.astype(np.float64), model.item_factors_.astype(np.float64)
    known = model.score(np.array([4]), data)[0]
    np.testing.assert_allclose(known, items @ users[4], rtol=1e-4, atol=1e-5)
    # The newcomer: mean over its items of the mean factors of their training users.
    matrix = train.matrix().toarray().astype(bool)
    audience = [users[matrix[:, item]].mean(axis=0) for item in np.unique(data.history(5))]
    expected = items @ np.mean(audience, axis=0)
    np.testing.assert_allclose(model.score(np.array([5]), data)[0], expected, rtol=1e-4, atol=1e-5)
    # Without any history: the mean training user.
    mean = users[np.arange(data.n_users) != 5].mean(axis=0)
    np.testing.assert_allclose(model.score(np.array([5]))[0], items @ mean, rtol=1e-4, atol=1e-5)


def test_bpr_ignores_items_without_training_users_when_folding_in() -> None:
    data = cycle_dataset(noise=0.0)
    newcomer = 5
    cold = int(data.history(newcomer)[0])
    train = data.where((data.rows != newcomer) & (data.items != cold))
    model = BPR(factors=8, iterations=3).fit(train)
    with_cold = data.where(data.rows == newcomer)
    without = with_cold.where(with_cold.items != cold)
    np.testing.assert_array_equal(
        model.score(np.array([newcomer]), with_cold), model.score(np.array([newcomer]), without)
    )


def test_products_round_alike_for_any_number_of_users() -> None:
    rng = np.random.default_rng(0)
    left = rng.standard_normal((150, 33)).astype(np.float32)
    right = rng.standard_normal((311, 33)).astype(np.float32)
    whole = products(left, right)
    np.testing.assert_allclose(whole, left.astype(np.float64) @ right.T.astype(np.float64), atol=1e-4)
    for start, stop in ((0, 1), (3, 60), (64, 150), (149, 150)):
        np.testing.assert_array_equal(products(left[start:stop], right), whole[start:stop])


@pytest.mark.parametrize("model", [ALS(factors=0), ALS(alpha=0), BPR(iterations=0), BPR(regularization=-1)])
def test_senseless_options_are_refused(model) -> None:
    with pytest.raises(ConfigError):
        model.fit(cycle_dataset())


@pytest.mark.parametrize(
    "model", [ALS(factors=16, iterations=10), BPR(factors=16, iterations=300, learning_rate=0.1)]
)
def test_factor_models_beat_random_order_on_the_ring(model) -> None:
    parts = split(cycle_dataset(n_users=200, n_items=40, noise=0.0), "leave-last-out")
    users = parts.users("valid")
    lists = model.fit(parts.train).recommend(users, 2).items
    hits = (lists == parts.valid.items[parts.valid.indptr[users]][:, None]).any(axis=1).mean()
    # Random order among the 30 unseen items would find 2 / 30 = 0.07.
    assert hits > 0.3
