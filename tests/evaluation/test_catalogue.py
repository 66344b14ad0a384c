import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.errors import DataError
from frugalrec.evaluation.catalogue import coverage, gini, novelty, shown_counts

LISTS = np.array([[0, 1], [0, -1]], dtype=np.int32)


def test_hand_computed_example():
    # Shown: item 0 twice, item 1 once, items 2 and 3 never.
    assert shown_counts(LISTS, 4).tolist() == [2, 1, 0, 0]
    assert coverage(LISTS, 4) == 2 / 4
    # Ascending counts 0 0 1 2, weights -3 -1 1 3: (1 + 6) / (4 * 3).
    assert gini(LISTS, 4) == pytest.approx(7 / 12)
    # 8 users; item 0 is known to 4 (1 bit), item 1 to nobody, taken as 1 of 8 (3 bits).
    assert novelty(LISTS, np.array([4, 0, 8, 8]), 8).tolist() == [(1 + 3) / 2, 1]


@pytest.mark.slow
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_gini_is_half_the_relative_mean_difference(items):
    lists = np.array(items, dtype=np.int32)[:, None]
    counts = np.bincount(items, minlength=10)
    gaps = np.abs(counts[:, None] - counts[None, :]).mean()
    assert gini(lists, 10) == pytest.approx(gaps / (2 * counts.mean()))


def test_even_and_single_item_lists():
    assert gini(np.arange(10, dtype=np.int32)[:, None], 10) == pytest.approx(0)
    assert gini(np.zeros((5, 1), dtype=np.int32), 10) == pytest.approx(0.9)  # 1 - 1/n


def test_empty_lists_are_undefined():
    empty = np.full((2, 3), -1, dtype=np.int32)
    assert np.isnan(coverage(empty, 4))
    assert np.isnan(gini(empty, 4))
    assert np.isnan(novelty(empty, np.ones(4), 8)).all()


def test_unknown_items_are_named():
    with pytest.raises(DataError, match=r"0\.\.3; got 7\.\.7"):
        coverage(np.array([[7]], dtype=np.int32), 4)
