import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.testing.toys import cycle_dataset


def test_time_split_cuts_all_users_at_the_same_two_instants():
    parts = split(cycle_dataset(), "time")
    assert parts.train.times.max() < parts.valid.times.min()
    assert parts.valid.times.max() < parts.test.times.min()
    assert parts.train.n + parts.valid.n + parts.test.n == cycle_dataset().n


def test_interactions_at_one_instant_stay_together():
    times = [1, 2, 3, 4, 5, 5, 5, 5, 9, 9]
    frame = pl.DataFrame({"user": ["u"] * 10, "item": [str(i) for i in range(10)], "time": times})
    parts = split(Dataset.from_frames(frame, name="t"), "time", valid=0.3, test=0.2)
    # 30 % + 20 % from the end: position 5 holds time 5, so validation begins at the first 5.
    assert [parts.train.n, parts.valid.n, parts.test.n] == [4, 4, 2]


def test_leave_last_out_holds_out_two_items_of_users_with_three_or_more():
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z")]
    dataset = Dataset.from_frames(pl.DataFrame(rows, schema=["user", "item"], orient="row"), name="t")
    parts = split(dataset, "leave-last-out")
    b = dataset.user_ids.tolist().index("b")
    names = lambda part: dataset.item_ids[part.history(b)].tolist()  # noqa: E731
    assert (names(parts.train), names(parts.valid), names(parts.test)) == (["x"], ["y"], ["z"])
    assert parts.train.n == 3
    assert parts.users("test").tolist() == [b]
    assert dataset.item_ids[parts.history("test").history(b)].tolist() == ["x", "y"]


def test_given_folds_win_over_times_when_auto():
    frame = cycle_dataset().to_frames()[0].with_columns(fold=pl.Series(np.arange(720) % 3))
    parts = split(Dataset.from_frames(frame, name="t"))
    assert parts.method == "given"
    assert parts.train.n == 240


def test_a_split_that_cannot_be_made_says_what_is_missing():
    no_times = Dataset.from_frames(cycle_dataset().to_frames()[0].drop("time"), name="t")
    assert split(no_times).method == "leave-last-out"
    with pytest.raises(DataError, match="a time split needs timestamps"):
        split(no_times, "time")
    with pytest.raises(DataError, match="the data carry no folds"):
        split(no_times, "given")
    with pytest.raises(ConfigError, match=r"valid=0.6 and test=0.5"):
        split(cycle_dataset(), "time", valid=0.6, test=0.5)
    with pytest.raises(ConfigError, match="unknown split 'last'"):
        split(no_times, "last")
    one = Dataset.from_frames(pl.DataFrame({"user": ["a"], "item": ["x"], "time": [1]}), name="t")
    with pytest.raises(DataError, match="leaves the train fold empty"):
        split(one, "time")


def test_a_user_time_split_cuts_every_user_in_order_with_at_least_one_a_fold():
    rows = [(f"u{n}", str(item), 10 * n + item) for n in range(1, 31) for item in range(n)]
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    dataset = Dataset.from_frames(frame, name="t")
    parts = split(dataset, "user-time", valid=0.2, test=0.3)
    for user in range(dataset.n_users):
        n = int(dataset.lengths[user])
        found = [part.history(user) for part in (parts.train, parts.valid, parts.test)]
        assert np.concatenate(found).tolist() == dataset.history(user).tolist()
        if n < 3:
            assert [len(part) for part in found] == [n, 0, 0]
            continue
        assert min(len(part) for part in found) >= 1
        if n >= 10:
            assert abs(len(found[1]) - 0.2 * n) <= 0.5
            assert abs(len(found[2]) - 0.3 * n) <= 0.5


def test_a_user_time_split_with_large_shares_leaves_a_training_item():
    frame = pl.DataFrame({"user": ["u"] * 3, "item": ["a", "b", "c"], "time": [1, 2, 3]})
    parts = split(Dataset.from_frames(frame, name="t"), "user-time", valid=0.45, test=0.5)
    assert (parts.train.n, parts.valid.n, parts.test.n) == (1, 1, 1)
    with pytest.raises(ConfigError, match=r"valid=0.6 and test=0.5"):
        split(cycle_dataset(), "user-time", valid=0.6, test=0.5)
