from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.listwise.aggregation import (
    AGGREGATES,
    MOST_EXACT,
    aggregate,
    agreement,
    kendall_tau,
    places,
)

ORDERS = np.array([[2, 0, 1, 3], [0, 2, 3, 1], [2, 1, 0, 3]])


def some_orders(m, n, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(m) for _ in range(n)])


def test_borda_by_hand():
    # places of 0: 1, 0, 2; of 1: 2, 3, 1; of 2: 0, 1, 0; of 3: 3, 2, 3. Points: 4 - mean place.
    np.testing.assert_allclose(aggregate(ORDERS, "borda"), [4 - 3 / 3, 4 - 6 / 3, 4 - 1 / 3, 4 - 8 / 3])


def test_reciprocal_rank_fusion_by_hand():
    expected = [
        1 / 62 + 1 / 61 + 1 / 63,
        1 / 63 + 1 / 64 + 1 / 62,
        1 / 61 + 1 / 62 + 1 / 61,
        1 / 64 + 1 / 63 + 1 / 64,
    ]
    np.testing.assert_allclose(aggregate(ORDERS, "reciprocal-rank"), expected)


def contradictions(order, orders):
    rows = places(orders)
    return sum(int(row[b] < row[a]) for row in rows for i, a in enumerate(order) for b in order[i + 1 :])


@pytest.mark.parametrize("seed", range(5))
def test_kemeny_is_the_best_of_all_orders(seed):
    orders = some_orders(5, 4, seed)
    best = min(permutations(range(5)), key=lambda order: (contradictions(order, orders), order))
    found = np.argsort(-aggregate(orders, "kemeny"), kind="stable")
    assert found.tolist() == list(best)


def test_kemeny_of_many_candidates_cannot_be_bettered_by_one_move():
    orders = some_orders(MOST_EXACT + 4, 3)
    found = np.argsort(-aggregate(orders, "kemeny")).tolist()
    cost = contradictions(found, orders)
    borda = np.argsort(-aggregate(orders, "borda"), kind="stable").tolist()
    assert cost <= contradictions(borda, orders)
    for item in found:
        rest = [other for other in found if other != item]
        for place in range(len(found)):
            assert contradictions([*rest[:place], item, *rest[place:]], orders) >= cost


@settings(max_examples=50, deadline=None)
@given(a=st.permutations(range(9)), b=st.permutations(range(9)))
def test_kendall_tau_is_that_of_scipy(a, b):
    assert kendall_tau(np.array(a), np.array(b)) == pytest.approx(kendalltau(a, b).statistic)
    assert kendall_tau(np.array(a), np.array(a)) == 1
    assert kendall_tau(np.array(a), -np.array(a)) == -1


def test_agreement_is_the_mean_over_pairs_of_places():
    rows = [np.argsort(order) for order in ORDERS]
    pairs = [kendalltau(rows[i], rows[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert agreement(ORDERS) == pytest.approx(np.mean(pairs))
    assert np.isnan(agreement(ORDERS[:1])) and np.isnan(kendall_tau(np.array([1]), np.array([1])))


@pytest.mark.slow
@pytest.mark.parametrize("method", AGGREGATES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_order_of_replicas_does_not_matter_and_one_replica_is_itself(method, data):
    orders = some_orders(6, 4, data.draw(st.integers(0, 99)))
    turned = orders[data.draw(st.permutations(range(4)))]
    np.testing.assert_allclose(aggregate(orders, method), aggregate(turned, method))
    np.testing.assert_array_equal(np.argsort(-aggregate(orders[:1], method)), orders[0])
    agreed = np.argsort(-aggregate(np.repeat(orders[:1], 3, axis=0), method))
    np.testing.assert_array_equal(agreed, orders[0])


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="unknown aggregation 'mean'; choose one of borda"):
        aggregate(ORDERS, "mean")
    with pytest.raises(DataError, match="each of m candidates once"):
        aggregate(np.array([[0, 0, 1]]))
    with pytest.raises(DataError, match="each of m candidates once"):
        places(np.array([[1, 2, 3]]))
