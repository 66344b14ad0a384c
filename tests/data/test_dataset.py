import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.data.dataset import Dataset, concatenate
from frugalrec.errors import DataError

ROWS = pl.DataFrame(
    {
        "user": ["b", "a", "b", "a", "c"],
        "item": ["x", "y", "y", "x", "z"],
        "value": [5, 3, 4, 1, 2],
        "time": [30, 20, 10, 20, 5],
    }
)


def by_user(dataset):
    return {
        str(dataset.user_ids[u]): dataset.item_ids[dataset.history(u)].tolist()
        for u in range(dataset.n_users)
    }


def test_interactions_are_sorted_by_user_and_time_and_ties_keep_file_order():
    dataset = Dataset.from_frames(ROWS, name="toy")
    assert by_user(dataset) == {"a": ["y", "x"], "b": ["y", "x"], "c": ["z"]}
    a = dataset.user_ids.tolist().index("a")
    assert dataset.values[dataset.indptr[a] : dataset.indptr[a + 1]].tolist() == [3, 1]


def test_codes_are_a_seeded_permutation_and_not_the_order_of_appearance():
    frame = pl.DataFrame({"user": [str(i // 4) for i in range(400)], "item": [str(i) for i in range(400)]})
    first, again, other = (Dataset.from_frames(frame, name="t", seed=s) for s in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert np.mean(np.diff(first.items) == 1) < 0.05  # appearance order would give 1.0


def test_codes_do_not_depend_on_the_order_of_rows_when_times_tell_the_order():
    distinct = ROWS.with_columns(time=pl.Series([30, 20, 10, 21, 5]))
    shuffled = distinct.sample(fraction=1, shuffle=True, seed=3)
    assert (
        Dataset.from_frames(distinct, name="t").fingerprint
        == Dataset.from_frames(shuffled, name="t").fingerprint
    )


@pytest.mark.parametrize("seed", [0, 7])
def test_ids_go_out_and_come_back(seed):
    items = pl.DataFrame({"item": ["x", "y", "z", "never"], "title": ["X", "Y", None, "N"]})
    dataset = Dataset.from_frames(ROWS, items, name="toy", seed=seed)
    interactions, texts = dataset.to_frames()
    again = Dataset.from_frames(interactions, texts, name="toy", seed=seed)
    assert again.fingerprint == dataset.fingerprint
    assert dataset.n_items == 4
    assert sorted(dataset.titles) == ["N", "X", "Y", "item z"]


def test_save_and_load_give_the_same_data(tmp_path):
    dataset = Dataset.from_frames(ROWS, name="toy")
    dataset.save(tmp_path)
    assert Dataset.load(tmp_path).fingerprint == dataset.fingerprint
    assert Dataset.load(tmp_path).name == "toy"


def test_matrix_counts_a_repeated_pair_once():
    frame = pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "x", "y"]})
    dataset = Dataset.from_frames(frame, name="t")
    assert dataset.matrix().toarray().sum() == 2
    assert dataset.item_counts.sum() == 3


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=40), st.integers(0, 3))
def test_where_and_concatenate_are_inverse(pairs, seed):
    frame = pl.DataFrame({"user": [str(u) for u, _ in pairs], "item": [str(i) for _, i in pairs]})
    dataset = Dataset.from_frames(frame, name="t", seed=seed)
    early = np.arange(dataset.n) < np.repeat(dataset.indptr[:-1] + dataset.lengths // 2, dataset.lengths)
    whole = concatenate(dataset.where(early), dataset.where(~early))
    assert whole.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"who": ["a"], "item": ["x"]}), r"no column 'user' among \['who', 'item'\]"),
        (ROWS.head(0), "the interactions table is empty"),
        (
            ROWS.with_columns(user=pl.Series(["b", None, "b", "a", "c"])),
            "no user id, the first in data row 2",
        ),
        (
            ROWS.with_columns(value=pl.Series(["5", "3", "good", "1", "2"])),
            "column 'value' holds 'good' in data row 3",
        ),
        (
            ROWS.with_columns(value=pl.Series([5.0, 3.0, float("nan"), 1.0, 2.0])),
            "column 'value' holds nan in data row 3",
        ),
    ],
)
def test_bad_tables_are_refused_with_the_value_and_the_row(frame, message):
    with pytest.raises(DataError, match=message):
        Dataset.from_frames(frame, name="toy")


def test_an_item_listed_twice_is_refused():
    items = pl.DataFrame({"item": ["x", "x"], "title": ["X", "X2"]})
    with pytest.raises(DataError, match="lists item 'x' more than once"):
        Dataset.from_frames(ROWS, items, name="toy")
