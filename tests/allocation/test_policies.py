import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.allocation import POLICIES, allocate
from frugalrec.errors import ConfigError, DataError

USERS = np.array([7, 3, 9, 1], dtype=np.int32)
LENGTHS = np.array([5, 2, 40, 2])


def test_all_none_and_fewest():
    assert allocate("all", USERS, LENGTHS).routed.all()
    assert not allocate("none", USERS, LENGTHS).routed.any()
    assert allocate("none", USERS, LENGTHS, 3).budget_users == 0
    fewest = allocate("fewest-interactions", USERS, LENGTHS, 2)
    assert fewest.users[fewest.routed].tolist() == [3, 1]
    assert fewest.scores.tolist() == [-5, -2, -40, -2]


def test_random_differs_by_seed_and_routes_about_evenly():
    users = np.arange(30)
    counts = sum(allocate("random", users, users, 10, seed=s).routed.astype(int) for s in range(300))
    # 300 draws of 10 among 30: mean 100, standard deviation sqrt(300 * 1/3 * 2/3) = 8.2; five of them
    assert (np.abs(counts - 100) < 41).all()


@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.integers(0, 10_000), unique=True, max_size=40),
    st.integers(0, 60),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_budget_is_hard_and_order_of_users_does_not_matter(policy, users, budget, seed, shuffler):
    codes = np.array(users, dtype=np.int32)
    lengths = codes % 5  # many ties
    result = allocate(policy, codes, lengths, budget, seed)
    expected = 0 if policy == "none" else min(budget, codes.size)
    assert result.routed.sum() == expected
    order = list(range(codes.size))
    shuffler.shuffle(order)
    order = np.array(order, dtype=np.int64)
    again = allocate(policy, codes[order], lengths[order], budget, seed)
    assert set(again.users[again.routed]) == set(codes[result.routed])
    if 0 < expected < codes.size:
        assert result.scores[result.routed].min() >= result.scores[~result.routed].max()


def test_bad_input_names_the_value():
    with pytest.raises(ConfigError, match="'best'; choose one of all, fewest"):
        allocate("best", USERS, LENGTHS)
    with pytest.raises(ConfigError, match="not -1"):
        allocate("all", USERS, LENGTHS, -1)
    with pytest.raises(DataError, match="one length per user"):
        allocate("all", USERS, LENGTHS[:2])
    with pytest.raises(DataError, match="more than once"):
        allocate("all", np.array([1, 1]), np.array([2, 2]))
