"""Nobody waits for what will not come: change near the cap, a busy endpoint, replies without words."""

from __future__ import annotations

import asyncio

import pytest

from frugalrec.ledger import Usage
from frugalrec.llm.http import CallPolicy, SpendCap
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.limits import Limits
from frugalrec.llm.http.purse import Purse
from frugalrec.llm.http.retrying import GaveUpError, Patience, RetryBudget
from frugalrec.llm.http.spending import Spending, size_of
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

SIZE = size_of(["x"], 10)


def patience(clock, **policy):
    return Patience(CallPolicy(**policy), RetryBudget(1.0, 1), clock)


def purse_for_one_call(journal, clock):
    return Purse(Spending(cap=SpendCap(limit=1, unit="calls")), journal, clock)


def test_who_waits_for_change_waits_no_longer_than_his_deadline(clock):
    async def ask(purse):
        await purse.reserve("first", SIZE, patience(clock))
        with pytest.raises(GaveUpError, match="too late") as caught:
            await purse.reserve("second", SIZE, patience(clock, deadline_s=0.01))
        return caught.value.reason

    with Journal(None) as journal:
        assert asyncio.run(ask(purse_for_one_call(journal, clock))) == "deadline"


def test_who_waits_for_change_gets_it(clock):
    async def ask(purse):
        number = await purse.reserve("first", SIZE, patience(clock))
        waiting = asyncio.create_task(purse.reserve("second", SIZE, patience(clock)))
        await asyncio.sleep(0)
        await purse.settle(
            lambda db: purse.spending.settle(db, number, usage=Usage(), outcome="", estimated=0, reply=None)
        )
        assert await waiting == number + 1
        with pytest.raises(GaveUpError) as caught:
            purse.spending = Spending(cap=SpendCap(limit=0, unit="calls"))
            waiting = asyncio.create_task(purse.reserve("third", SIZE, patience(clock)))
            await purse.settle(lambda db: True)
            await waiting
        return caught.value.reason

    with Journal(None) as journal:
        assert asyncio.run(ask(purse_for_one_call(journal, clock))) == "over-budget"


def test_an_attempt_has_the_time_that_is_left_after_waiting_for_change(
    make_chat, clock, monkeypatch, questions
):
    reserve = Purse.reserve

    async def slow(self, *arguments):
        number = await reserve(self, *arguments)
        clock.now += 4.875
        return number

    monkeypatch.setattr(Purse, "reserve", slow)
    with FaultyEndpoint(faults=["stall"]) as server:
        (answer,), _ = make_chat(server, policy={"deadline_s": 5.0, "attempts": 1}).chat(questions(1))
    assert "no reply within 0.125 s" in answer.detail


def test_whoever_the_cap_turns_away_goes_at_once_and_does_not_wait_for_other_askers(
    make_chat, tmp_path, monkeypatch, questions
):
    asked, gone = [], []
    reserve = Purse.reserve

    async def watched(self, key, size, patience):
        asked.append(key)
        try:
            return await reserve(self, key, size, patience)
        finally:
            gone.append(key)

    monkeypatch.setattr(Purse, "reserve", watched)
    with FaultyEndpoint() as server:
        cap = SpendCap(limit=0, unit="calls")
        chat = make_chat(server, file=tmp_path / "f", cap=cap, policy={"concurrency": 16})
        answers, _ = chat.chat(questions(80))
    assert {a.reason for a in answers} == {"over-budget"}
    assert len(asked) == 80 and gone == asked


def test_requests_that_the_cap_turns_away_take_no_turn_of_the_limits(make_chat, tmp_path, clock, questions):
    with FaultyEndpoint() as server:
        cap = SpendCap(limit=0, unit="calls")
        policy = {"requests_per_minute": 10.0, "tokens_per_minute": 1_000.0, "concurrency": 1}
        answers, _ = make_chat(server, file=tmp_path / "f", cap=cap, policy=policy).chat(questions(30))
    assert {a.reason for a in answers} == {"over-budget"} and clock.sleeps == []


def test_an_endpoint_that_puts_everybody_off_for_ever_is_taken_for_dead(make_chat, clock, questions):
    with FaultyEndpoint(faults=lambda _: "429", retry_after_s=50) as server:
        chat = make_chat(server, policy={"concurrency": 1, "deadline_s": 120.0})
        answers, _ = chat.chat(questions(40))
    # Three attempts fit into 120 seconds. The third of the first request would make it 150 in vain: from
    # then on each counts as a failure, and the tenth opens the breaker.
    assert [a.reason for a in answers] == ["deadline"] * 4 + ["unavailable"] * 36
    assert server.calls == 12 and chat.client.breaker.state == "open"


def test_pauses_add_up_only_while_nothing_is_answered(clock):
    limits = Limits(None, None, clock)
    assert limits.hold(50, at_most_s=120)
    assert limits.hold(50, at_most_s=120)  # told to two requests at once: one pause
    clock.now += 50
    assert limits.hold(50, at_most_s=120)
    clock.now += 50
    assert not limits.hold(50, at_most_s=120) and limits.held_s == 0
    limits.answered()
    assert limits.hold(50, at_most_s=120) and limits.held_s == pytest.approx(50)


def test_after_a_pause_not_all_come_back_at_the_same_moment(make_chat, clock, questions):
    with FaultyEndpoint() as server:
        chat = make_chat(server, policy={"concurrency": 1, "backoff_s": 2.0})
        for i in range(5):
            chat.client._limits.hold(10, at_most_s=1e9)
            chat.chat(questions(1, start=i))
    extra = [seconds - 10 for seconds in clock.sleeps]
    assert len(extra) == 5 and max(extra) - min(extra) > 0.001
    assert min(extra) > -0.001 and max(extra) < 2.001


def test_an_endpoint_that_bills_replies_without_words_is_left_alone(make_chat, questions):
    for fault in ("null-content", "203"):
        with FaultyEndpoint(faults=lambda _, fault=fault: fault) as server:
            chat = make_chat(server, policy={"concurrency": 1})
            first, _ = chat.chat(questions(50))
            second, _ = chat.chat(questions(50))
        assert [a.reason for a in first] == ["malformed"] * 10 + ["unavailable"] * 40
        assert {a.reason for a in second} == {"unavailable"} and server.billed_calls == 10


def test_replies_without_words_now_and_then_stop_nobody(make_chat, questions):
    with FaultyEndpoint(faults=lambda n: "null-content" if n % 3 else None) as server:
        answers, _ = make_chat(server, policy={"concurrency": 1}).chat(questions(60))
    assert [a.reason for a in answers] == ["answered", "malformed", "malformed"] * 20
