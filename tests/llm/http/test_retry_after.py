"""The retry layer: headers in seconds and dates, full jitter, the common budget."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from frugalrec.errors import ConfigError
from frugalrec.llm.http import CallPolicy
from frugalrec.llm.http.retrying import RetryBudget, retry_after_s
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),  # NOW is Tue, 14 Nov 2023 22:13:20 GMT
        ("Tue, 14 Nov 2023 23:14:20 +0100", 60.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),  # past: at once
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("9" * 400, None),
        ("Mon, 99 Foo 2023 99:99:99 GMT", None),
        ("٣", None),  # a digit, but not an ASCII one
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize("kind", ["429", "429-date"])
def test_the_endpoints_wish_is_honoured_with_jitter_on_top(kind, make_chat, clock, questions):
    with FaultyEndpoint(faults=[kind], retry_after_s=17) as server:
        (answer,), _ = make_chat(server, policy={"backoff_s": 2.0}).chat(questions(1))
    assert answer.reason == "answered" and len(clock.sleeps) == 1
    # A date has whole seconds, so up to one is lost.
    assert 16.0 - (kind == "429-date") <= clock.sleeps[0] <= 17.0 + 2.0
    assert clock.sleeps[0] >= 17.0 or kind == "429-date"
    assert answer.latency_s == pytest.approx(clock.sleeps[0])


def test_a_wish_past_the_deadline_is_not_waited_for(make_chat, clock, questions):
    with FaultyEndpoint(faults=["429"], retry_after_s=3600) as server:
        (answer,), _ = make_chat(server).chat(questions(1))
    assert answer.reason == "deadline" and clock.sleeps == [] and server.calls == 1


def test_backoff_is_full_jitter_that_doubles_up_to_a_limit(make_chat, clock, questions):
    with FaultyEndpoint(faults=["503"] * 200) as server:
        policy = {"attempts": 6, "backoff_s": 1.0, "longest_backoff_s": 4.0, "failures_until_open": 999}
        make_chat(server, policy={**policy, "concurrency": 1, "spare_retries": 100}).chat(questions(20))
    rounds = [clock.sleeps[i::5] for i in range(5)]
    # Uniform on [0, 1], [0, 2], [0, 4], [0, 4], [0, 4].
    for sleeps, most in zip(rounds, [1, 2, 4, 4, 4], strict=True):
        assert len(sleeps) == 20 and 0 <= min(sleeps) and max(sleeps) <= most
    # All 60 of the last three below 2 has probability 2 ** -60, and so has all above.
    late = sum(rounds[2:], [])
    assert max(late) > 2 > min(late)


def test_the_budget_of_retries_grows_with_requests_and_is_bounded():
    budget = RetryBudget(per_request=0.5, spare=2)
    assert [budget.draw() for _ in range(3)] == [True, True, False]
    budget.pay_in()
    assert not budget.draw()
    budget.pay_in()
    assert budget.draw() and not budget.draw()
    for _ in range(1000):
        budget.pay_in()
    assert sum(budget.draw() for _ in range(1000)) == 20  # ten times the spare ones


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"deadline_s": 0.0}, "deadline_s must be above 0"),
        ({"requests_per_minute": -1.0}, "requests_per_minute must be above 0"),
        ({"backoff_s": float("nan")}, "backoff_s must not be negative"),
    ],
)
def test_policies_that_let_nothing_through_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CallPolicy(**settings)
