"""Token buckets and the circuit breaker, on a clock that does not wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.llm.http.breaker import Breaker
from frugalrec.llm.http.clock import Clock
from frugalrec.llm.http.limits import Bucket, Limits


class Hand(Clock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.slow
@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_no_minute_lets_more_through_than_allowed(per_minute, arrivals):
    hand = Hand()
    bucket = Bucket(per_minute, hand)
    sent = []
    for gap, share in arrivals:
        hand.now += gap
        amount = min(per_minute, max(1.0, share * per_minute / 10))
        sent.append((hand.now + bucket.take(amount), amount))
    # Naive: every window of 60 seconds that begins with something sent.
    for begin, _ in sent:
        total = sum(amount for at, amount in sent if begin <= at < begin + 60)
        assert total <= per_minute * (1 + 1e-9)


def test_a_bucket_lets_a_tenth_through_at_once_and_the_rest_evenly():
    hand = Hand()
    bucket = Bucket(60, hand)
    waits = [bucket.take(1) for _ in range(9)]
    # Six at once; then 54 / 60 a second: 1 / 0.9, 2 / 0.9, 3 / 0.9 seconds.
    assert waits == pytest.approx([0] * 6 + [1 / 0.9, 2 / 0.9, 3 / 0.9])


def test_sixty_seconds_hold_no_more_than_the_limit_of_requests():
    hand = Hand()
    bucket = Bucket(60, hand)
    times = [bucket.take(1) for _ in range(200)]
    assert max(sum(t <= u < t + 60 for u in times) for t in times) <= 60


def test_what_is_given_back_can_be_taken_again():
    hand = Hand()
    bucket = Bucket(10, hand)
    assert bucket.take(1) == 0 and bucket.take(1) > 0
    bucket.give_back(1)
    bucket.give_back(1)
    assert bucket.take(1) == 0


def test_the_slower_limit_counts():
    hand = Hand()
    limits = Limits(600, 60, hand)
    assert limits.take(6) == 0
    assert limits.take(9) == pytest.approx(9 / 0.9)
    limits.give_back(requests=1, tokens=9)
    assert Limits(None, None, hand).take(10**9) == 0


def test_a_breaker_opens_rests_tries_once_and_closes():
    hand = Hand()
    breaker = Breaker(3, 10.0, hand)
    for alive in (False, False, True, False, False):  # never three failures in a row
        breaker.leave(breaker.enter(), alive)
    assert breaker.state == "closed"
    breaker.leave(breaker.enter(), False)
    assert breaker.state == "open" and breaker.enter() is None
    hand.now = 9.9
    assert breaker.enter() is None
    hand.now = 10.0
    assert breaker.state == "half-open" and breaker.enter() == "trial"
    assert breaker.enter() is None  # one at a time
    breaker.leave("trial", False)
    assert breaker.state == "open"
    hand.now = 20.0
    breaker.leave(breaker.enter(), True)
    assert breaker.state == "closed" and breaker.enter() == "pass"


def test_a_trial_that_was_never_sent_leaves_the_question_open():
    hand = Hand()
    breaker = Breaker(1, 10.0, hand)
    breaker.leave(breaker.enter(), False)
    hand.now = 10.0
    breaker.leave(breaker.enter(), None)
    assert breaker.state == "half-open" and breaker.enter() == "trial"


def test_a_straggler_does_not_end_anothers_trial():
    hand = Hand()
    breaker = Breaker(1, 10.0, hand)
    early = breaker.enter()
    breaker.leave(breaker.enter(), False)
    hand.now = 10.0
    assert breaker.enter() == "trial"
    breaker.leave(early, None)
    assert breaker.enter() is None
