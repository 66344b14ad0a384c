"""Whatever an endpoint sends, reading it gives words or says what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.llm.http.replies import Reply, error_code, read_reply


def body(**fields):
    return json.dumps(
        {
            "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1},
            **fields,
        }
    ).encode()


def test_a_good_reply_is_read():
    usage = {
        "prompt_tokens": 50,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 40},
    }
    assert read_reply(body(usage=usage)) == Reply(
        text="hi", finish="stop", tokens_in=50, tokens_out=3, tokens_cached=40
    )


def test_completions_and_lists_of_parts_are_read():
    assert read_reply(body(choices=[{"text": "x"}])).text == "x"
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert read_reply(body(choices=[{"message": {"content": parts}}])).text == "ab"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"<html>", "not JSON"),
        (b'{"choices": [', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),  # more digits than Python reads
        (b"[1]", "not a JSON object"),
        (b"{}", "no choices"),
        (body(choices=[]), "no choices"),
        (body(choices={"a": 1}), "no choices"),
        (body(choices=[None]), "no choices"),
        (b'{"error": {"code": "oom", "message": "the key sk-1"}}', r"no choices but an error \(oom\)"),
        (body(choices=[{}]), "no words"),
        (body(choices=[{"message": {"content": None}, "finish_reason": "length"}]), "stopped for: length"),
        (body(choices=[{"message": {"content": 7}}]), "no words"),
        (body(choices=[{"message": "text"}]), "no words"),
        (body(choices=[{"message": {"content": []}}]), "no words"),
    ],
)
def test_a_bad_reply_says_what_is_wrong(data, problem):
    reply = read_reply(data)
    assert reply.text is None
    import re

    assert re.search(problem, reply.problem)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (None, None, 0)),
        ([], (None, None, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (None, None, 0)),  # words are never free
        ({"prompt_tokens": True, "completion_tokens": 1.5}, (None, None, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 10**12}, (None, None, 0)),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
            (5, 2, 5),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, (5, 2, 0)),
    ],
)
def test_counts_that_make_no_sense_are_taken_as_not_told(usage, counts):
    reply = read_reply(body(usage=usage))
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_cached) == counts


def test_an_error_shows_its_code_and_never_its_words():
    assert error_code(b'{"error": {"code": "rate_limit", "message": "key sk-secret"}}') == " (rate_limit)"
    assert error_code(b'{"error": {"code": "sk-secret", "type": "invalid_request"}}') == " (invalid_request)"
    for data in (b"", b"[]", b"\xff", b'{"error": "sk-secret"}', b'{"error": {"code": "SK secret"}}'):
        assert error_code(data) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "text", "prompt_tokens", "error", "code"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(JSON)
def test_any_json_is_survived(value):
    reply = read_reply(json.dumps(value).encode())
    assert (reply.text is None) == bool(reply.problem)


@given(st.binary(max_size=200), st.integers(0, 90))
def test_any_bytes_and_any_cut_are_survived(data, cut):
    for attempt in (data, body()[:cut], body()[:cut] + data):
        reply = read_reply(attempt)
        assert (reply.text is None) == bool(reply.problem)
