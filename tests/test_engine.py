import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.engine import map_batches
from frugalrec.errors import StorageError


def halves(batch):
    return np.array([number / 2 for number in batch], dtype=np.float32)


@given(st.lists(st.lists(st.integers(-99, 99), min_size=1, max_size=4), max_size=6))
def test_results_are_those_of_a_plain_loop_in_order(batches):
    told = []
    rows = sum(map(len, batches))
    pairs = list(map_batches(halves, batches, rows=rows, progress=lambda *p: told.append(p)))
    assert [batch for batch, _ in pairs] == batches
    assert [result.tolist() for _, result in pairs] == [[n / 2 for n in batch] for batch in batches]
    assert told == [(sum(map(len, batches[: i + 1])), rows) for i in range(len(batches))]


BATCHES = [[1, 2], [3], [4, 5, 6], [7]]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_killed_call_goes_on_and_computes_no_batch_twice(tmp_path, after):
    computed, store = [], tmp_path / "new" / "store.sqlite"

    def function(batch):
        computed.append(batch)
        return halves(batch)

    def kill(done, total):
        if len(computed) == after:
            raise Killed

    with pytest.raises(Killed):
        list(map_batches(function, BATCHES, rows=7, store=store, progress=kill))
    assert computed == BATCHES[:after]
    told = []
    pairs = list(map_batches(function, BATCHES, rows=7, store=store, progress=lambda *p: told.append(p)))
    assert computed == BATCHES
    assert [result.tolist() for _, result in pairs] == [halves(batch).tolist() for batch in BATCHES]
    assert told == [(2, 7), (3, 7), (6, 7), (7, 7)]


def test_a_batch_that_fails_leaves_nothing_behind(tmp_path):
    def function(batch):
        if batch == [3]:
            raise Killed
        return halves(batch)

    with pytest.raises(Killed):
        list(map_batches(function, BATCHES, rows=7, store=tmp_path / "store"))
    connection = sqlite3.connect(tmp_path / "store")
    assert connection.execute("SELECT number FROM batches").fetchall() == [(0,)]
    connection.close()


def test_undefined_results_are_kept_as_they_are(tmp_path):
    odd = np.array([np.nan, -np.inf, -0.0], dtype=np.float32)
    for _ in range(2):
        ((_, found),) = map_batches(lambda _: odd, [0], rows=3, store=tmp_path / "store")
        assert found.tobytes() == odd.tobytes()


def test_a_damaged_store_names_the_remedy(tmp_path):
    (tmp_path / "store").write_bytes(b"no database at all, but long enough to look like one" * 99)
    with pytest.raises(StorageError, match=r"store cannot be used.*delete the file"):
        list(map_batches(halves, BATCHES, rows=7, store=tmp_path / "store"))
