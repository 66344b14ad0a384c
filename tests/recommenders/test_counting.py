import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.counting import LikeRate, Markov, history_like_rate, item_like_rate
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset


class TestMarkov(RecommenderContract):
    def make(self) -> Recommender:
        return Markov()


class TestMarkovWithoutFallback(RecommenderContract):
    def make(self) -> Recommender:
        return Markov(fallback=False)


class TestLikeRate(RecommenderContract):
    def make(self) -> Recommender:
        return LikeRate(prior=2.0)


def rated() -> Dataset:
    frame = pl.DataFrame(
        {
            "user": ["a", "a", "a", "b", "b"],
            "item": ["x", "y", "z", "x", "y"],
            "value": [5.0, 1.0, 4.0, 3.0, 2.0],
        }
    )
    return Dataset.from_frames(frame, pl.DataFrame({"item": ["x", "y", "z", "new"]}), name="rated")


def codes(ids: np.ndarray, *wanted: str) -> np.ndarray:
    return np.array([int(np.flatnonzero(ids == one)[0]) for one in wanted])


def test_markov_counts_direct_successors() -> None:
    frame = pl.DataFrame({"user": list("aaaabbbc"), "item": list("xyxzxyzx")})
    data = Dataset.from_frames(frame, name="chain")
    x, y, z = codes(data.item_ids, "x", "y", "z")
    c = codes(data.user_ids, "c")
    # a: x>y y>x x>z; b: x>y y>z. After x: y twice, z once. Counts x 4, y 2, z 2; 4 + 1 = 5.
    score = Markov().fit(data).score(c)[0]
    assert score[y] == pytest.approx(2 + 2 / 5)
    assert score[z] == pytest.approx(1 + 2 / 5)
    assert score[x] == pytest.approx(4 / 5)
    assert Markov(fallback=False).fit(data).score(c)[0][[x, y, z]].tolist() == [0, 2, 1]


def test_markov_agrees_with_a_loop_over_the_sequences() -> None:
    data = cycle_dataset(noise=0.5, seed=4)
    expected = np.zeros((data.n_items, data.n_items))
    for user in range(data.n_users):
        history = data.history(user).tolist()
        for before, after in zip(history, history[1:], strict=False):
            expected[before, after] += 1
    users = np.arange(data.n_users)
    last = [data.history(user)[-1] for user in users]
    np.testing.assert_array_equal(Markov(fallback=False).fit(data).score(users), expected[last])


def test_markov_solves_the_ring() -> None:
    parts = split(cycle_dataset(noise=0.0), "leave-last-out")
    users = parts.users("test")
    top = Markov().fit(parts.train).recommend(users, 1, histories=parts.history("test")).items[:, 0]
    assert np.mean(top == parts.test.items[parts.test.indptr[users]]) == 1.0


def test_markov_gives_a_user_without_history_the_popular_items() -> None:
    data = cycle_dataset(seed=2)
    train = data.where(data.rows != 7)
    best = Markov().fit(train).recommend(np.array([7]), 3).items[0]
    assert best.tolist() == np.argsort(-train.item_counts, kind="stable")[:3].tolist()


def test_history_like_rate_is_the_share_of_liked_items() -> None:
    data = rated()
    users = codes(data.user_ids, "a", "b")
    # a likes x (5) and z (4) of 3; b likes none of 2
    np.testing.assert_allclose(history_like_rate(data, users), [2 / 3, 0])
    # from 3 on: a the same, b also x: 1 of 2
    np.testing.assert_allclose(history_like_rate(data, users, threshold=3.0), [2 / 3, 1 / 2])


def test_history_like_rate_of_a_newcomer_is_the_average() -> None:
    data = rated()
    a, b = codes(data.user_ids, "a", "b")
    only_a = data.where(data.rows == a)
    np.testing.assert_allclose(history_like_rate(only_a, np.array([b])), [2 / 3])
    nothing = data.where(np.zeros(data.n, dtype=bool))
    np.testing.assert_allclose(history_like_rate(nothing, np.array([b])), [0.5])


def test_item_like_rate_is_smoothed_towards_the_average() -> None:
    data = rated()
    # liked: x 1 of 2, y 0 of 2, z 1 of 1; average 2/5; prior 5: (likes + 2) / (n + 5)
    expected = [3 / 7, 2 / 7, 3 / 6, 2 / 5]
    np.testing.assert_allclose(item_like_rate(data)[codes(data.item_ids, "x", "y", "z", "new")], expected)


def test_like_rate_adds_both_rates() -> None:
    data = rated()
    a, x = codes(data.user_ids, "a")[0], codes(data.item_ids, "x")[0]
    assert LikeRate().fit(data).score(np.array([a]))[0, x] == pytest.approx(2 / 3 + 3 / 7)


def test_like_rates_need_values_and_a_prior() -> None:
    data = rated()
    implicit = Dataset.from_frames(data.to_frames()[0].drop("value"), name="clicks")
    with pytest.raises(DataError, match="clicks has no values"):
        LikeRate().fit(implicit)
    with pytest.raises(ConfigError, match="prior"):
        LikeRate(prior=0).fit(data)
