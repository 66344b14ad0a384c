"""The key is in the environment and in the header that is sent, and nowhere else."""

from __future__ import annotations

import json
import logging
import pickle
import traceback

import pytest

from frugalrec.errors import ConfigError, FrugalrecError, ModelError
from frugalrec.llm.http import Endpoint, HttpChat, SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.batch_files import export_batch
from frugalrec.llm.http.endpoint import EnvironmentKey
from frugalrec.llm.http.language_model import HttpLM
from frugalrec.testing.faulty_endpoint import FAULTS, FaultyEndpoint

KEY = "sk-4f1c-very-secret-9d"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", KEY)


def test_the_key_is_sent_as_a_bearer_token(make_chat, questions):
    with FaultyEndpoint() as server:
        make_chat(server, api_key_env="TEST_API_KEY").chat(questions(1))
        make_chat(server).chat(questions(1, start=1))
    assert server.authorizations == {f"Bearer {KEY}"}


def test_no_artefact_log_error_or_repr_holds_the_key(make_chat, tmp_path, caplog, questions):
    caplog.set_level(logging.DEBUG)
    faults = [f for f in FAULTS if f not in ("stall", "huge")] * 2 + ["echo-key"] * 5
    with FaultyEndpoint(reply="fine", faults=faults, retry_after_s=0) as server:
        cap = SpendCap(limit=10**6, unit="tokens")
        policy = {"failures_until_open": 10**6}  # every fault is met
        chat = make_chat(server, api_key_env="TEST_API_KEY", file=tmp_path / "file", cap=cap, policy=policy)
        answers, _ = chat.chat(questions(60))
        probe = chat.probe()
    exported = export_batch(chat, questions(70), tmp_path / "plan.jsonl")
    assert any(a.text == "you sent Bearer [key]" for a in answers)
    artefacts = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(artefacts) > 10_000 and KEY.encode() not in artefacts
    shown = [answers, probe, exported, chat, chat.client, chat.client.endpoint, spent(tmp_path / "file")]
    shown += [EnvironmentKey(chat.client.endpoint), chat.fingerprint, vars(chat), vars(chat.client)]
    assert KEY not in " ".join(map(repr, shown)) + caplog.text
    assert KEY.encode() not in pickle.dumps(chat.client.endpoint)


def test_a_key_that_is_no_secret_is_left_in_the_words(make_chat, monkeypatch, questions):
    monkeypatch.setenv("DUMMY_API_KEY", "1")
    words = json.dumps({"ranking": [1, 12, 3]})
    with FaultyEndpoint(reply=words) as server:
        (answer,), _ = make_chat(server, api_key_env="DUMMY_API_KEY").chat(questions(1))
    assert answer.text == words and server.authorizations == {"Bearer 1"}


def test_errors_do_not_show_the_key(make_chat, questions):
    with FaultyEndpoint(faults=["401"] * 9) as server:
        lm = HttpLM(make_chat(server, api_key_env="TEST_API_KEY"))
        with pytest.raises(ModelError) as caught:
            lm.generate(["x"])
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", ["with blank inside", "line\nbreak", "umlaut-ä"])
def test_a_key_that_cannot_be_one_is_refused_unseen(value, make_chat, monkeypatch, questions):
    monkeypatch.setenv("TEST_API_KEY", value)
    with FaultyEndpoint() as server, pytest.raises(ModelError, match="TEST_API_KEY has blanks") as caught:
        make_chat(server, api_key_env="TEST_API_KEY").chat(questions(1))
    assert value not in str(caught.value) and server.calls == 0


def test_a_key_put_where_its_name_belongs_is_refused_unseen():
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        Endpoint(base_url="https://api.example.com/v1", model="m", api_key_env=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "http://localhost.example.com/v1",
        "http://10.0.0.7:8000/v1",
        "http://0x7f/v1",
    ],
)
def test_keys_are_not_sent_unencrypted_to_other_machines(url):
    with pytest.raises(ConfigError, match="unencrypted"):
        Endpoint(base_url=url, model="m", api_key_env="TEST_API_KEY")
    assert not Endpoint(base_url=url, model="m").is_loopback  # without a key, it may


@pytest.mark.parametrize(
    "url", ["http://localhost:11434/v1", "http://127.0.0.2/v1", "http://[::1]:80/v1", "https://a.example/v1"]
)
def test_keys_may_go_encrypted_anywhere_and_open_to_this_machine(url):
    Endpoint(base_url=url, model="m", api_key_env="TEST_API_KEY")


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@api.example.com/v1",
        f"https://api.example.com/v1?key={KEY}",
        f"https://api.example.com/v1#{KEY}",
    ],
)
def test_an_address_that_holds_a_secret_is_refused_unseen(url):
    with pytest.raises(ConfigError, match="bare address") as caught:
        Endpoint(base_url=url, model="m")
    assert KEY not in str(caught.value)


def test_a_redirect_does_not_carry_the_key_away(make_chat, questions):
    with FaultyEndpoint() as other:
        with FaultyEndpoint(faults=["307"]) as server:
            (answer,), _ = make_chat(server, api_key_env="TEST_API_KEY").chat(questions(1))
        assert answer.reason == "refused" and other.calls == 0 and server.calls == 1


def test_proxies_of_the_environment_do_not_see_what_stays_on_this_machine(make_chat, monkeypatch, questions):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with FaultyEndpoint() as server:
        (answer,), _ = make_chat(server, api_key_env="TEST_API_KEY").chat(questions(1))
    assert answer.reason == "answered"


def test_the_file_is_for_its_owner_alone(make_chat, tmp_path, questions):
    with FaultyEndpoint() as server:
        make_chat(server, file=tmp_path / "file").chat(questions(1))
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0


def test_prompts_are_not_written_down(make_chat, tmp_path, questions):
    with FaultyEndpoint(reply="fine") as server:
        make_chat(server, file=tmp_path / "file").chat(questions(3))
    stored = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"fine" in stored and b"question" not in stored


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "write it like"),
        ({"base_url": "ftp://host/v1"}, "write it like"),
        ({"base_url": "http://[::1"}, "not an address"),
        ({"base_url": "http://host:99999/v1"}, "not an address"),
        ({"model": ""}, "model is empty"),
        ({"profile": "nonsense"}, "unknown profile 'nonsense'; there are openai, vllm"),
        ({"top_p": 0.0}, "top_p"),
        ({"extra": {"stream": True}}, "the fields stream"),
        ({"leave_out": ("max_tokens",)}, "the fields max_tokens"),
    ],
)
def test_senseless_endpoints_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(**{"base_url": "http://localhost/v1", "model": "m", **settings})


def test_the_fingerprint_follows_what_could_change_an_answer():
    base = {"base_url": "http://localhost:1/v1", "model": "m"}
    one = Endpoint(**base).fingerprint
    assert one == Endpoint(**base, api_key_env="TEST_API_KEY").fingerprint
    assert one == Endpoint(base_url="http://localhost:1/v1/", model="m").fingerprint
    changes = [
        {"model": "n"},
        {"base_url": "http://localhost:2/v1"},
        {"profile": "vllm"},
        {"top_p": 0.5},
        {"extra": {"reasoning_effort": "low"}},
        {"leave_out": ("top_p",)},
        {"name": "lab"},
    ]
    prints = {Endpoint(**{**base, **change}).fingerprint for change in changes}
    assert len(prints) == len(changes) and one not in prints
    moved = [Endpoint(base_url=f"http://localhost:{p}/v1", model="m", name="lab").fingerprint for p in (1, 2)]
    assert moved[0] == moved[1]


def test_every_error_is_one_of_ours():
    assert issubclass(ConfigError, FrugalrecError) and HttpChat(
        Endpoint(base_url="http://localhost/v1", model="m")
    )
