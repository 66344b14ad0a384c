from itertools import islice
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.grounding.listwise.orders import shown_orders

TITLES = [f"Film {i}" for i in range(12)]


def orders(titles, presentation, replicas, *, seed=0, content="h", n=None):
    drawn = shown_orders(titles, presentation, replicas, seed=seed, content=content)
    return list(islice(drawn, replicas if n is None else n))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    replicas=st.integers(1, 6),
    kind=st.sampled_from(["shuffled", "balanced"]),
    same=st.booleans(),
)
def test_orders_are_permutations_that_read_differently(n, replicas, kind, same):
    titles = [f"Film {i // 2 if same else i}" for i in range(n)]
    found = orders(titles, kind, replicas)
    texts = {tuple(titles[i] for i in order) for order in found}
    most = factorial(n) // (2 ** (n // 2) if same else 1)
    assert len(found) == len(texts) == min(replicas, most)
    assert all(sorted(order) == list(range(n)) for order in found)


def test_the_same_titles_are_shown_alike_whatever_the_cheap_order_is():
    turned = list(np.random.default_rng(0).permutation(TITLES))
    for first, second in zip(orders(TITLES, "shuffled", 3), orders(turned, "shuffled", 3), strict=True):
        assert [TITLES[i] for i in first] == [turned[i] for i in second]


def test_seed_and_content_decide_and_nothing_else():
    base = orders(TITLES, "shuffled", 2)
    assert orders(TITLES, "shuffled", 2) == base
    assert orders(TITLES, "shuffled", 5)[:2] == base
    assert orders(TITLES, "shuffled", 2, seed=1) != base
    assert orders(TITLES, "shuffled", 2, content="other") != base


def test_balanced_orders_are_a_permutation_its_reverse_and_rotations():
    base, reverse, half, more = orders(TITLES, "balanced", 3, n=4)
    assert reverse == base[::-1] and half == base[6:] + base[:6]
    assert base == orders(TITLES, "shuffled", 1)[0] and more not in (base, reverse, half)
    third = orders(TITLES, "balanced", 4)
    assert third[2:] == [base[4:] + base[:4], base[8:] + base[:8]]


def test_cheap_order_comes_first_and_then_others():
    first, second = orders(TITLES, "cheap", 1, n=2)
    assert first == list(range(12)) and second == orders(TITLES, "shuffled", 1)[0]


@pytest.mark.parametrize("place", range(4))
def test_each_candidate_stands_everywhere_equally_often(place):
    """300 contents, 4 titles: each place holds each title about 75 times (sd 7.5)."""
    titles = list("abcd")
    first = [orders(titles, "shuffled", 1, content=str(c))[0][place] for c in range(300)]
    assert np.bincount(first, minlength=4).min() > 45
