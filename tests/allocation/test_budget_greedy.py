from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.allocation.budget import greedy
from frugalrec.errors import ConfigError, DataError

POSITIVE = st.floats(0.01, 10)


@pytest.mark.slow
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=9), st.floats(0, 40))
def test_gain_per_cost_is_within_one_user_of_the_best_choice(rows, limit):
    gains, costs = np.array(rows).T
    choices = np.array(list(product([0, 1], repeat=gains.size)))
    best = (choices @ gains)[choices @ costs <= limit].max()
    routed, _ = greedy(gains / costs, costs, limit)
    fitting = gains[costs <= limit]
    # Dantzig's bound: the greedy prefix and the first user who does not fit are at least the optimum.
    assert gains[routed].sum() + fitting.max(initial=0.0) >= best - 1e-9
    assert costs[routed].sum() <= limit * (1 + 1e-12)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 10)), min_size=1, max_size=25),
    st.floats(0, 50),
    st.randoms(use_true_random=False),
)
def test_a_plain_loop_agrees_in_any_order_of_users(rows, limit, shuffler):
    scores, costs = np.array(rows).T
    ties = np.arange(scores.size)
    left, expected = limit, set()
    for user in sorted(range(scores.size), key=lambda i: (-scores[i], i)):
        if costs[user] <= left + 1e-12 * limit:
            expected.add(user)
            left -= costs[user]
    order = list(range(scores.size))
    shuffler.shuffle(order)
    routed, _ = greedy(scores[order], costs[order], limit, ties=ties[order])
    # Running sums and differences may round apart on the last digit: then values, not members, agree.
    got = {order[i] for i in np.flatnonzero(routed)}
    assert got == expected or abs(costs[list(got)].sum() - limit) < 1e-6 * max(limit, 1)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 2), st.booleans()), min_size=1, max_size=25),
    st.floats(0.1, 20),
    st.floats(0, 1),
)
def test_floor_is_reached_unless_the_worst_run_out(rows, limit, floor):
    scores, costs, worst = (np.array(column) for column in zip(*rows, strict=True))
    routed, by_floor = greedy(scores, costs, limit, floor=floor, worst=worst)
    assert costs[routed].sum() <= limit * (1 + 1e-12)
    served = costs[routed & worst].sum()
    left_out = worst & ~routed
    cannot = costs[left_out] > limit - served - 1e-9
    assert served >= floor * limit - 1e-9 or cannot.all()
    assert not (by_floor & ~worst).any()


def test_a_user_who_does_not_fit_is_passed_over():
    routed, _ = greedy([3.0, 2.0, 1.0], [5.0, 7.0, 4.0], 9.0)
    assert routed.tolist() == [True, False, True]


def test_tenths_of_a_cent_fill_the_budget():
    routed, _ = greedy(np.zeros(10), np.full(10, 0.1), 0.3)  # 0.1 + 0.1 + 0.1 is a rounding above 0.3
    assert routed.sum() == 3


def test_users_never_to_be_routed_stay_out_of_the_largest_budget():
    routed, _ = greedy([0.0, -np.inf], [1.0, 0.0], np.inf)
    assert routed.tolist() == [True, False]


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="from 0 to 1, not 2"):
        greedy([1.0], [1.0], 1.0, floor=2)
    with pytest.raises(ConfigError, match="whom it is for"):
        greedy([1.0], [1.0], 1.0, floor=0.5)
    with pytest.raises(ConfigError, match="at least 0, not -1"):
        greedy([1.0], [1.0], -1.0)
    with pytest.raises(DataError, match="finite cost"):
        greedy([1.0], [-1.0], 1.0)
