import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.allocation.costs import Budget, UserCosts, one_each, user_costs
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import Prices, Usage

PRICES = Prices(as_of="2026-01-01", per_million_tokens_in=2.0, per_million_tokens_out=8.0)
USERS = np.array([4, 2])


def test_money_by_hand_and_by_the_ledger():
    # 3 replicas * (1,000 * 2 + 100 * 8) / 1e6 * half price = 3 * .0028 * .5 = .0042
    costs = user_costs(
        USERS,
        "money",
        tokens_in=np.array([1000, 500]),
        tokens_out=100,
        replicas=3,
        prices=PRICES,
        batch_factor=0.5,
    )
    np.testing.assert_allclose(costs.values, [0.0042, 0.0027])
    assert costs.currency == "USD"
    for tokens, value in zip((1000, 500), costs.values, strict=True):
        spent = PRICES.money(Usage(tokens_in=3 * tokens, tokens_out=300, llm_calls=3))
        assert value == pytest.approx(spent * 0.5)


def test_tokens_calls_seconds_and_users():
    amounts = {"tokens_in": np.array([10, 20]), "tokens_out": 5, "calls": 3, "seconds": 0.5, "replicas": 2}
    assert user_costs(USERS, "tokens", **amounts).values.tolist() == [30, 50]
    assert user_costs(USERS, "calls", **amounts).values.tolist() == [6, 6]
    assert user_costs(USERS, "seconds", **amounts).values.tolist() == [1, 1]
    assert user_costs(USERS, "users", **amounts).values.tolist() == [1, 1]


def test_a_machine_is_paid_by_the_hour():
    machine = Prices(as_of="2026-01-01", per_machine_hour=3.6)
    costs = user_costs(USERS, "money", tokens_in=100, seconds=2.0, prices=machine)
    np.testing.assert_allclose(costs.values, 0.002)


def test_an_unknown_price_is_an_error_only_where_it_is_used():
    half = Prices(as_of="2026-01-01", per_million_tokens_in=2.0)
    with pytest.raises(ConfigError, match="no per_million_tokens_out"):
        user_costs(USERS, "money", tokens_in=10, tokens_out=1, prices=half)
    assert user_costs(USERS, "money", tokens_in=10, prices=half).values[0] == pytest.approx(2e-5)
    with pytest.raises(ConfigError, match="dated price table"):
        user_costs(USERS, "money", tokens_in=10)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "currency"),
    [
        ("300 users", "users", 300, ""),
        ("2.50 USD", "money", 2.5, "USD"),
        ("5 BRL", "money", 5, "BRL"),  # begins with the letter of a billion
        ("1M tokens", "tokens", 1e6, ""),
        ("1.5k calls", "calls", 1500, ""),
        ("600 s", "seconds", 600, ""),
        ("600s", "seconds", 600, ""),
        ("2 h", "seconds", 7200, ""),
        (" 30% ", "share", 0.3, ""),
        ("unlimited", "unlimited", float("inf"), ""),
    ],
)
def test_budgets_in_words(text, kind, amount, currency):
    assert Budget.parse(text) == Budget(kind=kind, amount=amount, currency=currency)


@given(st.sampled_from(["users", "tokens", "calls", "seconds"]), st.integers(0, 10**9))
def test_a_budget_in_words_reads_back(kind, amount):
    budget = Budget(kind=kind, amount=float(amount))
    assert Budget.parse(str(budget).replace(",", "")) == budget


@pytest.mark.parametrize(
    "text", ["300", "many users", "-5 users", "3 apples", "30 % users", "", "1M%", "2 usd"]
)
def test_an_unreadable_budget_says_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"write 300 users, 2\.50 USD"):
        Budget.parse(text)


def test_a_budget_fits_costs_of_its_own_unit_only():
    costs = user_costs(USERS, "money", tokens_in=500_000, prices=PRICES)  # 1 USD each
    assert Budget.parse("1.50 USD").limit(costs) == 1.5
    assert Budget.parse("30%").limit(costs) == pytest.approx(0.6)
    assert Budget.parse("unlimited").limit(costs) == np.inf
    with pytest.raises(ConfigError, match="the costs are in USD"):
        Budget.parse("1 EUR").limit(costs)
    with pytest.raises(ConfigError, match="budget is 5 users, but the costs are in USD"):
        Budget.parse("5 users").limit(costs)
    assert Budget.parse("5 users").limit(one_each(USERS)) == 5
    with pytest.raises(ConfigError, match="at most 100%"):
        Budget.parse("130%")


def test_costs_must_be_numbers():
    with pytest.raises(DataError, match="cost of user 2 is nan"):
        UserCosts(users=np.array([4, 2], dtype=np.int32), values=np.array([1.0, np.nan]), unit="calls")
    with pytest.raises(ConfigError, match="batch_factor=2"):
        user_costs(USERS, "calls", batch_factor=2)
    with pytest.raises(ConfigError, match="unknown unit 'words'"):
        user_costs(USERS, "words")
