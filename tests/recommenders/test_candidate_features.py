"""Features by hand, and what they may not depend on."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create
from frugalrec.recommenders.candidate_features import candidate_features, scores_of
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

VISITS = {"a": "xyz", "b": "xy", "c": "yzw"}


def small(times=True):
    rows = [(user, item) for user, items in VISITS.items() for item in items]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    if times:
        frame = frame.with_columns(time=pl.Series(range(len(rows))))
    return Dataset.from_frames(frame, name="small")


def code(data, item):
    return int(np.flatnonzero(data.item_ids == item)[0])


def lists(data, users, rows):
    codes = [[code(data, item) if item else -1 for item in row] for row in rows]
    items = np.array(codes, dtype=np.int32)
    scores = np.where(items < 0, -np.inf, np.array([3.0, 2.0, -5.0])[: items.shape[1]]).astype(np.float32)
    known = [int(np.flatnonzero(data.user_ids == user)[0]) for user in users]
    return Ranking(users=np.array(known, dtype=np.int32), items=items, scores=scores)


def test_features_by_hand():
    data = small()
    ranking = lists(data, ["b", "a"], [["z", "w", None], ["w", None, None]])

    found = candidate_features(ranking, data, {"other": np.array([[1.0, 5.0, np.nan], [2.0, 0, 0]])}, last=2)

    # Scores 3 and 2: mean 2.5, deviation 0.5; a list of one has no deviation.
    np.testing.assert_allclose(found.column("first.score"), [[1, -1, np.nan], [0, np.nan, np.nan]])
    np.testing.assert_allclose(found.column("first.rank"), [[1, 1 / 2, np.nan], [1, np.nan, np.nan]])
    np.testing.assert_allclose(found.column("other.rank")[0, :2], [1 / 2, 1])
    # z: users a, c; w: user c.
    np.testing.assert_allclose(found.column("popularity")[0, :2], np.log([3, 2]), rtol=1e-6)
    # The latest tenth of times 0..7 is 7, when c saw w.
    np.testing.assert_allclose(found.column("popularity.recent")[0, :2], np.log([1, 2]), rtol=1e-6)
    # b saw x {a, b} and y {a, b, c}. With z {a, c}: x shares a, 1/2; y shares a and c, 2/sqrt(6).
    np.testing.assert_allclose(found.column("together.latest")[0, 0], 2 / np.sqrt(6), rtol=1e-6)
    np.testing.assert_allclose(found.column("together.mean")[0, 0], (1 / 2 + 2 / np.sqrt(6)) / 2, rtol=1e-6)
    np.testing.assert_allclose(found.column("together.most")[0, 1], 1 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(found.column("history")[:, 0], np.log([3, 4]), rtol=1e-6)
    assert np.isnan(found.values[~found.present]).all()
    with pytest.raises(ConfigError, match="no feature 'age'"):
        found.column("age")


def test_vectors_are_compared_with_the_latest_items():
    data = small(times=False)
    vectors = np.zeros((4, 2))
    for item, vector in {"x": [1, 0], "y": [0, 2], "z": [3, 3], "w": [0, 0]}.items():
        vectors[code(data, item)] = vector
    ranking = lists(data, ["b"], [["z", "w"]])

    found = candidate_features(ranking, data, vectors=vectors, last=1)

    np.testing.assert_allclose(found.column("text.most"), [[1 / np.sqrt(2), 0]], atol=1e-6)
    both = candidate_features(ranking, data, vectors=vectors)
    np.testing.assert_allclose(both.column("text.mean"), [[1 / np.sqrt(2), 0]], atol=1e-6)
    with pytest.raises(DataError, match="one row an item"):
        candidate_features(ranking, data, vectors=vectors[:2])


def toy():
    data = cycle_dataset(n_users=40, n_items=25, length=9)
    part = split(data, "leave-last-out")
    known = part.history("valid")
    ranking = create("popularity").fit(known).recommend(part.users("valid"), 10)
    return part, known, ranking, {"markov": scores_of(create("markov").fit(known), ranking)}


def test_users_and_candidates_in_another_order_have_the_same_features():
    _, known, ranking, scores = toy()
    vectors = np.random.default_rng(1).normal(size=(25, 4))
    whole = candidate_features(ranking, known, scores, vectors=vectors)
    rng = np.random.default_rng(0)
    users, columns = rng.permutation(ranking.users.size), rng.permutation(10)

    other = Ranking(
        users=ranking.users[users],
        items=ranking.items[users][:, columns],
        scores=ranking.scores[users][:, columns],
    )
    moved = candidate_features(other, known, {"markov": scores["markov"][users][:, columns]}, vectors=vectors)

    np.testing.assert_allclose(moved.values, whole.values[users][:, columns], atol=1e-6)


def test_what_happens_later_is_not_in_the_features():
    data = cycle_dataset(n_users=40, n_items=25, length=9)
    future = replace(data, items=data.items.copy())
    last = data.indptr[1:] - 1
    future.items[last] = (future.items[last] + 7) % 25  # another last item for everybody, the same past
    found = []
    for one in (data, future):
        known = split(one, "leave-last-out").history("test")
        ranking = create("popularity").fit(known).recommend(np.arange(40), 10)
        scores = {"markov": scores_of(create("markov").fit(known), ranking)}
        found.append(candidate_features(ranking, known, scores).values)
        found.append(candidate_features(ranking, one, scores).values)

    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[1], found[3], equal_nan=True)  # the test can tell


def test_scores_of_a_model_do_not_depend_on_the_batch():
    _, known, ranking, _ = toy()
    model = create("markov").fit(known)
    one, many = (scores_of(model, ranking, batch_size=size) for size in (1, 64))
    np.testing.assert_array_equal(one, many)
    whole = model.score(ranking.users[:1])[0]
    assert one[0].tolist() == [whole[item] for item in ranking.items[0]]


def test_bad_scores_are_refused():
    _, known, ranking, _ = toy()
    with pytest.raises(DataError, match="'als' have shape"):
        candidate_features(ranking, known, {"als": np.zeros((2, 2))})
    with pytest.raises(DataError, match="without a dot"):
        candidate_features(ranking, known, {"a.b": ranking.scores})
    with pytest.raises(ConfigError, match="last must be"):
        candidate_features(ranking, known, last=0)


def visits(rows, times):
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return Dataset.from_frames(frame if times else frame.drop("time"), name="visits")


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("fold", ["valid", "test"])
def test_people_who_come_back_are_no_leak(times, fold):
    # Days: a, c and d take up what they had before, c on the same day; b does not.
    weeks = {"a": "xyxzx", "b": "xyzwv", "c": "zzzzz", "d": "xyzyz"}
    rows = [
        (user, item, 0 if user == "c" else day)
        for user, items in weeks.items()
        for day, item in enumerate(items)
    ]
    part = split(visits(rows, times), "leave-last-out")
    known = part.history(fold)
    ranking = create("popularity").fit(known).recommend(part.users(fold), 2)

    candidate_features(ranking, known).check_before(part.targets(fold))


@pytest.mark.parametrize("times", [True, False])
def test_histories_cut_a_fold_too_late_or_not_at_all_are_leaks(times):
    data = cycle_dataset(n_users=40, n_items=7, length=9)  # everybody comes back
    data = data if times else replace(data, times=None)
    part = split(data, "leave-last-out")
    ranking = create("popularity").fit(part.train).recommend(part.users("valid"), 5)

    candidate_features(ranking, part.history("valid")).check_before(part.targets("valid"))
    for late in (part.history("test"), data):
        with pytest.raises(DataError, match="from after the first target"):
            candidate_features(ranking, late).check_before(part.targets("valid"))


def test_one_later_interaction_of_one_user_is_a_leak():
    data = cycle_dataset(n_users=40, n_items=7, length=9)
    part = split(data, "leave-last-out")
    known = part.history("valid")
    ranking = create("popularity").fit(known).recommend(part.users("valid"), 5)
    late = replace(known, times=known.times.copy())
    late.times[known.indptr[4] - 1] = part.targets("valid").times[3] + 1

    with pytest.raises(DataError, match=f"user {data.user_ids[3]} saw"):
        candidate_features(ranking, late).check_before(part.targets("valid"))
