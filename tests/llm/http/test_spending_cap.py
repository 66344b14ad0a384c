"""The cap: nothing passes it, whatever fails, however many ask, and whoever is killed."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, StorageError
from frugalrec.ledger import Prices, Usage
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.replies import Reply
from frugalrec.llm.http.spending import Spending, money, most, size_of
from frugalrec.testing.faulty_endpoint import FAULTS, FaultyEndpoint, seeded_faults

PRICES = Prices(as_of="2026-05-01", per_million_tokens_in=2.0, per_million_tokens_out=8.0)
FAST = {"concurrency": 8, "spare_retries": 200, "failures_until_open": 10**6}
NO_STALL = sorted(set(FAULTS) - {"stall", "huge"})


def truth(server, unit):
    """What the endpoint would have billed, in a unit."""
    if unit == "money":
        return (server.billed_tokens_in * 2.0 + server.billed_tokens_out * 8.0) / 1e6
    return {"calls": server.calls, "tokens": server.billed_tokens}[unit]


def booked(path, unit):
    account = spent(path)
    return {"calls": account.calls, "tokens": account.tokens, "money": account.money}[unit]


# A request takes at most 256 + 16 + 64 tokens: 336, or $ 0.00106.
@pytest.mark.slow
@pytest.mark.parametrize(("unit", "limit"), [("calls", 17), ("tokens", 4_000), ("money", 0.012)])
@pytest.mark.parametrize("seed", range(2))
def test_spend_never_passes_the_cap_under_concurrency_retries_and_faults(
    unit, limit, seed, make_chat, tmp_path, questions
):
    # The dearest tokenizer there is, and an endpoint that bills whatever it did not refuse.
    faults = seeded_faults(seed, 0.4, NO_STALL)
    with FaultyEndpoint(reply="y" * 30, faults=faults, retry_after_s=0, bytes_per_token=1) as server:
        cap = SpendCap(limit=limit, unit=unit)
        chat = make_chat(server, file=tmp_path / "f", cap=cap, prices=PRICES, policy=FAST)
        answers, usage = chat.chat(questions(60))
        again, _ = chat.chat(questions(60, start=60))
    assert truth(server, unit) <= booked(tmp_path / "f", unit) <= limit
    reasons = [a.reason for a in answers] + [a.reason for a in again]
    assert "over-budget" in reasons and "answered" in reasons
    assert all(a.usage == Usage() or a.usage.llm_calls for a in answers if a.reason == "over-budget")
    # What was left is less than one request might have cost.
    one = {"calls": 1, "tokens": 336, "money": 0.00106}[unit]
    assert limit - booked(tmp_path / "f", unit) < one + 1e-9


def test_a_stalled_attempt_counts_in_full(make_chat, tmp_path, questions):
    with FaultyEndpoint(faults=["stall"]) as server:
        policy = {"timeout_s": 0.1, "attempts": 1}
        chat = make_chat(server, file=tmp_path / "f", policy=policy)
        chat.chat(questions(1))
    # "Rank." and "question 0": 15 bytes, 256 for the template, 64 for the answer.
    assert spent(tmp_path / "f").tokens == 15 + 256 + 64 >= server.billed_tokens > 0


def test_a_refusal_counts_as_a_call_without_tokens(make_chat, tmp_path, questions):
    with FaultyEndpoint(faults=["400"]) as server:
        make_chat(server, file=tmp_path / "f").chat(questions(1))
    account = spent(tmp_path / "f")
    assert (account.calls, account.tokens, account.tokens_in, account.tokens_out) == (1, 0, 0, 0)
    assert account.unreported == 0  # it said that it computed nothing


def test_a_success_that_is_no_answer_counts_in_full(make_chat, tmp_path, questions):
    # A proxy that changes replies says 203; the endpoint behind it has computed and billed them.
    with FaultyEndpoint(reply="y" * 30, faults=lambda _: "203", bytes_per_token=1) as server:
        cap = SpendCap(limit=1_000, unit="tokens")
        answers, _ = make_chat(server, file=tmp_path / "f", cap=cap).chat(questions(60))
    assert answers[0].reason == "malformed" and "status 203" in answers[0].detail
    assert 0 < server.billed_tokens <= spent(tmp_path / "f").tokens <= 1_000


def test_an_answer_counts_what_the_endpoint_says(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="12345678") as server:
        make_chat(server, file=tmp_path / "f", prices=PRICES).chat(questions(3))
    account = spent(tmp_path / "f")
    assert account.tokens == server.billed_tokens == account.reported_in + account.reported_out
    assert account.money == pytest.approx(truth(server, "money"), abs=3e-9)
    assert account.currency == "USD" and account.open_attempts == account.unreported == 0
    assert account.estimated_in > 0 and account.estimated_out == 3 * 2


def test_reports_show_what_was_told_and_estimate_the_rest(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="12345678", faults=["no-usage", None, "422"]) as server:
        _, usage = make_chat(server, file=tmp_path / "f", policy={"concurrency": 1}).chat(questions(3))
    account = spent(tmp_path / "f")
    # Estimated: 15 bytes are 4 tokens, 11 around the messages. The endpoint: 2 + 3 tokens and 8 around them.
    assert account.tokens_in == usage.tokens_in == 15 + 13
    assert account.tokens_out == usage.tokens_out == 2 + 2
    assert account.unreported == 1


def test_a_cap_of_nothing_asks_nothing(make_chat, tmp_path, questions):
    with FaultyEndpoint() as server:
        chat = make_chat(server, file=tmp_path / "f", cap=SpendCap(limit=0, unit="tokens"))
        answers, usage = chat.chat(questions(5))
    assert {a.reason for a in answers} == {"over-budget"} and server.calls == usage.llm_calls == 0


def test_seconds_are_a_unit_too(make_chat, tmp_path, questions):
    from frugalrec.llm.http.clock import Clock

    with FaultyEndpoint(latency_s=0.05) as server:
        cap = SpendCap(limit=5.2, unit="seconds")
        chat = make_chat(server, file=tmp_path / "f", cap=cap, clock=Clock(), policy={"concurrency": 2})
        answers, _ = chat.chat(questions(20))
    # An attempt may take 5 seconds, so never two at once, and some fit one after the other.
    assert server.most_in_flight == 1
    assert 0.05 <= spent(tmp_path / "f").seconds <= 5.2
    assert {a.reason for a in answers} == {"answered", "over-budget"}


WORKER = """
import sys
from pathlib import Path
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat, SpendCap
url, file, name = sys.argv[1:]
chat = HttpChat(
    Endpoint(base_url=url, model="fake", name="test"),
    policy=CallPolicy(concurrency=4, backoff_s=0.0, failures_until_open=10**6),
    cap=SpendCap(limit=8_000, unit="tokens"),
    file=Path(file),
)
requests = [ChatRequest(system="Rank.", user=f"{name} {i}", max_tokens=64) for i in range(60)]
chat.chat(requests[:1])
print("asked", flush=True)
sys.stdin.readline()
chat.chat(requests)
"""


@pytest.mark.slow
def test_two_processes_share_one_cap(tmp_path):
    faults = seeded_faults(0, 0.3, ["500", "reset", "429", "no-usage"])
    with FaultyEndpoint(reply="y" * 30, faults=faults, retry_after_s=0, bytes_per_token=1) as server:
        commands = [[sys.executable, "-c", WORKER, server.url, str(tmp_path / "f"), n] for n in ("a", "b")]
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen(command, **piped) for command in commands]
        # Neither goes on before both have asked once; from then on they ask at the same time.
        assert [worker.stdout.readline() for worker in workers] == ["asked\n"] * 2
        for worker in workers:
            worker.stdin.close()
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
        for worker in workers:
            worker.stdout.close()
    account = spent(tmp_path / "f")
    assert server.billed_tokens <= account.tokens <= 8_000
    assert account.tokens > 8_000 - 336 and account.calls == server.calls
    asked_by = {body["messages"][1]["content"][0] for body in server.bodies}
    assert asked_by == {"a", "b"}


def test_threads_that_share_a_model_share_its_cap(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="y" * 30, bytes_per_token=1) as server:
        cap = SpendCap(limit=3_000, unit="tokens")
        chat = make_chat(server, file=tmp_path / "f", cap=cap)
        parts = [questions(20, start=start) for start in (0, 20, 40)]
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda part: chat.chat(part)[0], parts))
    reasons = {answer.reason for answers in found for answer in answers}
    assert reasons == {"answered", "over-budget"}
    assert server.billed_tokens == spent(tmp_path / "f").tokens <= 3_000


def test_a_machine_paid_by_the_hour_is_capped_by_its_seconds(make_chat, tmp_path, questions):
    # $ 3.6 an hour are $ 0.001 a second: an attempt of at most 5 seconds reserves $ 0.005.
    rented = Prices(as_of="2026-05-01", per_machine_hour=3.6)
    with FaultyEndpoint() as server:
        cap = SpendCap(limit=0.0049, unit="money")
        chat = make_chat(server, file=tmp_path / "f", cap=cap, prices=rented)
        assert chat.chat(questions(1))[0][0].reason == "over-budget"
        cap = SpendCap(limit=0.0051, unit="money")
        chat = make_chat(server, file=tmp_path / "f", cap=cap, prices=rented)
        assert chat.chat(questions(1))[0][0].reason == "answered"
    assert server.calls == 1 and spent(tmp_path / "f").money == 0.0  # the clock of this test stood still


def test_an_endpoint_that_bills_more_than_it_may_stops_everything_after(
    make_chat, tmp_path, caplog, questions
):
    # It says 10 ** 6 tokens for a prompt of fifteen bytes: no bound can foresee a lie.
    with FaultyEndpoint() as server:
        cap = SpendCap(limit=5_000, unit="tokens")
        chat = make_chat(server, file=tmp_path / "f", cap=cap, policy={"concurrency": 1})
        original = server._answer
        server._answer = lambda *a: {
            **original(*a),
            "usage": {"prompt_tokens": 10**6, "completion_tokens": 1},
        }
        answers, _ = chat.chat(questions(3))
    assert [a.reason for a in answers] == ["answered", "over-budget", "over-budget"]
    assert "billed more tokens than" in caplog.text


@given(
    st.sampled_from(["calls", "tokens", "money"]),
    st.floats(0, 50),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300), st.booleans()), max_size=25),
)
@settings(deadline=None, max_examples=40)
def test_any_order_of_reserving_and_settling_keeps_the_cap(unit, share, steps):
    scale = {"calls": 1, "tokens": 100, "money": 1e-4}[unit]
    cap = SpendCap(limit=share * scale, unit=unit)
    spending = Spending(prices=PRICES, cap=cap)
    open_attempts, naive = {}, {}
    with Journal(None) as journal:
        for n_bytes, max_tokens, settle in steps:
            size = size_of(["x" * n_bytes], max_tokens)
            number = journal.run(lambda db, s=size: spending.reserve(db, key="k", size=s, seconds=1, now=0))
            if number is not None:
                open_attempts[number] = size
                naive[number] = spending.amounts(most(size, 1))[unit]
            if settle and open_attempts:
                done, size = open_attempts.popitem()
                reply = Reply(text="x", tokens_in=min(3, size.most_in), tokens_out=1)
                usage = Usage(tokens_in=reply.tokens_in, tokens_out=1, llm_calls=1)
                journal.run(
                    lambda db, d=done, u=usage, r=reply: spending.settle(
                        db, d, usage=u, outcome="answered", estimated=1, reply=r
                    )
                )
                naive[done] = spending.amounts(usage)[unit]
            left = journal.run(spending.left)
            scale_of = 10**9 if unit == "money" else 1
            expected = (math.floor(cap.limit * scale_of) - sum(naive.values())) / scale_of
            assert left == pytest.approx(expected) and left >= 0


def test_an_unknown_price_is_an_error_before_anything_is_sent(make_chat, tmp_path, questions):
    cap = SpendCap(limit=1, unit="money")
    with FaultyEndpoint() as server:
        with pytest.raises(ConfigError, match="needs a price table"):
            make_chat(server, file=tmp_path / "f", cap=cap).chat(questions(1))
        half = Prices(as_of="2026-05-01", per_million_tokens_in=1.0)
        for ask in ("chat", "dry_run"):
            with pytest.raises(ConfigError, match="no per_million_tokens_out"):
                getattr(make_chat(server, file=tmp_path / "f", cap=cap, prices=half), ask)(questions(1))
        make_chat(server, file=tmp_path / "g").chat(questions(1))  # without prices
        assert spent(tmp_path / "g").money is None
        with pytest.raises(ConfigError, match="1 attempts without a price"):
            make_chat(server, file=tmp_path / "g", cap=cap, prices=PRICES).chat(questions(2))
        make_chat(server, file=tmp_path / "h", prices=PRICES).chat(questions(1))
        euros = Prices(as_of="2026-05-01", currency="EUR", per_million_tokens_in=1, per_million_tokens_out=1)
        with pytest.raises(ConfigError, match="counts in USD, the price table in EUR"):
            make_chat(server, file=tmp_path / "h", prices=euros).chat(questions(2))
    assert server.calls == 2


def test_cached_tokens_without_a_price_cost_as_much_as_others():
    usage = Usage(tokens_in=10, tokens_cached=90, tokens_out=5)
    assert money(PRICES, usage) == pytest.approx((100 * 2.0 + 5 * 8.0) / 1e6)
    cheaper = Prices(
        as_of="2026-05-01",
        per_million_tokens_in=2.0,
        per_million_tokens_out=8.0,
        per_million_tokens_cached=0.5,
    )
    assert money(cheaper, usage) == pytest.approx((10 * 2.0 + 90 * 0.5 + 5 * 8.0) / 1e6)


def test_a_dry_run_says_what_the_run_then_stays_below(make_chat, tmp_path, questions):
    requests = [*questions(4), *questions(2)]
    with FaultyEndpoint(reply="y" * 30, faults=["500", None, "reset"], retry_after_s=0) as server:
        policy = {"attempts": 3}
        cap = SpendCap(limit=20, unit="calls")
        chat = make_chat(server, file=tmp_path / "f", prices=PRICES, cap=cap, policy=policy)
        chat.chat(questions(1))
        before = spent(tmp_path / "f")
        dry = chat.dry_run(requests)
        assert server.calls == before.calls and spent(tmp_path / "f") == before
        chat.chat(requests)
    after = spent(tmp_path / "f")
    assert (dry.requests, dry.cached) == (6, 3)  # one answered before, two repeated
    assert dry.likely.llm_calls == 3 and dry.most.llm_calls == 9
    # 15 bytes: 4 tokens, 11 around the messages. At most 15 + 256, and 64 for the answer.
    assert (dry.likely.tokens_in, dry.likely.tokens_out) == (3 * 15, 3 * 64)
    assert (dry.most.tokens_in, dry.most.tokens_out) == (9 * 271, 9 * 64)
    assert dry.likely_money == pytest.approx((45 * 2 + 192 * 8) / 1e6)
    assert after.calls - before.calls <= dry.most.llm_calls
    assert after.tokens - before.tokens <= dry.most.tokens_in + dry.most.tokens_out
    assert after.money - before.money <= dry.most_money
    assert dry.left == 20 - before.calls and dry.unit == "calls" and dry.fits
    assert (dry.currency, dry.prices_as_of) == ("USD", "2026-05-01")


def test_a_dry_run_says_when_the_cap_may_not_be_enough(make_chat, tmp_path, questions):
    with FaultyEndpoint() as server:
        for unit, limit in (("calls", 7), ("tokens", 2_000), ("seconds", 30), ("money", 0.001)):
            cap = SpendCap(limit=limit, unit=unit)
            chat = make_chat(server, file=tmp_path / unit, cap=cap, prices=PRICES)
            assert not chat.dry_run(questions(2)).fits
        assert make_chat(server).dry_run(questions(2)).likely_money is None
    assert server.calls == 0


@pytest.mark.slow
def test_no_tokenizer_makes_more_of_a_text_than_its_bound(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for text in ("Heat (1995)", "魔女の宅急便", "🎬🎬🎬", "\x00\x01", "ąęśćż" * 9, "a" * 500):
        chat = [{"role": "user", "content": text}]
        framed = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert len(tokenizer(framed)["input_ids"]) <= size_of([text], 1).most_in


@pytest.mark.parametrize(
    ("limit", "unit", "message"),
    [
        (1, "dollars", "not in 'dollars'"),
        (-1, "calls", "from 0 on, not -1"),
        (math.inf, "calls", "not inf"),
        (math.nan, "money", "not nan"),
    ],
)
def test_senseless_caps_are_refused(limit, unit, message):
    with pytest.raises(ConfigError, match=message):
        SpendCap(limit=limit, unit=unit)


def test_a_path_that_cannot_be_is_an_error_and_no_endless_wait(tmp_path):
    with pytest.raises(StorageError, match="cannot be used"):
        Journal(tmp_path / "a\0b").__enter__()


def test_trouble_of_any_kind_with_the_file_reaches_who_opens_it(tmp_path, monkeypatch):
    def out_of_memory(self):
        raise MemoryError

    monkeypatch.setattr(Journal, "_open", out_of_memory)
    journal = Journal(tmp_path / "f")
    with pytest.raises(MemoryError):
        journal.__enter__()
    with pytest.raises(StorageError, match="is not open"):
        journal.run(lambda db: None)


def test_there_must_be_a_file_to_read_spending_from(tmp_path):
    with pytest.raises(StorageError, match="nothing was spent there"):
        spent(tmp_path / "none")


def test_a_request_knows_its_size():
    request = ChatRequest(system="é", user="abc", schema={"type": "object"}, max_tokens=9)
    size = size_of([request.system, request.user], request.max_tokens, request.schema)
    # 2 + 3 bytes; the schema takes 18; 256 for the template. Likely: 5 / 4, and 4 a message, and 3.
    assert (size.most_in, size.likely_in, size.most_out) == (2 + 3 + 18 + 256, 2 + 8 + 3, 9)
