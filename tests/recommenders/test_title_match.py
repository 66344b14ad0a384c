"""Words alone: title vectors of the latest items against all, and their share on top of another model."""

import numpy as np
import pytest

from frugalrec.data.simulate import film_club
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create
from frugalrec.recommenders.title_match import TitleMatch, best_share


@pytest.fixture(scope="module")
def folds():
    return split(film_club(n_members=60), "leave-last-out")


@pytest.fixture(scope="module")
def vectors(folds):
    found = np.random.default_rng(0).normal(size=(folds.train.n_items, 6)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[::7] = 0
    return found


def test_scores_are_those_of_a_loop(folds, vectors):
    history = folds.history("test")
    users = folds.users("test")[:15]
    found = TitleMatch(vectors=vectors, window=4, decay=0.5).fit(folds.train).score(users, history)
    for row, user in enumerate(users):
        query = np.zeros(6)
        for age, item in enumerate(history.history(int(user))[::-1][:4]):
            query += 0.5**age * vectors[item]
        raw = vectors @ query
        np.testing.assert_allclose(found[row], (raw - raw.mean()) / raw.std(), atol=1e-4)


def test_batches_and_order_of_users_do_not_matter(folds, vectors):
    model = TitleMatch(vectors=vectors).fit(folds.train)
    users = folds.users("test")[:9]
    whole = model.score(users)
    for row in range(9):
        np.testing.assert_allclose(model.score(users[row : row + 1])[0], whole[row], atol=1e-5)
    np.testing.assert_allclose(model.score(users[::-1]), whole[::-1], atol=1e-5)


def test_nothing_titled_is_nothing_said(folds, vectors):
    model = TitleMatch(vectors=np.zeros_like(vectors)).fit(folds.train)
    assert not model.score(folds.users("test")[:3]).any()
    equal = np.full_like(vectors, 6**-0.5)
    assert not TitleMatch(vectors=equal).fit(folds.train).score(folds.users("test")[:3]).any()


def test_scores_are_standard_scores_whatever_the_scale(folds, vectors):
    users = folds.users("test")[:8]
    found = TitleMatch(vectors=vectors).fit(folds.train).score(users)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-5)
    larger = TitleMatch(vectors=1_000 * vectors).fit(folds.train).score(users)
    np.testing.assert_allclose(larger, found, atol=1e-4)


def test_a_share_is_found_where_words_know_what_comes(folds, vectors):
    """Planted: a base that knows nothing, and a match that knows the held-out items."""
    n = folds.train.n_items
    truth = np.zeros((folds.train.n_users, n), dtype=np.float32)
    truth[folds.valid.rows, folds.valid.items] = 1
    noise = np.random.default_rng(1).normal(size=truth.shape).astype(np.float32)
    share, values = best_share(lambda u: noise[u], lambda u: truth[u], folds.valid, folds.train, (2.0, 20.0))
    assert share == 20.0
    assert values[20.0] == pytest.approx(1.0)
    assert values[0.0] < values[2.0] < 1
    worse, values = best_share(lambda u: truth[u], lambda u: noise[u], folds.valid, folds.train, (0.5, 2.0))
    assert worse == 0.0
    assert values[0.0] == pytest.approx(1.0)


def test_the_value_of_a_share_is_that_of_an_evaluation(folds, vectors):
    from frugalrec.evaluation.evaluate import evaluate_ranks
    from frugalrec.evaluation.ranks import target_ranks

    train, valid = folds.train, folds.valid
    base, match = create("popularity").fit(train), TitleMatch(vectors=vectors).fit(train)
    _, values = best_share(base.score, match.score, valid, train, (0.3,))

    def fused(users):
        return base.score(users) + np.float32(0.3) * match.score(users)

    users = folds.users("valid")
    ranks = target_ranks(fused, users, valid, seen=train)
    assert values[0.3] == pytest.approx(evaluate_ranks("", ranks, ["ndcg@10"]).mean("ndcg@10"), abs=1e-6)


def test_what_does_not_fit_is_refused(folds, vectors):
    with pytest.raises(DataError, match="title vectors for"):
        TitleMatch(vectors=vectors[:-1]).fit(folds.train)
    with pytest.raises(ConfigError, match="decay"):
        TitleMatch(vectors=vectors, decay=0.0).fit(folds.train)
    with pytest.raises(ConfigError, match="negative"):
        best_share(lambda u: None, lambda u: None, folds.valid, folds.train, (-0.1,))
