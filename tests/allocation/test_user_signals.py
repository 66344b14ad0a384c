import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.allocation.signals import Signals, Standardiser, agreement, user_signals
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking


def hand():
    frame = pl.DataFrame(
        {
            "user": ["a", "a", "a", "b"],
            "item": ["x", "y", "z", "x"],
            "time": [0, 86_400, 2 * 86_400, 9 * 86_400],
        }
    )
    items = pl.DataFrame({"item": ["x", "y", "z", "w"], "title": ["X", None, "", "W"]})
    return Dataset.from_frames(frame, items, name="hand")


def code(ids, name):
    return int(np.flatnonzero(ids == name)[0])


def lists(data, users, rows, scores):
    items = [[code(data.item_ids, i) if i else -1 for i in row] for row in rows]
    return Ranking(
        users=np.array([code(data.user_ids, u) for u in users], dtype=np.int32),
        items=np.array(items, dtype=np.int32),
        scores=np.array(scores, dtype=np.float32),
    )


def test_signals_by_hand():
    data = hand()
    ranking = lists(data, ["b", "a"], [["w", "y"], ["w", ""]], [[3.0, 1.0], [2.0, -np.inf]])
    second = lists(data, ["a", "b"], [["w", "y"], ["y", "w"]], [[1.0, 0.5], [1.0, 0.5]])
    table = user_signals(data, ranking, m=2, second=second)
    b, a = table.values
    found = dict(zip(table.names, zip(b, a, strict=True), strict=True))
    np.testing.assert_allclose(found["log_length"], np.log([2, 4]))
    # x was taken twice, y and z once: mean log(1 + count)
    np.testing.assert_allclose(found["history_popularity"], [np.log(3), (np.log(3) + 2 * np.log(2)) / 3])
    # Standard scores of (3, 1) are (1, -1): margin 2, softmax e^2 : 1; a single candidate has neither
    p = np.exp(2) / (1 + np.exp(2))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2)
    np.testing.assert_allclose(found["margin"], [2, np.nan])
    np.testing.assert_allclose(found["entropy"], [entropy, np.nan])
    np.testing.assert_allclose(found["titled_history"], [1, 1 / 3])
    np.testing.assert_allclose(found["titled_candidates"], [0.5, 1])
    # (w, y) against (y, w): nothing at depth 1, both at depth 2; weights 1 : .9
    np.testing.assert_allclose(found["overlap"], [1, 0.5])
    np.testing.assert_allclose(found["rank_overlap"], [0.9 / 1.9, (1 + 0.9 / 2) / 1.9])
    np.testing.assert_allclose(found["idle_days"], np.log1p([0, 7]))


def test_certainty_does_not_depend_on_the_scale_of_scores():
    data = cycle_dataset()
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((60, 15)).astype(np.float32), axis=1)[:, ::-1]
    items = np.stack([rng.permutation(20)[:15] for _ in range(60)]).astype(np.int32)
    users = np.arange(60, dtype=np.int32)
    plain = user_signals(data, Ranking(users=users, items=items, scores=scores), m=10)
    other = user_signals(data, Ranking(users=users, items=items, scores=scores * 40 - 7), m=10)
    for name in ("margin", "entropy"):
        np.testing.assert_allclose(plain.column(name), other.column(name), rtol=1e-3)
        assert np.ptp(plain.column(name)) > 0
    assert (plain.column("entropy") < 1).all()


def test_flat_scores_have_entropy_1_and_no_margin():
    data = cycle_dataset()
    ranking = Ranking(
        users=np.array([3], dtype=np.int32),
        items=np.arange(5, dtype=np.int32)[None],
        scores=np.full((1, 5), 2.5, dtype=np.float32),
    )
    table = user_signals(data, ranking, m=5)
    assert table.column("entropy")[0] == pytest.approx(1.0)
    assert table.column("margin")[0] == 0


def test_a_signal_is_a_users_own_and_needs_no_held_out_items():
    data = cycle_dataset()
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(20)[:8] for _ in range(60)]).astype(np.int32)
    scores = np.sort(rng.random((60, 8)).astype(np.float32), axis=1)[:, ::-1]
    ranking = Ranking(users=np.arange(60, dtype=np.int32), items=items, scores=scores)
    table = user_signals(data, ranking, m=8)
    order = rng.permutation(60)[:25]
    again = user_signals(data, ranking.take(order), m=8)
    np.testing.assert_allclose(again.values, table.at(order).values)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_agreement_equals_a_plain_loop(seed, depth):
    rng = np.random.default_rng(seed)
    a, b = (np.stack([rng.permutation(8)[:depth] for _ in range(3)]) for _ in range(2))
    a[0, depth // 2 :] = -1
    overlap, ranked = agreement(a, b, 0.8)
    for x, y, o, r in zip(a.tolist(), b.tolist(), overlap, ranked, strict=True):
        common = [len((set(x[:d]) - {-1}) & set(y[:d])) / d for d in range(1, depth + 1)]
        weights = [0.8**d for d in range(depth)]
        assert o == pytest.approx(common[-1])
        assert r == pytest.approx(np.dot(common, weights) / sum(weights))


def test_the_same_lists_agree_wholly():
    a = np.arange(12).reshape(2, 6)
    overlap, ranked = agreement(a, a)
    np.testing.assert_allclose(overlap, 1)
    np.testing.assert_allclose(ranked, 1)


def test_standardiser_learns_from_calibration_alone_and_unknown_is_the_mean():
    users = np.arange(4, dtype=np.int32)
    values = np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0], [2.0, 5.0]])
    table = Signals(users=users, names=("a", "b"), values=values)
    scale = Standardiser.fit(table)
    # a: mean 2, variance (1 + 1 + 0) / 3; b is constant and comes out as 0
    np.testing.assert_allclose(
        scale(table), np.array([[-1, 0], [1, 0], [0, 0], [0, 0]]) / np.sqrt(2 / 3) + 0.0
    )
    other = Signals(users=users[:1], names=("a", "b"), values=np.array([[2 + np.sqrt(2 / 3), 9.0]]))
    np.testing.assert_allclose(scale(other), [[1, 0]])
    with pytest.raises(DataError, match="fitted on the signals a, b, and asked about a"):
        scale(table.only(("a",)))


def test_tables_of_signals():
    table = Signals(users=np.array([5, 2], dtype=np.int32), names=("a",), values=np.array([[1.0], [2.0]]))
    more = table.with_column("b", [7, 8])
    assert more.at([2]).values.tolist() == [[2, 8]]
    assert more.only(("b",)).values.ravel().tolist() == [7, 8]
    with pytest.raises(ConfigError, match="no signal 'c'; there are a, b"):
        more.column("c")
    with pytest.raises(DataError, match="nothing of user 9"):
        table.at([9])
    with pytest.raises(DataError, match="one value a user"):
        table.with_column("c", [1])
    with pytest.raises(DataError, match="distinct names"):
        table.with_column("a", [1, 2])
    data = cycle_dataset()
    with pytest.raises(ConfigError, match=r"m=9 must lie in 1\.\.3"):
        ranking = Ranking(
            users=np.array([0], dtype=np.int32),
            items=np.zeros((1, 3), dtype=np.int32),
            scores=np.zeros((1, 3), dtype=np.float32),
        )
        user_signals(data, ranking, m=9)
