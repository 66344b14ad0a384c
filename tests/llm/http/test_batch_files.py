"""Batch files out and in: every question finds its answer, and no line is fatal."""

from __future__ import annotations

import json
import os

import pytest

from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.ledger import Prices
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.batch_files import Imported, export_batch, import_batch
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

PRICES = Prices(as_of="2026-05-01", per_million_tokens_in=1.0, per_million_tokens_out=4.0)


def served(lines):
    """What a host makes of a batch file: one answer a line, in another order."""
    rows = []
    for line in lines:
        asked = json.loads(line)
        content = "answer to " + asked["body"]["messages"][-1]["content"]
        body = {
            "choices": [{"message": {"content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5},
        }
        response = {"status_code": 200, "request_id": "r", "body": body}
        rows.append({"id": "b", "custom_id": asked["custom_id"], "response": response, "error": None})
    return rows[::-1]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def chat(make_chat, tmp_path):
    with FaultyEndpoint(reply="asked live") as server:
        yield make_chat(server, file=tmp_path / "f", prices=PRICES)


def test_a_round_trip_answers_every_question_without_a_call(chat, tmp_path, questions):
    exported = export_batch(chat, questions(5), tmp_path / "plan.jsonl")
    assert exported.files == (tmp_path / "plan.jsonl",) and (exported.requests, exported.left_out) == (5, 0)
    lines = (tmp_path / "plan.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first == {
        "custom_id": questions(1)[0].key(chat.fingerprint),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "fake",
            "messages": [
                {"role": "system", "content": "Rank."},
                {"role": "user", "content": "question 0"},
            ],
            "max_tokens": 64,
            "temperature": 0.0,
            "top_p": 1.0,
        },
    }
    answers_file = written(tmp_path / "out.jsonl", served(lines))
    assert import_batch(chat, answers_file, questions(5)) == Imported(stored=5)
    answers, usage = chat.chat(questions(5))
    assert [a.text for a in answers] == [f"answer to question {i}" for i in range(5)]
    assert {a.reason for a in answers} == {"cached"} and usage.llm_calls == 0
    account = spent(tmp_path / "f")
    assert (account.calls, account.tokens) == (5, 5 * 25)
    assert account.money == pytest.approx(5 * (20 * 1.0 + 5 * 4.0) / 1e6)


def test_importing_again_changes_nothing(chat, tmp_path, questions):
    export_batch(chat, questions(3), tmp_path / "plan.jsonl")
    rows = served((tmp_path / "plan.jsonl").read_text().splitlines())
    rows[0]["response"]["body"]["choices"] = []
    out = written(tmp_path / "out.jsonl", rows)
    assert import_batch(chat, out, questions(3)) == Imported(stored=2, malformed=1, missing=1)
    before = spent(tmp_path / "f")
    assert before.calls == 3  # the reply without words was billed as well
    assert import_batch(chat, out, questions(3)) == Imported(known=2, malformed=1, missing=1)
    assert spent(tmp_path / "f") == before


def test_a_question_answered_online_meanwhile_was_paid_for_in_the_batch_too(chat, tmp_path, questions):
    export_batch(chat, questions(2), tmp_path / "plan.jsonl")
    out = written(tmp_path / "out.jsonl", served((tmp_path / "plan.jsonl").read_text().splitlines()))
    chat.chat(questions(1))
    before = spent(tmp_path / "f")
    for _ in range(2):  # importing again adds nothing
        assert import_batch(chat, out, questions(2)).known >= 1
        assert spent(tmp_path / "f").tokens - before.tokens == 2 * 25
        assert spent(tmp_path / "f").calls - before.calls == 2
    assert chat.chat(questions(1))[0][0].text == "asked live"  # the answer stays what it was


def test_each_reply_to_a_question_is_paid_for(chat, tmp_path, questions):
    export_batch(chat, questions(1), tmp_path / "plan.jsonl")
    (good,) = served((tmp_path / "plan.jsonl").read_text().splitlines())
    silent = json.loads(json.dumps(good))
    silent["response"]["body"]["choices"] = []
    first, second = written(tmp_path / "1.jsonl", [silent]), written(tmp_path / "2.jsonl", [good])
    assert import_batch(chat, first, questions(1)) == Imported(malformed=1, missing=1)
    assert import_batch(chat, second, questions(1)) == Imported(stored=1)
    assert spent(tmp_path / "f").tokens == 2 * 25
    assert import_batch(chat, [first, second], questions(1)) == Imported(known=1, duplicate=1)
    assert spent(tmp_path / "f").tokens == 2 * 25


def test_a_reply_without_words_does_not_hide_the_next_one(chat, tmp_path, questions):
    export_batch(chat, questions(1), tmp_path / "plan.jsonl")
    (good,) = served((tmp_path / "plan.jsonl").read_text().splitlines())
    silent = json.loads(json.dumps(good))
    silent["response"]["body"]["choices"] = []
    out = written(tmp_path / "out.jsonl", [silent, good, {**good, "id": "c"}])
    assert import_batch(chat, out, questions(1)) == Imported(malformed=1, stored=1, duplicate=1)
    assert (spent(tmp_path / "f").calls, spent(tmp_path / "f").tokens) == (3, 3 * 25)


def test_a_batch_file_is_for_its_owner_alone_and_on_the_disk_before_it_has_its_name(
    chat, tmp_path, monkeypatch, questions
):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((tmp_path / "a.jsonl").exists()))
    (tmp_path / "a.jsonl.part").write_text("left by a run that was killed")
    export_batch(chat, questions(2), tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o077 == 0
    assert synced == [False] and not (tmp_path / "a.jsonl.part").exists()


def test_every_kind_of_bad_line_is_counted_and_none_is_fatal(chat, tmp_path, questions):
    export_batch(chat, questions(6), tmp_path / "plan.jsonl")
    good = served((tmp_path / "plan.jsonl").read_text().splitlines())  # questions 5, 4, ... 0
    failed = {**good[3], "response": None, "error": {"code": "expired", "message": "late"}}
    refused = {**good[4], "response": {"status_code": 400, "body": {"error": {"message": "no"}}}}
    stranger = {**good[0], "custom_id": "0" * 64}
    text = [
        json.dumps(good[0]),
        json.dumps(good[0]),  # duplicate
        json.dumps(stranger),
        json.dumps(good[1])[:-30],  # cut: broken, and so question 4 is missing
        "",  # blank lines are nothing
        "[1, 2]",
        '{"custom_id": 7}',
        "[" * 100_000,
        json.dumps(good[2]),
        json.dumps(failed),
        json.dumps(refused),
    ]
    out = tmp_path / "out.jsonl"
    out.write_bytes("\n".join(text).encode() + b"\n\xff\xfe not UTF-8\n" + b"x" * (9 << 20) + b"\nend")
    found = import_batch(chat, [out], questions(6))
    # Broken: the cut one, the list, the number as id, the nest, the bytes, the long one, the last one.
    assert found == Imported(stored=2, duplicate=1, unknown=1, broken=7, failed=2, missing=4)
    answers, _ = chat.chat([questions(6)[5], questions(6)[3]])
    assert [a.reason for a in answers] == ["cached", "cached"]


def test_only_what_is_not_answered_is_exported(chat, tmp_path, questions):
    chat.chat(questions(2))
    exported = export_batch(chat, [*questions(4), *questions(4)], tmp_path / "plan.jsonl")
    assert (exported.requests, exported.left_out) == (2, 6)
    empty = export_batch(chat, questions(2), tmp_path / "none.jsonl")
    assert empty.files == () and not (tmp_path / "none.jsonl").exists()


def test_files_are_split_by_lines_and_by_bytes(chat, tmp_path, questions):
    by_lines = export_batch(chat, questions(7), tmp_path / "a.jsonl", max_requests=3)
    assert [f.name for f in by_lines.files] == ["a.jsonl", "a-2.jsonl", "a-3.jsonl"]
    assert [len(f.read_text().splitlines()) for f in by_lines.files] == [3, 3, 1]
    one = len((tmp_path / "a-3.jsonl").read_bytes())
    by_bytes = export_batch(chat, questions(7), tmp_path / "b.jsonl", max_bytes=2 * one)
    assert [len(f.read_text().splitlines()) for f in by_bytes.files] == [2, 2, 2, 1]
    assert all(f.stat().st_size <= 2 * one for f in by_bytes.files)
    rows = [served(f.read_text().splitlines()) for f in by_bytes.files]
    outs = [written(tmp_path / f"out-{i}.jsonl", part) for i, part in enumerate(rows)]
    assert import_batch(chat, outs[::-1], questions(7)) == Imported(stored=7)


def test_a_request_larger_than_a_file_is_refused(chat, tmp_path, questions):
    with pytest.raises(ConfigError, match="more than a file of 50 may hold"):
        export_batch(chat, questions(1), tmp_path / "a.jsonl", max_bytes=50)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_plan_is_not_written_over(chat, tmp_path, questions):
    export_batch(chat, questions(1), tmp_path / "plan.jsonl")
    with pytest.raises(ConfigError, match="is there already"):
        export_batch(chat, questions(1), tmp_path / "plan.jsonl")


def test_files_that_cannot_be_used_are_named(chat, tmp_path, make_chat, questions):
    with pytest.raises(DataError, match="none.jsonl cannot be read"):
        import_batch(chat, tmp_path / "none.jsonl", questions(1))
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        export_batch(chat, questions(1), tmp_path / "blocked" / "plan.jsonl")
    with FaultyEndpoint() as server, pytest.raises(ConfigError, match="need a store"):
        import_batch(make_chat(server), tmp_path / "none.jsonl", questions(1))


def test_more_answers_than_are_stored_at_once(chat, tmp_path, questions):
    export_batch(chat, questions(1_203), tmp_path / "plan.jsonl")
    out = written(tmp_path / "out.jsonl", served((tmp_path / "plan.jsonl").read_text().splitlines()))
    assert import_batch(chat, out, questions(1_203)) == Imported(stored=1_203)
    assert spent(tmp_path / "f").calls == 1_203
