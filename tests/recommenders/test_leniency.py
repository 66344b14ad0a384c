"""Leniency and quality: against a general optimiser, by hand, and on the published movie split."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from frugalrec.data.likes import ratings
from frugalrec.data.readers.tallrec import PointwiseRows, parse_prompts, read_prompts, rebuild_movie_split
from frugalrec.errors import ConfigError, DataError, NotFittedError
from frugalrec.evaluation.pointwise import auc
from frugalrec.recommenders.leniency import Leniency
from frugalrec.rng import generator


class Embedder:
    def embed(self, texts):
        rows = [generator(0, text).standard_normal(3) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 3)


def draw(n=40, seed=0, catalogue=15):
    """Rows of users who forgive more or less, on titles that are worth more or less."""
    rng = np.random.default_rng(seed)
    worth = generator(9, "worth").normal(size=catalogue) * 1.5
    liked, disliked, targets, labels = [], [], [], []
    for _ in range(n):
        leniency, chosen = rng.normal() * 1.5, rng.permutation(catalogue)[: 2 + rng.integers(6)]
        marks = rng.random(len(chosen)) < 1 / (1 + np.exp(-leniency - worth[chosen]))
        liked.append(tuple(f"film {i}" for i, like in zip(chosen[1:], marks[1:], strict=True) if like))
        disliked.append(tuple(f"film {i}" for i, like in zip(chosen[1:], marks[1:], strict=True) if not like))
        targets.append(f"film {chosen[0]}")
        labels.append(bool(marks[0]))
    return PointwiseRows(
        liked=tuple(liked), disliked=tuple(disliked), targets=tuple(targets), labels=np.array(labels)
    )


@pytest.mark.parametrize("text", [False, True])
def test_the_fit_is_the_maximum_that_a_general_optimiser_finds(text):
    rows = draw()
    model = Leniency(user_variance=0.7, title_variance=0.4, embedder=Embedder() if text else None).fit(rows)
    known = ratings(rows)
    titles = sorted(set(known.titles))
    place = np.array([titles.index(title) for title in known.titles])
    raw = Embedder().embed(titles).astype(float) if text else np.empty((len(titles), 0))
    features = raw - raw.mean(axis=0)
    users, width = known.raters.max() + 1, features.shape[1]
    variances = np.concatenate([[100.0], [0.7] * users, [2.0] * width, [0.4] * len(titles)])
    signs = np.where(known.likes, 1.0, -1.0)

    def loss(at):
        overall, user, direction, own = np.split(at, [1, 1 + users, 1 + users + width])
        odds = overall + user[known.raters] + (own + features @ direction)[place]
        return np.logaddexp(0, -signs * odds).sum() + (at**2 / variances).sum() / 2

    best = minimize(
        loss, np.zeros(variances.size), method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15}
    )
    overall, _, direction, own = np.split(best.x, [1, 1 + users, 1 + users + width])
    assert model.overall_ == pytest.approx(overall[0], abs=2e-3)
    np.testing.assert_allclose(model.quality(titles), own + features @ direction, atol=2e-3)
    found = np.concatenate(
        [[model.overall_], np.zeros(users), model.directions_, [model.deviations_[t] for t in titles]]
    )
    found[1 : 1 + users] = best.x[1 : 1 + users]
    assert loss(found) <= best.fun + 1e-4


@pytest.mark.slow
def test_scores_are_sums_of_which_each_is_found_alone():
    rows, other = draw(), draw(25, seed=1, catalogue=20)
    other = dataclasses.replace(other, liked=((), *other.liked[1:]), disliked=((), *other.disliked[1:]))
    model = Leniency(user_variance=0.8, embedder=Embedder()).fit(rows)
    scores = model.score(other)
    grid = np.linspace(-6, 6, 120_001)
    for row in range(len(other)):
        value = -(grid**2) / (2 * 0.8)
        for titles, sign in ((other.liked[row], 1), (other.disliked[row], -1)):
            for title in titles:
                value -= np.logaddexp(0, -sign * (model.overall_ + grid + model.quality([title])[0]))
        forgiven = grid[np.argmax(value)]
        expected = model.overall_ + forgiven + model.quality([other.targets[row]])[0]
        assert scores[row] == pytest.approx(expected, abs=2e-4)
    assert model.leniency(other)[0] == 0
    order = np.random.default_rng(0).permutation(len(other))
    np.testing.assert_allclose(model.score(other.take(order)), scores[order], atol=1e-12)
    flipped = dataclasses.replace(other, labels=~other.labels)
    assert np.array_equal(model.score(flipped), scores)


def test_liking_what_nobody_likes_is_a_stronger_sign():
    rows = draw(200)
    model = Leniency().fit(rows)
    ranked = sorted(model.deviations_, key=lambda title: model.quality([title])[0])
    fans = PointwiseRows(
        liked=((ranked[0],), (ranked[-1],)), disliked=((), ()), targets=("x", "x"), labels=np.ones(2, bool)
    )
    harsh, easy = model.leniency(fans)
    assert harsh > easy + 0.1 > 0.1
    # More leniency shown is more leniency found; a dislike is the opposite of a like.
    again = dataclasses.replace(fans, liked=((), (ranked[-1], ranked[0])), disliked=((ranked[0],), ()))
    assert model.leniency(again)[0] < 0 < easy < model.leniency(again)[1]


def test_it_predicts_and_unseen_titles_lean_on_their_text():
    train, test = draw(400), draw(300, seed=5)
    model = Leniency().fit(train)
    assert auc(model.score(test), test.labels) > 0.8
    # Titles whose text says everything: the sign of the first coordinate.
    rng = np.random.default_rng(0)
    names = [f"title {i}" for i in rng.integers(1000, size=500)]
    rows = PointwiseRows(
        liked=((),) * 500,
        disliked=((),) * 500,
        targets=tuple(names),
        labels=Embedder().embed(names)[:, 0] > 0,
    )
    fresh = [f"never {i}" for i in range(200)]
    wanted = Embedder().embed(fresh)[:, 0] > 0
    assert auc(Leniency(embedder=Embedder()).fit(rows).quality(fresh), wanted) > 0.95
    assert set(Leniency().fit(rows).quality(fresh)) == {0.0}


def test_agreement_of_all_stays_finite():
    rows = dataclasses.replace(draw(10), labels=np.ones(10, bool), disliked=((),) * 10)
    model = Leniency().fit(rows)
    assert 0 < model.overall_ < 20 and np.isfinite(model.score(draw(5, seed=3))).all()


def test_misuse_is_explained():
    rows = draw(5)
    with pytest.raises(NotFittedError, match="call fit first"):
        Leniency().score(rows)
    with pytest.raises(DataError, match="no rows"):
        Leniency().fit(rows.take(np.array([], int)))
    with pytest.raises(ConfigError, match="text_variance must be above 0, not 0"):
        Leniency(text_variance=0).fit(rows)


@pytest.mark.slow
def test_the_movie_split(real_data):
    train = parse_prompts(json.loads(rebuild_movie_split(real_data / "ml-100k")["train"]))
    test = read_prompts(real_data / "tallrec-movie" / "test.json")
    # Above the sum of like-rates (76.1): one model weighs both.
    assert auc(Leniency().fit(train).score(test), test.labels) > 0.762
