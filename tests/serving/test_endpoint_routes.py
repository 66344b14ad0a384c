"""The endpoint against the model it serves: the same texts, the same numbers, exact counts."""

import json
import math
import socket

import httpx
import pytest
from served_replies import content, error
from test_json_schema import RANKING

from frugalrec.errors import ConfigError, ModelError
from frugalrec.serving import Limits, serve, served
from frugalrec.serving.server import check_address
from frugalrec.serving.worker import Worker

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def ask(user="Recommend another film.", system=None, **options):
    turns = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*turns, {"role": "user", "content": user}], "temperature": 0, **options}


def test_a_chat_answer_is_what_the_model_generates(client, llama):
    prompt = llama.chat("Recommend another film.", system="The user liked the book.")
    (expected,), usage = llama.generate([prompt], max_new_tokens=12)

    reply = client.post(CHAT, ask(system="The user liked the book.", max_tokens=12, model="tiny"))

    assert content(reply) == expected.text
    body = reply.json()
    assert body["usage"] == {
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.tokens_in + usage.tokens_out,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert body["choices"][0]["finish_reason"] == ("length" if usage.tokens_out == 12 else "stop")
    assert body["model"] == "tiny" and body["object"] == "chat.completion"
    assert body["choices"][0]["logprobs"] is None


@pytest.mark.slow
def test_many_at_once_equal_one_by_one_and_share_batches(open_client, llama):
    bodies = [ask(f"film {n % 7} " * (1 + n % 3), max_tokens=4 + n % 9) for n in range(24)]
    single, many = open_client(llama), open_client(llama, Limits(batch=8, gather_s=0.2))

    expected = [content(single.post(CHAT, body)) for body in bodies]
    found = [content(reply) for reply in many.post_all(CHAT, bodies)]

    assert found == expected
    counts = many.request("GET", "/health").json()
    assert counts["jobs"] == 24 and counts["batches"] < 12 and counts["largest_batch"] == 8
    assert counts["failed"] == counts["queued"] == 0


def test_a_shared_opening_is_counted_as_cached(client, llama):
    system = "The user liked the book and disliked the game. Films watched: Alien (1979), Heat (1995)."
    rows = llama.encode([llama.chat(user, system=system) for user in ("Next film?", "Answer: Yes")])
    shared = next(i for i in range(999) if rows[0][i] != rows[1][i])

    usages = [
        client.post(CHAT, ask(user, system, max_tokens=2)).json()["usage"]
        for user in ("Next film?", "Answer: Yes")
    ]

    assert [u["prompt_tokens"] for u in usages] == [len(row) for row in rows]
    assert [u["prompt_tokens_details"]["cached_tokens"] for u in usages] == [0, shared]


@pytest.mark.slow
def test_a_seed_repeats_a_sample_and_another_changes_it(client):
    def sample(**options):
        return content(client.post(CHAT, ask(max_tokens=20, **{"temperature": 1.2, **options})))

    assert sample(seed=5) == sample(seed=5)
    assert len({sample(seed=seed) for seed in range(4)}) > 1
    assert len({sample() for _ in range(4)}) > 1


def test_chat_logprobs_add_up_to_the_likelihood_of_the_answer(client, llama):
    reply = client.post(CHAT, ask(max_tokens=9, logprobs=True, top_logprobs=3))
    text, tokens = content(reply), reply.json()["choices"][0]["logprobs"]["content"]

    shown = b"".join(bytes(token["bytes"]) for token in tokens if token["token"] != "<s>")
    assert shown.decode("utf-8", "replace") == text
    for token in tokens:  # greedy: the token itself is the likeliest
        assert [len(token["top_logprobs"]), token["top_logprobs"][0]["bytes"]] == [3, token["bytes"]]
        assert token["top_logprobs"][0]["logprob"] == token["logprob"]
    prompt = llama.chat("Recommend another film.")
    whole = llama.encode([prompt, prompt + text])
    if len(whole[1]) == len(whole[0]) + len(tokens):  # the text is split into the tokens that were written
        (expected,), _ = llama.loglikelihood([prompt], [[text]])
        assert sum(t["logprob"] for t in tokens) == pytest.approx(float(expected[0]), abs=1e-3)


def test_echo_without_new_tokens_is_a_loglikelihood(client, llama):
    prompt, continuations = "Next film: Heat (1995)? Answer:", [" Yes", " No", " the quick brown fox"]
    (expected,), _ = llama.loglikelihood([prompt], [continuations])
    body = {
        "prompt": [prompt + continuation for continuation in continuations],
        "echo": True,
        "max_tokens": 0,
        "logprobs": 1,
    }

    reply = client.post(TEXT, body)

    assert reply.status_code == 200, reply.text
    choices = reply.json()["choices"]
    for choice, continuation, value in zip(choices, continuations, expected, strict=True):
        columns = choice["logprobs"]
        assert choice["text"] == prompt + continuation == "".join(columns["tokens"])
        assert columns["token_logprobs"][0] is None and columns["top_logprobs"][0] is None
        summed = sum(
            logprob
            for logprob, offset in zip(columns["token_logprobs"], columns["text_offset"], strict=True)
            if offset >= len(prompt)
        )
        assert summed == pytest.approx(float(value), abs=1e-4)
    assert reply.json()["usage"]["completion_tokens"] == 0
    asked = llama.encode(body["prompt"])
    assert reply.json()["usage"]["prompt_tokens"] == sum(map(len, asked))


def test_echo_scores_order_answers_as_choose_does(client, llama):
    from frugalrec.llm.base import PromptGroup

    prompt = "Next film: Heat (1995)? Answer:"
    (expected,), _ = llama.choose([PromptGroup(prefix=prompt, suffixes=("",))], [" Yes", " No"])
    body = {"prompt": [prompt + " Yes", prompt + " No"], "echo": True, "max_tokens": 0, "logprobs": 0}

    choices = client.post(TEXT, body).json()["choices"]

    for choice, value, first in zip(choices, expected[0], (" Yes", " No"), strict=True):
        start = choice["logprobs"]["text_offset"].index(len(prompt))
        assert first.startswith(choice["logprobs"]["tokens"][start])
        assert choice["logprobs"]["token_logprobs"][start] == pytest.approx(float(value), abs=1e-4)


def test_completions_continue_several_prompts(client, llama):
    prompts = ["the quick brown fox", "Films watched: Alien"]
    expected, usage = llama.generate(prompts, max_new_tokens=10)

    reply = client.post(TEXT, {"prompt": prompts, "max_tokens": 10, "temperature": 0, "logprobs": 2})

    body = reply.json()
    assert [choice["text"] for choice in body["choices"]] == [completion.text for completion in expected]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == usage.tokens_out
    for choice in body["choices"]:
        columns = choice["logprobs"]
        assert "".join(columns["tokens"]) == choice["text"] or "\ufffd" in choice["text"]
        assert all(len(top) == 2 for top in columns["top_logprobs"])
        assert columns["text_offset"] == sorted(columns["text_offset"])


def test_echo_with_new_tokens_holds_both(client):
    plain = {"prompt": "the quick", "max_tokens": 6, "temperature": 0, "logprobs": 0}

    alone, both = (client.post(TEXT, {**plain, "echo": echo}).json() for echo in (False, True))

    assert both["choices"][0]["text"] == "the quick" + alone["choices"][0]["text"]
    columns = both["choices"][0]["logprobs"]
    n = len(alone["choices"][0]["logprobs"]["tokens"])
    assert columns["token_logprobs"][-n:] == pytest.approx(
        alone["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4
    )
    assert both["usage"] == alone["usage"]


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "ranking", "strict": True, "schema": RANKING}},
        {"type": "json_schema", "schema": RANKING},
        {"type": "json_object", "schema": RANKING},
    ],
)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_ranking_is_held_to_the_schema_in_all_dialects(client, form, temperature):
    text = content(client.post(CHAT, ask(response_format=form, temperature=temperature, seed=3)))

    assert 1 <= len(json.loads(text)["ranking"]) <= 3


@pytest.mark.slow
def test_a_json_object_is_an_object_if_it_ends(client):
    for seed in range(3):
        reply = client.post(CHAT, ask(response_format={"type": "json_object"}, temperature=1, seed=seed))
        assert content(reply).startswith("{")
        if reply.json()["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(content(reply)), dict)


def test_parts_and_developers_are_understood(client):
    parts = [{"type": "text", "text": "Recommend "}, {"type": "text", "text": "another film."}]
    body = ask(parts, max_tokens=8)
    body["messages"].insert(0, {"role": "developer", "content": "Yes."})

    assert content(client.post(CHAT, body)) == content(client.post(CHAT, ask(system="Yes.", max_tokens=8)))


def test_models_and_health(client):
    (model,) = client.request("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert client.request("GET", "/v1/models/tiny").json() == model
    assert error(client.request("GET", "/v1/models/gpt"), 404)["code"] == "model_not_found"
    assert client.request("GET", "/health").json()["status"] == "ok"


def test_a_folder_does_not_tell_where_it_lies(open_client, llama):
    (model,) = open_client(llama).request("GET", "/v1/models").json()["data"]
    assert "/" not in model["id"] and model["id"] in llama.model


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({"messages": []}, "at least 1", "messages"),
        ({}, "required", "messages"),
        (ask(stream=True), "streaming is not supported", "stream"),
        (ask(n=2), "", "n"),
        (ask(temperature=-1), "greater than or equal to 0", "temperature"),
        (ask(temperature="hot"), "number", "temperature"),
        (ask(top_p=0), "greater than 0", "top_p"),
        (ask(max_tokens=0), "greater than or equal to 1", "max_tokens"),
        (ask(max_tokens=99_999), "at most 512", "max_tokens"),
        (ask(max_tokens=True), "integer", "max_tokens"),
        (ask(top_k=5), "top_k is not supported", "top_k"),
        (ask(logit_bias={"5": 1}), "", "logit_bias"),
        (ask(presence_penalty=0.5), "", "presence_penalty"),
        (ask(top_logprobs=2), "needs logprobs", "top_logprobs"),
        (ask(logprobs=True, top_logprobs=99), "less than or equal to 20", "top_logprobs"),
        (ask(max_tokens=1, max_completion_tokens=1), "not both", "max_tokens"),
        (ask(stop=[""]), "at least 1 character", None),
        (ask(stop=["a"] * 5), "at most 4", None),
        (ask(seed=2**70), "", "seed"),
        (ask(tools=[{}]), "", "tools"),
        (ask(response_format={"type": "xml"}), "'xml'", "response_format"),
        (ask(response_format={"type": "json_schema"}), "needs a schema", "response_format"),
        (ask(response_format={"type": "json_object", "schema": {"type": "string", "pattern": "a"}}), "pattern", "response_format"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "", "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "string", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "", None),
    ],
)  # fmt: skip
def test_bad_requests_name_the_field(client, body, said, param):
    found = error(client.post(CHAT, body), 400)
    assert found["type"] == "invalid_request_error"
    assert said in found["message"]
    assert param is None or found["param"] == param


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[1]", "the body"),
        (b'{"temperature": NaN}', "NaN"),
        (b"[" * 100_000, "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogates"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}", ""),
    ],
)
def test_malformed_bodies_are_refused(client, raw, said):
    reply = client.request("POST", CHAT, content=raw, headers={"content-type": "application/json"})
    assert said in error(reply, 400)["message"]


def test_completion_bodies_are_checked_too(client):
    assert "needs echo" in error(client.post(TEXT, {"prompt": "a", "max_tokens": 0}), 400)["message"]
    assert "33 prompts" in error(client.post(TEXT, {"prompt": ["a"] * 33}), 400)["message"]
    assert error(client.post(TEXT, {"prompt": [1, 2]}), 400)["type"] == "invalid_request_error"
    assert "empty" in error(client.post(TEXT, {"prompt": ""}), 400)["message"]


def test_a_prompt_that_is_too_long_says_by_how_much(client, llama):
    found = error(client.post(TEXT, {"prompt": "a " * 1200, "max_tokens": 5}), 400)
    assert found["code"] == "context_length_exceeded"
    assert "1,024" in found["message"]
    # Without a wish the answer takes what is left.
    room = llama.max_tokens - 5
    prompt = llama.tokenizer.decode(llama.encode(["a " * 1200])[0][:room])
    body = {"prompt": prompt, "max_tokens": None, "temperature": 0}
    reply = client.post(TEXT, body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] <= 5


def test_bodies_have_a_type_and_a_size(open_client, llama):
    client = open_client(llama, Limits(body_bytes=500))
    assert "application/json" in error(client.request("POST", CHAT, content=b"{}"), 415)["message"]
    assert "500 bytes" in error(client.post(CHAT, ask("x" * 600)), 413)["message"]


def test_unknown_routes_and_methods_have_the_protocols_shape(client):
    assert "/v1/nowhere" in error(client.request("GET", "/v1/nowhere"), 404)["message"]
    assert "GET" in error(client.request("GET", CHAT), 405)["message"]
    assert error(client.post(CHAT, ask(model="gpt-4")), 404)["code"] == "model_not_found"


def test_a_key_is_asked_for_where_there_is_one(open_client, llama):
    with pytest.raises(ConfigError, match="api_key"):
        open_client(llama, api_key="")
    with_key = open_client(llama, api_key="sesame\n", headers={"authorization": "Bearer sesame"})
    assert content(with_key.post(CHAT, ask(max_tokens=1))) is not None
    for headers in ({}, {"authorization": "Bearer open"}, {"authorization": "Basic sesame"}):
        without = open_client(llama, api_key="sesame", headers=headers)
        assert error(without.post(CHAT, ask()), 401)["type"] == "authentication_error"
        assert without.request("GET", "/health").status_code == 200


def test_a_foreign_host_name_is_refused_on_loopback(open_client, llama):
    headers = {"host": "evil.example:8000"}
    assert error(open_client(llama, headers=headers).post(CHAT, ask()), 403)["type"] == "permission_error"
    assert open_client(llama, headers=headers, local_only=False).post(CHAT, ask(max_tokens=1)).is_success


def test_encoder_decoders_answer_and_have_no_echo(open_client, t5):
    client = open_client(t5)
    (expected,), _ = t5.generate(["the quick brown fox"], max_new_tokens=5)

    reply = client.post(TEXT, {"prompt": "the quick brown fox", "max_tokens": 5, "temperature": 0})

    assert reply.json()["choices"][0]["text"] == expected.text
    assert "decoder-only" in error(client.post(TEXT, {"prompt": "a", "echo": True}), 400)["message"]


def test_a_model_without_chat_template_says_so(open_client, llama, monkeypatch):
    monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    assert "no chat template" in error(open_client(llama).post(CHAT, ask()), 400)["message"]


def test_a_template_that_refuses_is_the_clients_error(open_client, llama, monkeypatch):
    monkeypatch.setattr(llama.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in error(open_client(llama).post(CHAT, ask()), 400)["message"]


class Panic(BaseException):
    """As compiled code raises it."""


@pytest.mark.parametrize("raised", [RuntimeError, Panic])
def test_a_failing_model_is_a_500_without_details_and_harms_nobody_else(
    open_client, llama, monkeypatch, raised
):
    client = open_client(llama, Limits(gather_s=0.2))
    from frugalrec.serving.decoding import Writer

    real = Writer.write

    def poisoned(self, prompts, plans):
        if any(plan.seed == 13 for plan in plans):
            raise raised("secret prompt text")
        return real(self, prompts, plans)

    monkeypatch.setattr(Writer, "write", poisoned)

    replies = client.post_all(CHAT, [ask(seed=seed, max_tokens=3) for seed in (12, 13, 14)])

    assert [reply.status_code for reply in replies] == [200, 500, 200]
    assert "secret" not in replies[1].text
    assert error(replies[1], 500)["type"] == "server_error"


def test_a_tokenizer_that_panics_harms_one_request(open_client, llama, monkeypatch):
    client, real = open_client(llama, Limits(gather_s=0.2)), llama.encode

    def poisoned(prompts):
        if "fox" in prompts[0]:
            raise Panic("secret prompt text")
        return real(prompts)

    monkeypatch.setattr(llama, "encode", poisoned)

    replies = client.post_all(TEXT, [{"prompt": prompt, "max_tokens": 2} for prompt in ("the", "a fox")])

    assert [reply.status_code for reply in replies] == [200, 500]
    assert "secret" not in replies[1].text


def test_a_tidy_tokenizer_does_not_leave_the_schema(open_client, llama, monkeypatch):
    real = llama.tokenizer.decode

    def tidy(tokens, *, clean_up_tokenization_spaces=True, **options):
        found = real(tokens, clean_up_tokenization_spaces=False, **options)
        return found.replace(" ,", ",") if clean_up_tokenization_spaces else found

    monkeypatch.setattr(llama.tokenizer, "decode", tidy)
    form = {"type": "json_schema", "schema": {"const": "now , then"}}

    assert content(open_client(llama).post(CHAT, ask(response_format=form))) == '"now , then"'


def test_a_large_schema_is_refused_before_it_waits(open_client, llama, monkeypatch):
    client = open_client(llama)
    monkeypatch.setattr(client.app.state.service.worker, "submit", None)
    form = {"type": "json_object", "schema": {"enum": ["x" * 70_000]}}

    found = error(client.post(CHAT, ask(response_format=form)), 400)

    assert "65,536 characters" in found["message"] and found["param"] == "response_format"


def test_a_network_that_ignores_masks_is_not_served(open_client, llama, monkeypatch):
    monkeypatch.setattr(llama, "known", (1, 2))
    with pytest.raises(ModelError, match="prefix of keys and values"):
        open_client(llama)


def test_a_real_server_answers_on_loopback_and_stops(llama, monkeypatch):
    told, stopping, close = [], Worker.stopping, Worker.close

    def note(name, real):
        return lambda worker: (told.append(name), real(worker))[1]

    monkeypatch.setattr(Worker, "stopping", lambda w: (told or told.append("stopping"), stopping(w))[1])
    monkeypatch.setattr(Worker, "close", note("close", close))
    prompt = llama.chat("Recommend another film.")
    (expected,), _ = llama.generate([prompt], max_new_tokens=6)
    with served(llama, name="tiny") as address:
        assert address.startswith("http://127.0.0.1:") and address.endswith("/v1")
        with httpx.Client(base_url=address, timeout=60) as client:
            assert content(client.post("chat/completions", json=ask(max_tokens=6))) == expected.text
            assert client.get("models").json()["data"][0]["id"] == "tiny"
            # Chunked bodies have no length to look at beforehand.
            parts = (b"x" * 100_000 for _ in range(20))
            long = client.post("completions", content=parts, headers={"content-type": "application/json"})
            assert long.status_code == 413
    with pytest.raises(httpx.ConnectError):
        httpx.get(address + "/models")
    assert told == ["stopping", "close"]  # the wait for clients is part of the time to stop


def test_a_taken_port_is_one_line(llama):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Choose another port"):
            serve(llama, port=taken.getsockname()[1])


def test_other_machines_need_a_flag_and_a_key(monkeypatch):
    monkeypatch.delenv("FRUGALREC_API_KEY", raising=False)
    assert check_address("127.0.0.1", 0, False) is None
    with pytest.raises(ConfigError, match="--allow-remote"):
        check_address("0.0.0.0", 8000, False)
    with pytest.raises(ConfigError, match="FRUGALREC_API_KEY"):
        check_address("0.0.0.0", 8000, True)
    with pytest.raises(ConfigError, match="70000"):
        check_address("127.0.0.1", 70000, False)
    for unusable in ("open sesame", "sésame", "se\x7fsame"):
        monkeypatch.setenv("FRUGALREC_API_KEY", unusable)
        with pytest.raises(ConfigError, match="FRUGALREC_API_KEY must be") as refused:
            check_address("127.0.0.1", 0, False)
        assert unusable not in str(refused.value)
    monkeypatch.setenv("FRUGALREC_API_KEY", " \n")
    assert check_address("127.0.0.1", 0, False) is None
    monkeypatch.setenv("FRUGALREC_API_KEY", "sesame\n")
    assert check_address("0.0.0.0", 8000, True) == check_address("localhost", 8000, False) == "sesame"


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"queue": 0}, {"gather_s": -1.0}, {"kept_tokens": -1},
                                   {"gather_s": math.nan}, {"queue": 4}])  # fmt: skip
def test_limits_are_checked(wrong):
    with pytest.raises(ConfigError):
        Limits(**wrong)
