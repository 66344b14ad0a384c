import json

import numpy as np
import pytest
from coded import dataset
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.evaluation.segments import activity_groups, by_decile, by_group, by_warmth
from frugalrec.types import Evaluation


def test_equal_lengths_stay_together():
    # Sorted 1 1 1 1 2 3: the ones fill positions 0..4 of 6, their middle 2/6 of the way: third 1 of 0..2.
    assert activity_groups(np.array([1, 3, 1, 2, 1, 1]), 3).tolist() == [1, 2, 1, 2, 1, 1]
    assert activity_groups(np.arange(20), 10).tolist() == np.repeat(np.arange(10), 2).tolist()
    assert activity_groups(np.array([]), 10).size == 0
    with pytest.raises(ConfigError, match="groups must be at least 1"):
        activity_groups(np.array([1]), 0)


@pytest.mark.slow
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 999))
def test_groups_follow_length_whatever_the_order(lengths, groups, seed):
    lengths = np.array(lengths)
    found = activity_groups(lengths, groups)
    assert ((found >= 0) & (found < groups)).all()
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    shuffle = np.random.default_rng(seed).permutation(lengths.size)
    assert np.array_equal(activity_groups(lengths[shuffle], groups), found[shuffle])


def evaluation():
    return Evaluation(
        arm="a", users=np.array([5, 0, 3, 2], np.int32), values={"m": np.array([0.4, 0.1, np.nan, 0.2])}
    )


def test_rows_by_activity():
    rows = by_decile(evaluation(), np.array([1, 99, 4, 3, 99, 2]), "m", groups=2)
    assert [row["segment"] for row in rows] == ["1 of 2", "2 of 2"]  # lengths 1 2 | 3 4
    assert [(row["shortest"], row["longest"]) for row in rows] == [(1, 2), (3, 4)]
    assert [row["n_users"] for row in rows] == [2, 1]
    assert [row["mean"] for row in rows] == pytest.approx([0.25, 0.2])
    assert rows[0]["low"] <= rows[0]["mean"] <= rows[0]["high"]
    json.dumps(rows, allow_nan=False)


def test_rows_by_named_groups_may_be_empty():
    masks = {"odd": np.arange(6) % 2 == 1, "none": np.zeros(6, dtype=bool)}
    rows = by_group(evaluation(), masks, "m")
    assert rows[0]["mean"] == pytest.approx(0.4)  # user 5; user 3 is undefined
    assert rows[1] == {"segment": "none", "n_users": 0, "mean": None, "low": None, "high": None}
    json.dumps(rows, allow_nan=False)
    with pytest.raises(DataError, match="has no 'x'; it has m"):
        by_group(evaluation(), masks, "x")


def test_rows_by_warmth_keep_the_places_in_the_full_list():
    # Scores fall with the code. User 0 holds out 0 (warm, place 1) and 2 (cold, place 3); user 1 holds
    # out 3 (cold, place 4).
    scores = np.tile(np.array([5.0, 4, 3, 2, 1]), (2, 1))
    ranks = target_ranks(lambda u: scores[u], np.array([0, 1]), dataset([[0, 2], [3]], 5))
    rows = by_warmth(ranks, np.array([3, 2, 0, 0, 1]), "mrr")
    assert [row["segment"] for row in rows] == ["all", "cold", "warm"]
    assert [row["n_targets"] for row in rows] == [3, 2, 1]
    assert [row["n_users"] for row in rows] == [2, 2, 1]
    assert [row["mean"] for row in rows] == pytest.approx([(1 + 1 / 4) / 2, (1 / 3 + 1 / 4) / 2, 1])
    assert by_warmth(ranks, np.array([3, 2, 0, 0, 1]), "mrr", cold_at_most=3)[2]["mean"] is None
