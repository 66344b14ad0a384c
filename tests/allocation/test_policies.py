import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.allocation import POLICIES, Budget, Evidence, UserCosts, allocate
from frugalrec.allocation.gain import GainEstimate, Gains
from frugalrec.allocation.policies import least_active
from frugalrec.allocation.signals import Signals
from frugalrec.allocation.weakness import Weakness
from frugalrec.errors import ConfigError, DataError

USERS = np.array([7, 3, 9, 1], dtype=np.int32)
LENGTHS = np.array([5, 2, 40, 2])


def label(users, weak, shrunk, fold="valid"):
    n = len(users)
    weak = np.asarray(weak)
    return Weakness(
        users=np.asarray(users, dtype=np.int32),
        metric="auc",
        fold=fold,
        performance=np.asarray(shrunk, dtype=float),
        shrunk=np.asarray(shrunk, dtype=float),
        undefined=np.zeros(n, dtype=bool),
        sparsity=np.ones(n),
        inactive=np.ones(n, dtype=bool),
        low=weak,
        t_s=0.5,
        t_p=0.5,
        kappa=0.0,
        kappa_from="given",
    )


def estimate(users, mean, se, z=1.0):
    return GainEstimate(
        users=np.asarray(users, dtype=np.int32), mean=np.asarray(mean, float), se=np.asarray(se, float), z=z
    )


def evidence_for(users):
    """Evidence in another order of users than that of the candidates."""
    order = np.argsort(users)[::-1]
    own = np.asarray(users, dtype=np.int32)[order]
    noise = (own * 7919 % 101) / 101.0
    return Evidence(
        weakness=label(own, noise > 0.3, noise),
        published=label(own, noise < 0.6, noise, fold="test"),
        signals=Signals(users=own, names=("entropy",), values=noise[:, None]),
        gain=estimate(own, noise - 0.3, np.full(own.size, 0.05)),
        gains=Gains(users=own, values=noise - 0.5, metric="ndcg@10", fold="test"),
    )


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


@pytest.mark.slow
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
    evidence = evidence_for(codes)
    result = allocate(policy, codes, lengths, budget, seed, evidence=evidence)
    allowed = int((result.scores > -np.inf).sum())
    expected = 0 if policy == "none" else min(budget, allowed)
    assert result.routed.sum() == expected == result.spent
    order = list(range(codes.size))
    shuffler.shuffle(order)
    order = np.array(order, dtype=np.int64)
    again = allocate(policy, codes[order], lengths[order], budget, seed, evidence=evidence)
    assert set(again.users[again.routed]) == set(codes[result.routed])
    if 0 < expected < codes.size:
        assert result.scores[result.routed].min() >= result.scores[~result.routed].max()


@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    st.floats(0, 1e7),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_no_budget_is_ever_passed_whatever_the_costs(policy, costs, amount, floor):
    users = np.arange(len(costs), dtype=np.int32)
    prices = UserCosts(users=users, values=np.array(costs), unit="money", currency="EUR")
    budget = Budget(kind="money", amount=amount, currency="EUR")
    result = allocate(
        policy, users, users % 7, budget=budget, costs=prices, evidence=evidence_for(users), floor=floor
    )
    assert result.limit == (0.0 if policy == "none" else amount)
    assert result.spent <= result.limit * (1 + 1e-12)
    assert not (result.routed & (result.scores == -np.inf)).any()


def test_gain_per_cost_by_hand():
    # lower bounds .10 - .02 = .08, .30 - .20 = .10, .05 - .06 < 0, .04 - .01 = .03; costs 4, 10, 1, 1
    # per cost .02, .01, never, .03: user 1 first, then 7; 3 at 10 no longer fits into 6
    gain = estimate([7, 3, 9, 1], [0.10, 0.30, 0.05, 0.04], [0.02, 0.20, 0.06, 0.01])
    costs = UserCosts(users=USERS, values=np.array([4.0, 10.0, 1.0, 1.0]), unit="tokens")
    result = allocate(
        "gain_per_cost",
        USERS,
        LENGTHS,
        budget=Budget.parse("6 tokens"),
        costs=costs,
        evidence=Evidence(gain=gain),
    )
    assert result.policy == "gain-per-cost"
    assert result.routed.tolist() == [True, False, False, True]
    np.testing.assert_allclose(result.scores, [0.02, 0.01, -np.inf, 0.03], rtol=1e-6)
    assert result.reasons.tolist() == ["routed", "over budget", "ruled out by the policy", "routed"]
    assert (result.spent, result.budget, result.budget_users) == (5.0, "6 tokens", 2)
    assert not result.evaluation_only


def test_nobody_is_asked_where_no_gain_is_sure():
    gain = estimate(USERS, [0.1, 0.2, -0.3, 0.0], [0.2, 0.2, 0.1, 0.0])
    result = allocate("gain-per-cost", USERS, LENGTHS, evidence=Evidence(gain=gain))
    assert not result.routed.any() and result.spent == 0


def test_weak_policies_route_weak_users_the_worst_first_and_nobody_unmeasured():
    known = label([9, 3, 1], [True, True, False], [0.2, 0.4, 0.1])  # user 7 was not measured
    result = allocate("weak-quantile", USERS, LENGTHS, evidence=Evidence(weakness=known))
    assert result.users[result.routed].tolist() == [3, 9]
    one = allocate("weak-quantile", USERS, LENGTHS, 1, evidence=Evidence(weakness=known))
    assert one.users[one.routed].tolist() == [9]


def test_policies_that_know_the_outcome_are_flagged():
    evidence = evidence_for(USERS)
    flagged = {
        name: allocate(name, USERS, LENGTHS, 2, evidence=evidence).evaluation_only for name in POLICIES
    }
    assert {name for name, flag in flagged.items() if flag} == {"oracle", "paper-weak"}


def test_oracle_takes_the_largest_true_gains():
    gains = Gains(users=USERS, values=np.array([0.0, 0.2, -0.1, 0.3]), metric="ndcg@10", fold="test")
    result = allocate("oracle", USERS, LENGTHS, evidence=Evidence(gains=gains))
    assert result.users[result.routed].tolist() == [3, 1]


def test_uncertainty_asks_about_the_flattest_scores_first():
    table = Signals(users=USERS, names=("entropy",), values=np.array([[0.9], [np.nan], [0.95], [0.1]]))
    result = allocate("uncertainty", USERS, LENGTHS, 2, evidence=Evidence(signals=table))
    assert result.users[result.routed].tolist() == [7, 9]


def test_floor_serves_the_least_active_first():
    lengths = np.arange(1, 41)
    users = np.arange(40, dtype=np.int32)
    assert np.flatnonzero(least_active(lengths)).tolist() == [0, 1, 2, 3]
    gain = estimate(users, np.linspace(0.1, 0.5, 40), np.zeros(40))  # the active gain most
    plain = allocate("gain-per-cost", users, lengths, 10, evidence=Evidence(gain=gain))
    assert plain.users[plain.routed].tolist() == list(range(30, 40))
    fair = allocate("gain-per-cost", users, lengths, 10, evidence=Evidence(gain=gain), floor=0.3)
    assert fair.users[fair.routed].tolist() == [1, 2, 3, *range(33, 40)]
    assert (fair.reasons == "routed by the floor").sum() == 3


def test_bad_input_names_the_value():
    with pytest.raises(ConfigError, match="'best'; choose one of all, fewest"):
        allocate("best", USERS, LENGTHS)
    with pytest.raises(ConfigError, match="not -1"):
        allocate("all", USERS, LENGTHS, -1)
    with pytest.raises(DataError, match="one length per user"):
        allocate("all", USERS, LENGTHS[:2])
    with pytest.raises(DataError, match="more than once"):
        allocate("all", np.array([1, 1]), np.array([2, 2]))
    with pytest.raises(ConfigError, match="needs evidence.gain"):
        allocate("gain_per_cost", USERS, LENGTHS)
    with pytest.raises(ConfigError, match="not both"):
        allocate("all", USERS, LENGTHS, 2, budget=Budget.parse("3 users"))
    with pytest.raises(DataError, match="holds nothing of user 9"):
        allocate("gain-per-cost", USERS, LENGTHS, evidence=Evidence(gain=estimate([7, 3], [1, 1], [0, 0])))
