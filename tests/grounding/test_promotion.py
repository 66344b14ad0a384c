from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import fuse
from frugalrec.grounding.promotion import cap_promotions, capped_order
from frugalrec.types import Ranking


def rises(order):
    return [item - place for place, item in enumerate(order)]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(order=st.permutations(range(6)), cap=st.integers(0, 6))
def test_the_capped_order_is_the_first_allowed_one(order, cap):
    rank = {item: place for place, item in enumerate(order)}
    allowed = [some for some in permutations(range(6)) if max(rises(some)) <= cap]
    best = min(allowed, key=lambda some: [rank[item] for item in some])
    assert capped_order(np.array(order), cap).tolist() == list(best)


def lists(n=4, k=12, seed=0):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(50)[:k] for _ in range(n)]).astype(np.int32)
    items[-1, 8:] = -1
    scores = np.sort(rng.normal(size=(n, k)).astype(np.float32))[:, ::-1].copy()
    scores[-1, 8:] = -np.inf
    return Ranking(users=np.arange(n, dtype=np.int32), items=items, scores=scores)


@pytest.mark.parametrize("cap", [0, 1, 3, 100])
def test_no_item_of_a_fused_list_rises_more_than_the_cap(cap):
    cheap = lists()
    odds = np.random.default_rng(1).normal(size=cheap.items.shape).astype(np.float32)
    fused = fuse(cheap, odds, 0.7)
    capped = cap_promotions(cheap, fused, cap)
    for row in range(4):
        before = {item: place for place, item in enumerate(cheap.items[row].tolist()) if item >= 0}
        for place, item in enumerate(capped.items[row].tolist()):
            assert item < 0 or before[item] - place <= cap
    np.testing.assert_array_equal(np.sort(capped.items), np.sort(cheap.items))
    np.testing.assert_array_equal(capped.items[-1, 8:], -1)
    np.testing.assert_array_equal(capped.scores, fused.scores)
    if cap == 0:
        np.testing.assert_array_equal(capped.items, cheap.items)
    if cap == 100:
        np.testing.assert_array_equal(capped.items, fused.items)
    np.testing.assert_array_equal(cap_promotions(cheap, capped, cap).items, capped.items)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="at least 0 places, not -1"):
        capped_order(np.arange(3), -1)
    with pytest.raises(DataError, match="same users, with the same items"):
        cap_promotions(lists(), lists(seed=1), 2)
