"""HttpChat against an endpoint that fails as planned: an answer or a reason for every request."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from frugalrec.errors import ConfigError, ModelError, StorageError
from frugalrec.ledger import Usage
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import Endpoint, HttpChat, SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.client import Client
from frugalrec.testing.fault_replies import WORDS
from frugalrec.testing.faulty_endpoint import FAULTS, FaultyEndpoint, seeded_faults


def echo(body):
    return "answer to " + body["messages"][-1]["content"]


def test_every_request_is_answered_in_order_and_what_was_spent_is_what_was_billed(make_chat, questions):
    with FaultyEndpoint(reply=echo) as server:
        answers, usage = make_chat(server).chat(questions(30))
    assert [a.text for a in answers] == [f"answer to question {i}" for i in range(30)]
    assert {a.reason for a in answers} == {"answered"}
    assert usage.tokens_in + usage.tokens_out == server.billed_tokens and usage.llm_calls == 30
    assert sum((a.usage for a in answers), Usage()).tokens_in == server.billed_tokens_in
    assert server.most_in_flight <= 4


def test_nothing_asked_costs_nothing(make_chat):
    with FaultyEndpoint() as server:
        answers, usage = make_chat(server).chat([])
    assert answers == [] and usage.llm_calls == 0 and server.calls == 0


def test_answers_do_not_depend_on_order_or_concurrency(make_chat, questions):
    with FaultyEndpoint(reply=echo) as server:
        alone, _ = make_chat(server, policy={"concurrency": 1}).chat(questions(12)[::-1])
        together, _ = make_chat(server, policy={"concurrency": 12}).chat(questions(12))
    assert [a.text for a in alone][::-1] == [a.text for a in together]


def test_equal_requests_are_asked_once(make_chat, questions):
    with FaultyEndpoint(reply=echo) as server:
        answers, usage = make_chat(server).chat([*questions(2), *questions(2)])
    assert [a.reason for a in answers] == ["answered", "answered", "cached", "cached"]
    assert [a.text for a in answers[2:]] == [a.text for a in answers[:2]]
    assert server.calls == usage.llm_calls == 2


def test_the_order_of_a_schemas_properties_is_part_of_the_question(make_chat):
    # Grammars follow it: the one model explains itself before it ranks, the other after.
    def request(*names):
        properties = {name: {"type": "string"} for name in names}
        return ChatRequest(system="", user="u", schema={"type": "object", "properties": properties})

    first, second = request("why", "ranking"), request("ranking", "why")
    assert first.key("m") != second.key("m") and first.key("m") == request("why", "ranking").key("m")
    with FaultyEndpoint(reply=echo) as server:
        answers, _ = make_chat(server, profile="openai").chat([first, second, first])
    assert [a.reason for a in answers] == ["answered", "answered", "cached"] and server.calls == 2


def test_the_body_says_what_the_request_says(make_chat):
    with FaultyEndpoint() as server:
        make_chat(server).chat([ChatRequest(system="s", user="u", max_tokens=7, temperature=0.5)])
        make_chat(server).chat([ChatRequest(system="", user="u")])
    assert server.bodies[0] == {
        "model": "fake",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 1.0,
    }
    assert [m["role"] for m in server.bodies[1]["messages"]] == ["user"]


@pytest.mark.parametrize("fault", ["408", "429", "429-date", "500", "502", "503", "reset", "truncated-body"])
def test_what_may_pass_is_tried_again(fault, make_chat, questions):
    with FaultyEndpoint(reply=echo, faults=[fault, fault]) as server:
        (answer,), usage = make_chat(server).chat(questions(1))
    assert answer.text == "answer to question 0" and answer.reason == "answered"
    assert server.calls == usage.llm_calls == 3


@pytest.mark.parametrize("status", ["307", "400", "401", "403", "404", "422"])
def test_a_refusal_is_not_tried_again(status, make_chat, questions):
    with FaultyEndpoint(faults=[status]) as server:
        (answer,), usage = make_chat(server).chat(questions(1))
    assert (answer.text, answer.reason) == (None, "refused") and status in answer.detail
    assert server.calls == 1 and usage.tokens_in == usage.tokens_out == 0


def test_redirects_are_said_not_to_be_followed(make_chat, questions):
    with FaultyEndpoint(faults=["307"]) as server:
        (answer,), _ = make_chat(server).chat(questions(1))
    assert "redirects are not followed" in answer.detail


MALFORMED = (
    "malformed-json", "truncated-json", "not-json", "not-utf8", "nested-json", "empty-body",
    "wrong-envelope", "error-in-200", "empty-choices", "null-content", "huge",
)  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_reply_is_told_and_not_paid_for_again(fault, make_chat, questions):
    with FaultyEndpoint(faults=[fault]) as server:
        answers, _ = make_chat(server, policy={"concurrency": 1}).chat(questions(2))
    assert [a.reason for a in answers] == ["malformed", "answered"]
    assert answers[0].text is None and answers[0].detail
    assert server.calls == 2


@pytest.mark.parametrize(
    "fault", ["prose", "wrong-schema", "fenced", "empty-words", "duplicate-ids", "truncated-words"]
)
def test_words_are_the_callers_to_judge(fault, make_chat, questions):
    with FaultyEndpoint(reply='{"ranking":[1,2]}', faults=[fault]) as server:
        (answer,), _ = make_chat(server).chat(questions(1))
    assert answer.reason == "answered" and answer.text != '{"ranking":[1,2]}'


def test_a_cut_answer_is_an_answer_that_says_so(make_chat, questions):
    with FaultyEndpoint(reply="x" * 400) as server:
        (answer,), _ = make_chat(server).chat(questions(1, max_tokens=2))
    assert answer.text == "x" * 8 and answer.detail == "stopped for: length"


@pytest.mark.parametrize("fault", ["no-usage", "zero-usage", "absurd-usage"])
def test_usage_that_is_not_told_is_estimated_in_reports_and_bounded_in_the_account(
    fault, make_chat, tmp_path, questions
):
    with FaultyEndpoint(reply="12345678", faults=[fault]) as server:
        (answer,), usage = make_chat(server, file=tmp_path / "f").chat(questions(1))
    assert answer.text == "12345678"
    # "Rank." and "question 0" are 15 bytes: 4 tokens, and 4 for each of two messages, and 3.
    assert (usage.tokens_in, usage.tokens_out) == (15, 2)
    account = spent(tmp_path / "f")
    # The bound: a token a byte, 256 for the template, and 64 that the answer may have.
    assert account.tokens == 15 + 256 + 64
    assert (account.estimated_in, account.estimated_out, account.unreported) == (15, 2, 1)


def test_a_stalled_endpoint_runs_into_the_attempts_time(make_chat, questions):
    with FaultyEndpoint(reply=echo, faults=["stall"]) as server:
        (answer,), usage = make_chat(server, policy={"timeout_s": 0.2}).chat(questions(1))
    assert answer.reason == "answered" and usage.llm_calls == 2
    with FaultyEndpoint(faults=["stall"] * 2) as server:
        (answer,), _ = make_chat(server, policy={"timeout_s": 0.1, "attempts": 2}).chat(questions(1))
    assert answer.reason == "unavailable" and "no reply within 0.1 s" in answer.detail


def test_the_deadline_ends_a_request_whatever_is_left_to_try(make_chat, clock, questions):
    with FaultyEndpoint(faults=["429"] * 9, retry_after_s=40) as server:
        chat = make_chat(server, policy={"deadline_s": 100.0, "attempts": 9, "longest_backoff_s": 0.0})
        (answer,), _ = chat.chat(questions(1))
    # Waits of 40 and 80 seconds fit into 100; a third would not.
    assert answer.reason == "deadline" and "100 s" in answer.detail
    assert server.calls == 3 and clock.sleeps == [40.0, 40.0]


def test_a_deadline_cuts_a_running_attempt_short(make_chat, questions):
    from frugalrec.llm.http.clock import Clock

    with FaultyEndpoint(faults=["stall"]) as server:
        policy = {"deadline_s": 0.15, "timeout_s": 60.0}
        (answer,), _ = make_chat(server, policy=policy, clock=Clock()).chat(questions(1))
    assert answer.reason == "deadline" and server.calls == 1


def test_attempts_come_to_an_end(make_chat, questions):
    with FaultyEndpoint(faults=["503"] * 9) as server:
        (answer,), usage = make_chat(server, policy={"attempts": 3}).chat(questions(1))
    assert (
        answer.reason == "unavailable"
        and "503" in answer.detail
        and "attempt 3 was the last" in answer.detail
    )
    assert server.calls == usage.llm_calls == 3


def test_retries_have_a_common_budget(make_chat, questions):
    with FaultyEndpoint(faults=lambda _: "503") as server:
        policy = {"attempts": 9, "spare_retries": 5, "retries_per_request": 0.5, "failures_until_open": 999}
        answers, _ = make_chat(server, policy=policy).chat(questions(20))
    assert {a.reason for a in answers} == {"unavailable"}
    # 20 first attempts, 5 spare retries and a half for each request.
    assert server.calls == 20 + 5 + 10


def test_all_wait_while_the_endpoint_says_so(make_chat, clock, questions):
    def at_most_three_in_ten_seconds(number):
        now = clock.now
        sent[:] = [at for at in sent if at > now - 10]
        if len(sent) >= 3:
            return "429"
        sent.append(now)
        return None

    sent: list[float] = []
    with FaultyEndpoint(faults=at_most_three_in_ten_seconds, retry_after_s=10) as server:
        policy = {"spare_retries": 0, "retries_per_request": 0.0, "backoff_s": 0.0}
        policy |= {"attempts": 30, "deadline_s": 1e4}
        answers, _ = make_chat(server, policy=policy).chat(questions(15))
    # Neither the budget of retries nor the queue is drained by an endpoint that is merely busy.
    assert {a.reason for a in answers} == {"answered"}
    assert clock.now - clock.start >= 40


def test_an_endpoint_that_is_busy_for_too_long_is_taken_for_dead(make_chat, clock, questions):
    with FaultyEndpoint(faults=lambda _: "429", retry_after_s=3600) as server:
        policy = {"failures_until_open": 5, "concurrency": 1}
        answers, _ = make_chat(server, policy=policy).chat(questions(20))
    assert [a.reason for a in answers] == ["deadline"] * 5 + ["unavailable"] * 15
    assert server.calls == 5 and clock.sleeps == []


def test_an_endpoint_that_only_fails_is_left_alone_and_tried_again_later(make_chat, clock, questions):
    with FaultyEndpoint(faults=["500"] * 6) as server:
        policy = {"failures_until_open": 5, "rest_s": 30.0, "attempts": 1, "concurrency": 1}
        chat = make_chat(server, policy=policy)
        first, _ = chat.chat(questions(8))
        assert server.calls == 5 and {a.reason for a in first} == {"unavailable"}
        assert first[-1].usage.llm_calls == 0
        clock.now += 30
        second, _ = chat.chat(questions(3))  # one trial, which fails
        assert server.calls == 6 and {a.reason for a in second} == {"unavailable"}
        clock.now += 30
        third, _ = chat.chat(questions(3))
        assert {a.reason for a in third} == {"answered"} and server.calls == 9


def test_a_wrong_key_stops_after_a_few_refusals(make_chat, questions):
    with FaultyEndpoint(faults=lambda _: "401") as server:
        policy = {"failures_until_open": 5, "concurrency": 1}
        answers, _ = make_chat(server, policy=policy).chat(questions(50))
    assert server.calls == 5
    assert [a.reason for a in answers] == ["refused"] * 5 + ["unavailable"] * 45


def test_an_endpoint_that_is_not_there_costs_nothing(clock, tmp_path, questions):
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    chat = HttpChat(endpoint, file=tmp_path / "f", cap=SpendCap(limit=3, unit="calls"), clock=clock)
    answers, usage = chat.chat(questions(2))
    assert {a.reason for a in answers} == {"unavailable"} and "no connection" in answers[0].detail
    assert usage.llm_calls == 0 and spent(tmp_path / "f").calls == 0


def test_limits_a_minute_are_kept_on_the_clock(make_chat, clock, questions):
    with FaultyEndpoint() as server:
        chat = make_chat(server, policy={"requests_per_minute": 60.0, "concurrency": 1})
        answers, _ = chat.chat(questions(60))
    assert {a.reason for a in answers} == {"answered"}
    # Six at once, the other 54 at 0.9 a second.
    assert clock.now - clock.start == pytest.approx(54 / 0.9, rel=0.02)


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_faults_leaves_an_answer_or_a_reason_for_everyone(seed, make_chat, tmp_path, questions):
    kinds = sorted(set(FAULTS) - {"stall", "huge", *WORDS})
    with FaultyEndpoint(reply=echo, faults=seeded_faults(seed, 0.5, kinds), retry_after_s=0) as server:
        chat = make_chat(server, file=tmp_path / "f", policy={"concurrency": 8, "spare_retries": 200})
        answers, usage = chat.chat(questions(60))
    assert len(answers) == 60
    for number, answer in enumerate(answers):
        assert (answer.text is not None) == (answer.reason in ("answered", "cached"))
        if answer.text is not None and not answer.text.startswith("you sent"):
            assert answer.text == f"answer to question {number}"
    assert usage.llm_calls == server.calls == spent(tmp_path / "f").calls
    assert spent(tmp_path / "f").tokens >= server.billed_tokens
    assert spent(tmp_path / "f").open_attempts == 0


def test_progress_counts_to_the_end(make_chat, tmp_path, questions):
    seen = []
    with FaultyEndpoint(reply=echo) as server:
        chat = make_chat(server, file=tmp_path / "f")
        chat.chat(questions(3))
        chat.chat(questions(5), progress=lambda done, n: seen.append((done, n)))
        assert seen == [(4, 5), (5, 5)]
        chat.chat(questions(5), progress=lambda done, n: seen.append((done, n)))
    assert seen[2:] == [(5, 5)]


def test_it_works_inside_a_running_loop(make_chat, questions):
    async def notebook(chat):
        return chat.chat(questions(2))

    with FaultyEndpoint(reply=echo) as server:
        answers, _ = asyncio.run(notebook(make_chat(server)))
    assert [a.reason for a in answers] == ["answered"] * 2


def test_a_reply_with_half_characters_is_kept(make_chat, tmp_path):
    request = ChatRequest(system="", user="half \ud83d of one")
    with FaultyEndpoint(reply="other half \udcc8") as server:
        chat = make_chat(server, file=tmp_path / "f")
        (answer,), _ = chat.chat([request])
        (again,), _ = chat.chat([request])
    assert answer.text == again.text == "other half ?" and again.reason == "cached"


def test_errors_of_the_setup_are_raised_before_anything_is_sent(make_chat, tmp_path, monkeypatch, questions):
    with FaultyEndpoint() as server:
        with pytest.raises(ConfigError, match="a cap needs a file"):
            make_chat(server, cap=SpendCap(limit=1, unit="calls")).chat(questions(1))
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        with pytest.raises(ModelError, match="NO_SUCH_KEY is not set"):
            make_chat(server, api_key_env="NO_SUCH_KEY").chat(questions(1))
        (tmp_path / "f").write_text("this is no database, but long enough to be looked at" * 40)
        with pytest.raises(StorageError, match="cannot be used"):
            make_chat(server, file=tmp_path / "f").chat(questions(1))
    assert server.calls == 0


def test_a_disk_that_fails_midway_stops_the_run_with_a_storage_error(
    make_chat, tmp_path, monkeypatch, questions
):
    from frugalrec.llm.http import store

    def full(connection, answers, now):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "remember", full)
    with FaultyEndpoint() as server, pytest.raises(StorageError, match="disk is full"):
        make_chat(server, file=tmp_path / "f").chat(questions(20))
    assert server.calls <= 4 + 1


def test_calls_are_made_only_when_a_worker_is_free(make_chat, questions):
    # Memory stays flat because bodies do not wait: never more calls taken than done plus workers.
    taken, done, ahead = 0, 0, []
    with FaultyEndpoint() as server:
        chat = make_chat(server)
        original = Client.ask

        def watched(self, calls, n, journal, *, progress=None):
            def counting():
                nonlocal taken
                for call in calls:
                    taken += 1
                    ahead.append(taken - done)
                    yield call

            def count(so_far, of):
                nonlocal done
                done = so_far
                progress(so_far, of)

            return original(self, counting(), n, journal, progress=count)

        chat.client.ask = watched.__get__(chat.client)
        chat.chat(questions(60))
    assert taken == 60 and max(ahead) <= 4
