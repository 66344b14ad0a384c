"""Trees that re-order lists: planted data with known answers, and what may not matter."""

import json
import math

import numpy as np
import pytest

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.recommenders import create
from frugalrec.recommenders.candidate_features import candidate_features, scores_of
from frugalrec.recommenders.learning_to_rank import LambdaRank, fewest_trees, left_out, list_ndcg
from frugalrec.recommenders.rank_model import RankModel
from frugalrec.recommenders.second_opinions import hits, reordered, second_opinion
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

lightgbm = pytest.importorskip("lightgbm", reason="needs frugalrec[rank]")
OPTIONS = LambdaRank(trees=30, learning_rate=0.1, min_leaf=5, start=None)


def planted(n=60, m=8, seed=0):
    """Each list's best row has the highest `signal`; the other two features are noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n * m, 3))
    groups = np.repeat(np.arange(n), m)
    labels = np.zeros(n * m, dtype=int)
    labels[features[:, 1].reshape(n, m).argmax(axis=1) + m * np.arange(n)] = 1
    return features, labels, groups


def cycle_lists(seed=0):
    data = cycle_dataset(n_users=120, n_items=30, length=10, noise=0.2, seed=seed)
    part = split(data, "leave-last-out")
    made = {}
    for fold in ("valid", "test"):
        known = part.history(fold)
        ranking = create("popularity").fit(known).recommend(part.users(fold), 12)
        markov = scores_of(create("markov").fit(known), ranking)
        made[fold] = candidate_features(ranking, known, {"markov": markov})
    return part, made


def test_the_feature_that_decides_is_found():
    features, labels, groups = planted()
    model = OPTIONS.fit(features, labels, groups, ["noise", "signal", "static"])

    assert model.importance["signal"] > 0.8
    fresh, wanted, _ = planted(seed=1)
    first = model.score(fresh).reshape(60, 8).argmax(axis=1)
    assert (first == wanted.reshape(60, 8).argmax(axis=1)).mean() > 0.75  # by chance 1/8
    assert list_ndcg(model.held_out, labels, np.full(60, 8), 10).mean() > 0.8


def test_noise_gets_no_trees_and_leaves_the_order_it_started_from():
    features, _, groups = planted()
    labels = np.zeros(480, dtype=int)
    labels[np.arange(60) * 8 + np.random.default_rng(5).integers(8, size=60)] = 1
    options = LambdaRank(trees=30, min_leaf=5, start="b")

    model = options.fit(features, labels, groups, ["a", "b", "c"])

    assert model.trees == 0 and model.text == ""
    np.testing.assert_array_equal(model.score(features), features[:, 1])
    np.testing.assert_array_equal(model.held_out, features[:, 1])
    assert set(model.importance.values()) == {0.0}


def test_neither_the_order_of_users_nor_that_of_candidates_matters():
    features, labels, groups = planted()
    model = OPTIONS.fit(features, labels, groups)
    order = np.random.default_rng(3).permutation(len(labels))

    again = OPTIONS.fit(features[order], labels[order], groups[order])

    assert (again.trees, again.text, again.curve) == (model.trees, model.text, model.curve)
    np.testing.assert_array_equal(again.held_out, model.held_out[order])
    np.testing.assert_array_equal(again.score(features[order]), model.score(features)[order])


def test_the_seed_decides():
    features, labels, groups = planted()
    first, same, other = (
        LambdaRank(trees=10, min_leaf=5, start=None, seed=seed).fit(features, labels, groups)
        for seed in (1, 1, 2)
    )
    assert first.text == same.text != other.text


def test_left_out_scores_come_from_fits_without_the_user():
    # Labels are drawn at random, so only users that the trees have seen can be learned by heart.
    rng = np.random.default_rng(0)
    groups, sizes = np.repeat(np.arange(80), 6), np.full(80, 6)
    features = rng.normal(size=(480, 1))
    labels = np.zeros(480, dtype=int)
    labels[np.arange(80) * 6 + rng.integers(6, size=80)] = 1
    memory = LambdaRank(trees=60, learning_rate=0.5, leaves=31, min_leaf=1, l2=0.0, start=None, every=60)
    data = lightgbm.Dataset(features, labels, group=sizes, params={"verbosity": -1})
    everybody = lightgbm.train(memory._parameters(), data, num_boost_round=60)

    model = memory.fit(features, labels, groups)

    chance = np.mean([1 / math.log2(place + 2) for place in range(6)])
    assert list_ndcg(everybody.predict(features), labels, sizes, 10).mean() > chance + 0.2
    assert abs(model.curve[60] - chance) < 0.08


def test_lists_with_one_label_teach_nothing():
    features, labels, groups = planted()
    empty = np.random.default_rng(9).normal(size=(80, 3))
    more = OPTIONS.fit(
        np.vstack([features, empty]),
        np.append(labels, np.zeros(80, dtype=int)),
        np.append(groups, np.repeat(np.arange(60, 70), 8)),
    )
    assert more.trees > 0
    with pytest.raises(DataError, match="0 hold rows of different labels"):
        OPTIONS.fit(features, np.zeros_like(labels), groups)


def test_ndcg_by_hand():
    # Relevant at places 2 and 3 of 3: (1/log2(3) + 1/2) / (1 + 1/log2(3)).
    expected = (1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3))
    scores, labels = np.array([3.0, 2.0, 1.0]), np.array([0, 1, 1])
    assert list_ndcg(scores, labels, np.array([3]), 10) == pytest.approx([expected])
    # All tied: each place is as likely; two relevant take two of the three on average.
    places = [1, 1 / math.log2(3), 0.5]
    tied = 2 * np.mean(places) / (places[0] + places[1])
    assert list_ndcg(np.zeros(3), labels, np.array([3]), 10) == pytest.approx([tied])
    assert list_ndcg(scores, labels, np.array([3]), 1) == pytest.approx([0.0])
    assert list_ndcg(scores, np.zeros(3), np.array([3]), 1).size == 0


def test_the_fewest_trees_within_one_standard_error():
    best = np.array([0.5, 0.7, 0.6, 0.8])
    noise = np.array([0.3, -0.25, 0.2, -0.2])  # mean 0.0125, standard error about 0.14
    assert fewest_trees({0: best - noise, 10: best}) == 0
    assert fewest_trees({0: best, 10: best - 0.1}) == 0
    assert fewest_trees({0: best - 0.1, 10: best, 20: best}) == 10
    assert fewest_trees({0: best - 0.1, 10: best - 0.05, 20: best}) == 20
    # Mean 0.15, standard error 0.108: more than one of them, fewer than two.
    unsure = np.array([0.45, 0.15, 0.05, -0.05])
    assert np.isclose(unsure.std(ddof=1) / 2, 0.108, atol=0.001)
    assert fewest_trees({0: best - unsure, 10: best}) == 0
    assert fewest_trees({0: best - 0.9, 10: best - unsure, 20: best}) == 20
    # The best is unsure, but fewer trees are nearly as good, and surely better than none.
    assert fewest_trees({0: best - unsure, 10: best - unsure + 0.1, 20: best}) == 10


def test_lists_are_re_ranked_better_than_popularity_where_the_next_item_is_known():
    part, made = cycle_lists()
    model = LambdaRank(trees=60, min_leaf=10).fit_lists(made["valid"], part.targets("valid"))

    scores = model.score_lists(made["test"])
    better = reordered(made["test"].ranking, scores)

    place = {}
    for name, ranking in (("before", made["test"].ranking), ("after", better)):
        found = hits(ranking, part.targets("test"))
        place[name] = found.argmax(axis=1)[found.any(axis=1)].mean()
    assert place["after"] < place["before"] / 2
    assert np.isnan(scores[made["test"].ranking.items < 0]).all()
    assert left_out(model, made["valid"]).shape == made["valid"].ranking.items.shape


def test_a_file_keeps_every_score(tmp_path):
    features, labels, groups = planted()
    model = OPTIONS.fit(features, labels, groups)
    model.save(tmp_path / "model.json")

    loaded = RankModel.load(tmp_path / "model.json")

    np.testing.assert_array_equal(loaded.score(features), model.score(features))
    np.testing.assert_array_equal(loaded.held_out, model.held_out)
    assert (loaded.curve, loaded.names, loaded.importance) == (model.curve, model.names, model.importance)
    assert "tree" in json.loads((tmp_path / "model.json").read_text())["text"]


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"format": 2}', None])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "model.json"
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(StorageError, match="fit it again"):
        RankModel.load(path)


def test_damaged_trees_are_refused(tmp_path):
    path = tmp_path / "model.json"
    OPTIONS.fit(*planted()).save(path)
    facts = json.loads(path.read_text())
    facts["text"] = "tree\nversion=nonsense"
    path.write_text(json.dumps(facts))
    with pytest.raises(StorageError, match="fit it again"):
        RankModel.load(path)


def test_histories_that_hold_the_target_are_refused():
    part, made = cycle_lists()
    whole = part.history("test")
    late = candidate_features(made["valid"].ranking, whole, {})
    with pytest.raises(DataError, match="from after the first target"):
        LambdaRank(trees=5).fit_lists(late, part.targets("valid"))


def test_without_times_the_target_itself_gives_the_leak_away():
    from dataclasses import replace

    part, made = cycle_lists()
    targets = replace(part.targets("valid"), times=None)
    whole = replace(part.history("test"), times=None)
    late = candidate_features(made["valid"].ranking, whole, {})
    with pytest.raises(DataError, match="from after the first target"):
        LambdaRank(trees=5).fit_lists(late, targets)


@pytest.mark.parametrize(
    "wrong",
    [{"trees": -1}, {"leaves": 1}, {"folds": 1}, {"learning_rate": 0.0}, {"rows_share": 1.5}, {"l2": -1.0}],
)
def test_options_are_checked(wrong):
    with pytest.raises(ConfigError):
        LambdaRank(**wrong)


def test_shapes_and_labels_are_checked():
    features, labels, groups = planted()
    with pytest.raises(DataError, match="as many labels"):
        OPTIONS.fit(features, labels[1:], groups)
    with pytest.raises(DataError, match="whole numbers"):
        OPTIONS.fit(features, labels - 0.5, groups)
    with pytest.raises(DataError, match="infinite"):
        OPTIONS.fit(np.full_like(features, np.inf), labels, groups)
    with pytest.raises(DataError, match="do not fit the 3 names"):
        OPTIONS.fit(features, labels, groups).score(features[:, :2])
    with pytest.raises(DataError, match="'signal'"):
        LambdaRank(start="signal").fit(features, labels, groups, ["a", "b", "c"])


def lists(rows, users=None):
    items = np.array(rows, dtype=np.int32)
    scores = np.where(items < 0, -np.inf, -np.arange(items.shape[1])).astype(np.float32)
    return Ranking(
        users=np.arange(len(rows), dtype=np.int32) if users is None else users, items=items, scores=scores
    )


def test_second_opinions_go_to_routed_users_alone():
    first, second = lists([[1, 2], [3, 4]]), lists([[5, 6], [7, -1]])
    mixed = second_opinion(first, second, np.array([False, True]))
    assert mixed.items.tolist() == [[1, 2], [7, -1]]
    assert mixed.scores[1, 1] == -np.inf
    with pytest.raises(DataError, match="same users"):
        second_opinion(
            first, lists([[5, 6], [7, 8]], np.array([1, 0], dtype=np.int32)), np.array([True, True])
        )
    with pytest.raises(DataError, match="one value a user"):
        second_opinion(first, second, np.array([True]))


def test_ties_and_unknown_scores_keep_the_old_order():
    ranking = lists([[4, 5, 6, 7, 8], [4, 5, 6, -1, -1]])
    scores = np.array([[1.0, 2.0, 1.0, np.nan], [np.nan, np.nan, 3.0, np.nan]])
    found = reordered(ranking, scores)
    assert found.items.tolist() == [[5, 4, 6, 7, 8], [6, 4, 5, -1, -1]]
    np.testing.assert_array_equal(found.scores, ranking.scores)
    with pytest.raises(DataError, match="do not fit"):
        reordered(ranking, scores[:1])
