"""What was answered is on the disk: a run that is killed and started again pays nothing twice."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import pytest

from frugalrec.errors import StorageError
from frugalrec.llm.http import SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.journal import Journal
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

WORKER = """
import sys
from pathlib import Path
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat, SpendCap
url, file, concurrency = sys.argv[1:]
chat = HttpChat(
    Endpoint(base_url=url, model="fake", name="test"),
    policy=CallPolicy(concurrency=int(concurrency)),
    cap=SpendCap(limit=100_000, unit="tokens"),
    file=Path(file),
)
chat.chat([ChatRequest(system="Rank.", user=f"question {i}", max_tokens=64) for i in range(40)])
"""


def killed(server, path, concurrency, *, after):
    """Run the worker, and kill it once the server has seen so many requests."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, server.url, str(path), str(concurrency)])
    until = time.monotonic() + 60
    while server.calls < after and time.monotonic() < until:
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL


def times_asked(server):
    return Counter(body["messages"][1]["content"] for body in server.bodies)


@pytest.mark.slow
def test_a_killed_run_repeats_only_the_call_that_was_never_answered(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="fine", faults=[None] * 7 + ["stall"], stall_s=60) as server:
        killed(server, tmp_path / "f", 1, after=8)
        between = spent(tmp_path / "f")
        chat = make_chat(server, file=tmp_path / "f")
        answers, usage = chat.chat(questions(40))
    assert between.open_attempts == 1 and between.calls == 8
    assert Counter(a.reason for a in answers) == {"cached": 7, "answered": 33}
    assert {a.text for a in answers} == {"fine"}
    asked = times_asked(server)
    assert {q for q, n in asked.items() if n > 1} == {"question 7"} and len(asked) == 40
    # The killed attempt stays booked in full, beside what the rest of them cost.
    assert spent(tmp_path / "f").tokens >= server.billed_tokens and usage.llm_calls == 33


@pytest.mark.slow
def test_a_run_killed_in_full_flight_repeats_nothing_that_was_answered(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="fine", latency_s=0.02) as server:
        killed(server, tmp_path / "f", 4, after=15)
        with sqlite3.connect(tmp_path / "f") as connection:
            rows = connection.execute("SELECT key FROM chat_attempts WHERE outcome = 'open'").fetchall()
            stored = {r[0] for r in connection.execute("SELECT key FROM chat_answers")}
        connection.close()
        unfinished = {row[0] for row in rows}
        chat = make_chat(server, file=tmp_path / "f", cap=SpendCap(limit=100_000, unit="tokens"))
        answers, _ = chat.chat(questions(40))
    assert len(unfinished) <= 4 and len(stored) >= 10 and not unfinished & stored
    by_key = {q.key(chat.fingerprint): q.user for q in questions(40)}
    twice = {q for q, n in times_asked(server).items() if n > 1}
    assert twice <= {by_key[key] for key in unfinished}
    assert sum(a.reason == "cached" for a in answers) == len(stored)
    assert server.billed_tokens <= spent(tmp_path / "f").tokens <= 100_000


def test_answers_are_found_by_the_next_run_and_not_by_another_model(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="fine") as server:
        make_chat(server, file=tmp_path / "f").chat(questions(3))
        again, usage = make_chat(server, file=tmp_path / "f").chat(questions(3))
        other, _ = make_chat(server, file=tmp_path / "f", profile="vllm").chat(questions(3))
    assert {a.reason for a in again} == {"cached"} and usage.llm_calls == 0 and usage.tokens_in == 0
    assert {a.reason for a in other} == {"answered"} and server.calls == 6


def test_failures_are_not_remembered(make_chat, tmp_path, questions):
    with FaultyEndpoint(faults=["null-content", "400"]) as server:
        chat = make_chat(server, file=tmp_path / "f", policy={"concurrency": 1})
        first, _ = chat.chat(questions(2))
        second, _ = chat.chat(questions(2))
    assert [a.reason for a in first] == ["malformed", "refused"]
    assert [a.reason for a in second] == ["answered", "answered"]


def test_answers_are_trusted_for_their_time(make_chat, tmp_path, clock, questions):
    with FaultyEndpoint() as server:
        chat = make_chat(server, file=tmp_path / "f", ttl_s=100.0)
        for wait, reason in [(0, "answered"), (99, "cached"), (2, "answered"), (99, "cached")]:
            clock.now += wait
            assert chat.chat(questions(1))[0][0].reason == reason


def test_a_journal_is_shared_by_threads_and_commits_in_groups(tmp_path):
    with Journal(tmp_path / "deep" / "f") as journal:
        journal.run(lambda db: db.execute("CREATE TABLE numbers (n INTEGER)"))
        futures = [
            journal._submit(lambda db, n=n: db.execute("INSERT INTO numbers VALUES (?)", (n,)))
            for n in range(50)
        ]
        for future in futures:
            future.result()
        assert journal.run(lambda db: db.execute("SELECT sum(n) FROM numbers").fetchone()) == (1225,)


def test_an_operation_that_fails_does_not_take_its_neighbours_along_unheard(tmp_path):
    with Journal(tmp_path / "f") as journal:
        with pytest.raises(StorageError, match="no such table"):
            journal.run(lambda db: db.execute("SELECT * FROM nowhere"))
        with pytest.raises(ZeroDivisionError):
            journal.run(lambda db: 1 // 0)
        assert journal.run(lambda db: db.execute("SELECT 1").fetchone()) == (1,)


def test_a_journal_must_be_open(tmp_path):
    with pytest.raises(StorageError, match="not open"):
        Journal(tmp_path / "f").run(lambda db: None)
    with pytest.raises(StorageError, match="cannot be used"):
        Journal(tmp_path).__enter__()


def test_the_account_survives_as_json(make_chat, tmp_path, questions):
    from dataclasses import asdict

    with FaultyEndpoint() as server:
        make_chat(server, file=tmp_path / "f").chat(questions(1))
    assert json.loads(json.dumps(asdict(spent(tmp_path / "f"))))["calls"] == 1
