"""What each kind of server is sent, and what a probe finds out about it."""

from __future__ import annotations

import json
import logging

import pytest

from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat, SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.profiles import PROFILES, chat_body, encoded, first_token_body
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

SCHEMA = {"type": "object", "required": ["ranking"]}
NESTED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def body(profile, **settings):
    endpoint = Endpoint(base_url="http://localhost/v1", model="m", profile=profile, **settings)
    return chat_body(ChatRequest(system="s", user="u", schema=SCHEMA, seed=3), endpoint)


@pytest.mark.parametrize("profile", PROFILES)
def test_sampling_is_always_sent_since_servers_have_defaults_of_their_own(profile):
    sent = body(profile, top_p=0.9)
    assert sent["temperature"] == 0.0 and sent["top_p"] == 0.9 and "stream" not in sent


@pytest.mark.parametrize("profile", ["openai", "vllm", "ollama"])
def test_the_schema_nests_where_openai_nests_it(profile):
    assert body(profile)["response_format"] == NESTED


def test_llamacpp_finds_the_schema_in_either_place():
    form = body("llamacpp")["response_format"]
    assert form["type"] == "json_schema" and form["schema"] == form["json_schema"]["schema"] == SCHEMA


def test_generic_asks_for_nothing_that_not_all_servers_have():
    assert set(body("generic")) == {"model", "messages", "max_tokens", "temperature", "top_p"}


def test_openai_bounds_answers_by_its_newer_field():
    assert body("openai")["max_completion_tokens"] == 256 and "max_tokens" not in body("openai")
    assert body("vllm")["max_tokens"] == 256 and body("vllm")["seed"] == 3


def test_fields_can_be_added_and_left_out():
    sent = body("openai", extra={"reasoning_effort": "low"}, leave_out=("temperature", "top_p"))
    assert sent["reasoning_effort"] == "low" and not {"temperature", "top_p"} & set(sent)


def test_a_request_without_a_schema_asks_for_none():
    endpoint = Endpoint(base_url="http://localhost/v1", model="m", profile="openai")
    assert "response_format" not in chat_body(ChatRequest(system="", user="u"), endpoint)


def test_first_tokens_are_asked_where_the_server_tells_them():
    for profile, path in (
        ("vllm", "/completions"),
        ("llamacpp", "/completions"),
        ("openai", "/chat/completions"),
    ):
        endpoint = Endpoint(base_url="http://localhost/v1", model="m", profile=profile)
        at, sent = first_token_body("p", endpoint)
        assert at == path and (sent["logprobs"], sent.get("top_logprobs", 20)) in ((20, 20), (True, 20))


def test_bodies_are_utf8_whatever_is_in_them():
    text = "Amélie 魔女 \ud83d"
    assert json.loads(encoded({"a": text}).decode("utf-8")) == {"a": "Amélie 魔女 ?"}


def probe(server, profile, **settings):
    endpoint = Endpoint(base_url=server.url, model="m", profile=profile)
    return HttpChat(endpoint, policy=CallPolicy(attempts=1), **settings).probe()


def test_a_probe_of_a_good_endpoint_has_nothing_to_advise(tmp_path):
    with FaultyEndpoint(reply='{"ranking":[3, 1]}') as server:
        found = probe(server, "vllm", file=tmp_path / "f")
    assert found.answers and found.keeps_schema and found.counts_tokens and found.advice == ""
    assert server.bodies[0]["response_format"]["type"] == "json_schema"
    assert spent(tmp_path / "f").calls == 1  # it costs a call, and is not answered from the store
    assert found.latency_s > 0


@pytest.mark.parametrize(
    "words",
    ["Bambi, of course.", '{"ranking": [4]}', '{"ranking": []}', '{"ranking": [1], "more": 1}', "[1]", ""],
)
def test_a_probe_notices_that_the_schema_is_ignored(words):
    with FaultyEndpoint(reply=words) as server:
        found = probe(server, "openai")
    assert found.answers and found.keeps_schema is False and "ignores the schema" in found.advice


def test_a_probe_of_a_generic_endpoint_asks_for_no_schema():
    with FaultyEndpoint(reply="Bambi.") as server:
        found = probe(server, "generic")
    assert found.answers and found.keeps_schema is None and found.advice == ""


def test_a_probe_says_why_there_is_no_answer():
    with FaultyEndpoint(faults=["404"]) as server:
        found = probe(server, "openai")
    assert not found.answers and found.keeps_schema is None and "refused: status 404" in found.advice


def test_a_probe_notices_that_tokens_are_not_counted():
    with FaultyEndpoint(reply='{"ranking":[1]}', faults=["no-usage"]) as server:
        found = probe(server, "ollama")
    assert found.keeps_schema and not found.counts_tokens and "upper bounds" in found.advice


def test_a_probe_is_under_the_cap(tmp_path):
    with FaultyEndpoint() as server:
        found = probe(server, "openai", file=tmp_path / "f", cap=SpendCap(limit=10, unit="tokens"))
    assert found.reason == "over-budget" and server.calls == 0


def test_the_library_is_quiet_about_what_it_sends(make_chat, caplog, questions):
    caplog.set_level(logging.DEBUG)
    with FaultyEndpoint(reply="the model's words") as server:
        make_chat(server).chat(questions(1))
    assert "question 0" not in caplog.text and "the model's words" not in caplog.text
