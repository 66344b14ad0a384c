from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.allocation.budget import greedy
from frugalrec.allocation.costs import Budget, UserCosts
from frugalrec.allocation.gain import GainEstimate
from frugalrec.allocation.online import PriceController
from frugalrec.errors import ConfigError


def crowd(n, seed):
    rng = np.random.default_rng(seed)
    lower = rng.normal(0.01, 0.05, n)
    costs = rng.lognormal(0, 0.5, n)
    users = np.arange(n, dtype=np.int32)
    return (
        GainEstimate(users=users, mean=lower, se=np.zeros(n), z=1.0),
        UserCosts(users=users, values=costs, unit="money", currency="EUR"),
    )


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 10)), max_size=60),
    st.floats(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_budget_is_hard_whatever_comes(users, budget, price, step):
    controller = PriceController(budget=budget, horizon=20, price=price, step=step)
    spent = 0.0
    for lower, cost in users:
        before = controller.price
        if controller.decide(lower, cost):
            assert lower > 0 and lower > before * cost
            spent += cost
        assert controller.price >= 0
    assert spent == pytest.approx(controller.spent) and spent <= budget * (1 + 1e-12)
    assert controller.seen == len(users)


def test_price_follows_spend_by_hand():
    # pace 10 / 10 = 1 a user; step .1 * scale 2 = .2 for one pace above or below it
    controller = PriceController(budget=10, horizon=10, price=0.1, scale=2.0, step=0.1)
    assert controller.decide(1.0, 2.0)  # 1 > .1 * 2
    assert controller.price == pytest.approx(0.1 + 0.2 * (2 - 1))
    assert not controller.decide(0.5, 2.0)  # .5 < .3 * 2
    assert controller.price == pytest.approx(0.3 - 0.2)
    assert not controller.decide(-0.1, 0.0)  # no gain, not even for nothing


def test_online_comes_near_the_offline_choice():
    calibration, costs = crowd(500, 0)
    online, offline = [], []
    for seed in range(1, 6):
        estimate, prices = crowd(3000, seed)
        controller = PriceController.calibrated(calibration, costs, Budget.parse("20%"), 3000)
        routed = [
            controller.decide(g, c)
            for g, c in zip(estimate.lower.tolist(), prices.values.tolist(), strict=True)
        ]
        online.append(estimate.lower[routed].sum())
        best, _ = greedy(
            np.where(estimate.lower > 0, estimate.lower / prices.values, -np.inf),
            prices.values,
            controller.budget,
        )
        offline.append(estimate.lower[best].sum())
        assert controller.spent > 0.9 * controller.budget
    assert np.sum(online) > 0.95 * np.sum(offline)


def test_a_cold_start_still_spreads_the_budget():
    """Without calibration the price rises from 0 until spending keeps pace: late users are served too."""
    estimate, prices = crowd(3000, 1)
    controller = PriceController(budget=300.0, horizon=3000, scale=0.05)
    routed = np.array([controller.decide(g, c) for g, c in zip(estimate.lower, prices.values, strict=True)])
    assert routed[2000:].sum() > 0.15 * routed.sum()


def test_threads_share_one_budget():
    controller = PriceController(budget=100.0, horizon=1, price=0.0, step=0.0)
    with ThreadPoolExecutor(8) as pool:
        routed = list(pool.map(lambda _: controller.decide(1.0, 0.3), range(2000)))
    assert sum(routed) == 333 and controller.spent <= 100 and controller.seen == 2000


def test_refunds_make_room():
    controller = PriceController(budget=1.0, horizon=5, step=0.0)
    assert controller.decide(1.0, 1.0) and not controller.decide(1.0, 1.0)
    controller.refund(1.0)
    assert controller.decide(1.0, 1.0)
    with pytest.raises(ConfigError, match="cannot give back 2"):
        controller.refund(2.0)


def test_a_calibrated_price_clears_the_calibration_budget():
    estimate = GainEstimate(
        users=np.arange(4, dtype=np.int32), mean=np.array([4.0, 3.0, 2.0, -1.0]), se=np.zeros(4), z=1.0
    )
    costs = UserCosts(users=np.arange(4, dtype=np.int32), values=np.ones(4), unit="calls")
    # Half of 4 calls: the two best fit, so the price is that of the third.
    assert PriceController.calibrated(estimate, costs, Budget.parse("50%"), 8).price == 2.0
    assert PriceController.calibrated(estimate, costs, Budget.parse("50%"), 8).budget == 4.0
    assert PriceController.calibrated(estimate, costs, Budget.parse("4 calls"), 4).price == 0.0


def test_bad_input():
    with pytest.raises(ConfigError, match="horizon=0"):
        PriceController(budget=1, horizon=0)
    with pytest.raises(ConfigError, match="not nan"):
        PriceController(budget=1, horizon=1).decide(1.0, float("nan"))
