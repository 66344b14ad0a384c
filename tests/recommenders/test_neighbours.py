import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import neighbours
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.neighbours import EASE, ItemKNN
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset


class TestItemKNN(RecommenderContract):
    def make(self) -> Recommender:
        return ItemKNN(k=5, shrink=1.0)


class TestEASE(RecommenderContract):
    def make(self) -> Recommender:
        return EASE(reg=5.0)


@pytest.mark.parametrize(("k", "shrink"), [(3, 0.0), (6, 2.5), (100, 0.0)])
def test_item_knn_agrees_with_loops(k, shrink) -> None:
    data = cycle_dataset(noise=0.4, seed=1)
    takers = [set(data.rows[data.items == item].tolist()) for item in range(data.n_items)]
    expected = np.zeros((data.n_items, data.n_items))
    for i in range(data.n_items):
        similar = []
        for j in range(data.n_items):
            both = len(takers[i] & takers[j])
            if i != j and both:
                similar.append((-both / (np.sqrt(len(takers[i]) * len(takers[j])) + shrink), j))
        for value, j in sorted(similar)[:k]:
            expected[i, j] = -value
    scores = ItemKNN(k=k, shrink=shrink).fit(data).score(np.arange(data.n_users))
    for user in range(data.n_users):
        # Rounding may swap neighbours of equal similarity, which leaves the sums over a row alone.
        wanted = sum(expected[i] for i in set(data.history(user).tolist()))
        assert scores[user].sum() == pytest.approx(wanted.sum(), rel=1e-5)
        if k >= data.n_items:
            np.testing.assert_allclose(scores[user], wanted, rtol=1e-5)


def test_item_knn_does_not_depend_on_the_block(monkeypatch) -> None:
    data, users = cycle_dataset(noise=0.4), np.arange(20)
    whole = ItemKNN(k=4).fit(data).score(users)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    np.testing.assert_array_equal(ItemKNN(k=4).fit(data).score(users), whole)


def test_item_knn_keeps_at_most_k_neighbours_and_never_the_item_itself() -> None:
    model = ItemKNN(k=4)
    model.fit(cycle_dataset(noise=0.4))
    assert np.diff(model.similarity_.indptr).max() <= 4
    assert not model.similarity_.diagonal().any()
    assert model.similarity_.data.min() > 0


@given(reg=st.floats(0.5, 500), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_ease_agrees_with_the_formula(reg, seed) -> None:
    data = cycle_dataset(noise=0.4, seed=seed)
    x = data.matrix().toarray().astype(np.float64)
    p = np.linalg.inv(x.T @ x + reg * np.eye(data.n_items))
    b = -p / np.diag(p)[None, :]
    np.fill_diagonal(b, 0)
    scores = EASE(reg=reg).fit(data).score(np.arange(data.n_users))
    np.testing.assert_allclose(scores, x @ b, rtol=2e-3, atol=2e-4)


def test_ease_minimises_the_penalised_error_with_zero_diagonal() -> None:
    # The optimality condition of the constrained problem: the gradient vanishes off the diagonal.
    data = cycle_dataset(noise=0.4)
    x = data.matrix().toarray().astype(np.float64)
    model = EASE(reg=20.0)
    model.fit(data)
    b = model.weights_.astype(np.float64)
    gradient = x.T @ (x @ b - x) + 20.0 * b
    off = gradient[~np.eye(data.n_items, dtype=bool)]
    assert np.abs(off).max() < 1e-3
    assert not np.diag(b).any()
    assert model.weights_.flags.c_contiguous  # or every batch of scores would copy it


def test_ease_does_not_depend_on_the_block(monkeypatch) -> None:
    data, users = cycle_dataset(noise=0.4), np.arange(20)
    whole = EASE(reg=3).fit(data).score(users)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    np.testing.assert_array_equal(EASE(reg=3).fit(data).score(users), whole)


def test_ease_refuses_a_catalogue_above_its_limit() -> None:
    with pytest.raises(DataError, match="max_items"):
        EASE(max_items=10).fit(cycle_dataset())


@pytest.mark.parametrize("model", [ItemKNN(k=0), ItemKNN(shrink=-1), EASE(reg=0)])
def test_senseless_options_are_refused(model) -> None:
    with pytest.raises(ConfigError):
        model.fit(cycle_dataset())


@pytest.mark.parametrize("model", [ItemKNN(k=10), EASE(reg=5.0)])
def test_neighbour_models_beat_random_order_on_the_ring(model) -> None:
    parts = split(cycle_dataset(n_users=200, n_items=40, noise=0.0), "leave-last-out")
    users = parts.users("test")
    lists = model.fit(parts.train).recommend(users, 2, histories=parts.history("test")).items
    hits = (lists == parts.test.items[parts.test.indptr[users]][:, None]).any(axis=1).mean()
    # Random order among the 29 unseen items would find 2 / 29 = 0.07.
    assert hits > 0.4
