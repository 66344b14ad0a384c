"""The fake endpoint: it must fail as planned and count the truth, or tests against it prove nothing."""

from __future__ import annotations

import json

import httpx
import pytest

from frugalrec.errors import ConfigError
from frugalrec.testing.faulty_endpoint import FAULTS, FaultyEndpoint, seeded_faults


def ask(server, words="hello", **body):
    message = {"model": "m", "messages": [{"role": "user", "content": words}], "max_tokens": 64, **body}
    with httpx.Client(trust_env=False, verify=False) as client:
        return client.post(server.url + "/chat/completions", json=message, timeout=5)


def test_it_answers_and_counts_what_it_bills():
    with FaultyEndpoint(reply="12345678") as server:
        body = ask(server, "x" * 20).json()
    assert body["choices"][0]["message"]["content"] == "12345678"
    # 20 bytes are 5 tokens, 4 more for the message's frame; 8 bytes are 2.
    assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    assert (server.calls, server.billed_calls, server.billed_tokens) == (1, 1, 11)
    assert server.bodies[0]["messages"][0]["content"] == "x" * 20


def test_the_limit_on_tokens_is_kept():
    with FaultyEndpoint(reply="x" * 400, bytes_per_token=1) as server:
        choice = ask(server, max_tokens=7).json()["choices"][0]
    assert choice["message"]["content"] == "x" * 7 and choice["finish_reason"] == "length"
    assert server.billed_tokens_out == 7


def test_refusals_are_counted_but_not_billed():
    with FaultyEndpoint(faults=["429", "429-date", "400", "307", None], retry_after_s=7) as server:
        replies = [ask(server) for _ in range(5)]
    assert [r.status_code for r in replies] == [429, 429, 400, 307, 200]
    assert replies[0].headers["retry-after"] == "7" and replies[1].headers["retry-after"].endswith("GMT")
    assert (server.calls, server.billed_calls) == (5, 1)
    assert server.faults_met == {"429": 1, "429-date": 1, "400": 1, "307": 1}


def test_a_server_error_is_billed_as_the_harshest_endpoint_would():
    with FaultyEndpoint(faults=["500"]) as server:
        assert ask(server).status_code == 500
    assert server.billed_calls == 1


def test_connections_break_as_planned():
    with FaultyEndpoint(faults=["reset", "truncated-body", "stall"], stall_s=0.05) as server:
        for _ in range(3):
            with pytest.raises(httpx.TransportError):
                ask(server)
        assert ask(server).status_code == 200
    assert server.billed_calls == 4


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"stall"}))
def test_every_fault_does_something_else_than_answer(fault):
    plain = '{"ranking":[1,2,3]}'
    with FaultyEndpoint(reply=plain, faults=[fault]) as server:
        try:
            reply = ask(server)
            usual = (
                reply.status_code == 200
                and reply.json()["choices"][0]["message"]["content"] == plain
                and reply.json()["usage"]["prompt_tokens"] > 0
                and len(reply.content) < 10_000
            )
        except (httpx.HTTPError, ValueError, KeyError, IndexError, RecursionError):
            usual = False
    assert not usual and server.faults_met == {fault: 1}


def test_a_seeded_plan_is_the_same_each_time_and_has_its_share():
    plan, again = seeded_faults(1, 0.3), seeded_faults(1, 0.3)
    drawn = [plan(i) for i in range(2000)]
    assert drawn == [again(i) for i in range(2000)]
    assert drawn != [seeded_faults(2, 0.3)(i) for i in range(2000)]
    # The standard deviation of the share is sqrt(.3 * .7 / 2000), about .01.
    assert abs(sum(f is not None for f in drawn) / 2000 - 0.3) < 0.05
    assert set(drawn) == {*FAULTS, None}


def test_replies_may_depend_on_the_request():
    with FaultyEndpoint(reply=lambda body: body["messages"][-1]["content"][::-1]) as server:
        assert ask(server, "abc").json()["choices"][0]["message"]["content"] == "cba"


def test_the_callers_key_is_echoed_when_that_is_the_plan():
    with FaultyEndpoint(faults=["echo-key"]) as server, httpx.Client(trust_env=False, verify=False) as client:
        body = {"messages": [{"role": "user", "content": "x"}]}
        reply = client.post(
            server.url + "/chat/completions", json=body, headers={"Authorization": "Bearer k"}
        )
    assert "Bearer k" in json.dumps(reply.json()) and server.authorizations == {"Bearer k"}


def test_senseless_plans_are_refused():
    with pytest.raises(ConfigError, match="unknown faults \\['nonsense'\\]"):
        FaultyEndpoint(faults=["nonsense"])
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        seeded_faults(0, 1.5)


@pytest.mark.parametrize("port", [70_000, -1])
def test_a_port_that_cannot_be_is_said_to_be_none(port):
    with pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
        FaultyEndpoint(port=port).__enter__()


def test_a_port_in_use_is_said_to_be():
    with FaultyEndpoint() as server, pytest.raises(ConfigError, match=str(server.port)):
        FaultyEndpoint(port=server.port).__enter__()
