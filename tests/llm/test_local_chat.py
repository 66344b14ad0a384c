from types import SimpleNamespace

import numpy as np
import pytest

from frugalrec.errors import ConfigError, StorageError
from frugalrec.ledger import Usage
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.framing import framed
from frugalrec.llm.local import LocalLM
from frugalrec.llm.local_chat import LocalChat
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5


def questions(n=7, **options):
    return [
        ChatRequest(system="You rank.", user="Films: " + "Heat " * (i % 4) + str(i), max_tokens=9, **options)
        for i in range(n)
    ]


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
)


def test_a_template_frames_both_texts(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path))
    prompt = framed(lm, "You rank.", "Which?")
    assert (
        prompt.text == "<|user|>system: You rank.\n<|user|>user: Which?\n<|user|>assistant:"
        and prompt.blank == ""
    )
    assert framed(lm, "", "Which?").text == "<|user|>user: Which?\n<|user|>assistant:"


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_the_system_text_opens_the_users_turn(template, tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path))
    lm.tokenizer.chat_template = template
    assert framed(lm, "You rank.", "Which?").text.startswith("<|user|>You rank.\n\nWhich?")


def test_without_a_template_the_frame_is_plain(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path))
    lm.tokenizer.chat_template = None
    for model in (lm, FakeLLM()):
        assert framed(model, "You rank.", "Which?").text == "You rank.\n\nWhich?\nAnswer:"
        assert framed(model, "", "Which?").blank == " "


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_answers_are_those_of_the_model_in_order_whatever_the_batches(make, tmp_path):
    lm = LocalLM.load(make(tmp_path))
    requests = questions()
    expected, _ = lm.generate([framed(lm, r.system, r.user).text for r in requests], max_new_tokens=9)
    for size in (1, 3, 100):
        answers, usage = LocalChat(lm, requests_per_batch=size).chat(requests)
        assert [a.text for a in answers] == [c.text for c in expected]
        assert {a.reason for a in answers} == {"answered"}
        assert sum((a.usage for a in answers), Usage()).tokens_out == usage.tokens_out > 0
        assert [a.usage.tokens_in for a in answers] == [
            len(row) for row in lm.encode([framed(lm, r.system, r.user).text for r in requests])
        ]
        assert usage.tokens_in == sum(a.usage.tokens_in for a in answers) and usage.llm_calls == 7
        assert np.isclose(usage.wall_s, sum(a.usage.wall_s for a in answers)) and all(
            a.latency_s > 0 for a in answers
        )


def test_a_thought_that_the_template_opens_begins_the_answer():
    """Cut before its end mark, it could not be told from an answer."""

    class Thinker(FakeLLM):
        tokenizer = SimpleNamespace(chat_template="any", apply_chat_template=lambda *_, **__: "")

        def chat(self, user):
            return f"{user}<think>\n"

    request = ChatRequest(system="You rank.", user="1: Heat", max_tokens=9)
    (answer,), _ = LocalChat(Thinker(reply=lambda prompt: "1 is better than 2")).chat([request])
    assert answer.text == "<think>1 is better than 2"
    (answer,), _ = LocalChat(FakeLLM(reply=lambda prompt: "[2, 1]")).chat([request])
    assert answer.text == "[2, 1]"


def test_limits_differ_by_request():
    lm = FakeLLM(reply=lambda prompt: "a b c d e f")
    long, short = (
        ChatRequest(system="", user="x", max_tokens=4),
        ChatRequest(system="", user="x", max_tokens=2),
    )
    answers, usage = LocalChat(lm).chat([long, short])
    assert [a.text for a in answers] == ["a b c d", "a b"] and usage.tokens_out == 6


def test_equal_requests_are_answered_once():
    lm, request = FakeLLM(), questions(1)[0]
    answers, usage = LocalChat(lm).chat([request, request])
    assert len(lm.calls) == usage.llm_calls == 1
    assert [a.reason for a in answers] == ["answered", "cached"] and answers[0].text == answers[1].text
    assert answers[1].usage == Usage()


def test_what_is_too_long_is_refused_and_the_rest_answered(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=64))
    long = ChatRequest(system="You rank.", user="Heat " * 100, max_tokens=9)
    answers, usage = LocalChat(lm).chat([questions(1)[0], long])
    assert [a.reason for a in answers] == ["answered", "refused"]
    assert answers[1].text is None and "64" in answers[1].detail and "Heat" not in answers[1].detail
    assert usage.llm_calls == 1


class Killed(FakeLLM):
    def generate(self, prompts, *, max_new_tokens=64):
        if len(self.calls) >= 4:
            raise RuntimeError("killed")
        return super().generate(prompts, max_new_tokens=max_new_tokens)


def test_a_killed_call_repeats_no_finished_question(tmp_path):
    cache = tmp_path / "answers.sqlite"
    killed = Killed()
    with pytest.raises(RuntimeError, match="killed"):
        LocalChat(killed, cache=cache, requests_per_batch=2).chat(questions())
    lm = FakeLLM()
    answers, usage = LocalChat(lm, cache=cache, requests_per_batch=2).chat(questions())
    assert len(lm.calls) == usage.llm_calls == 3 and not set(lm.calls) & set(killed.calls)
    assert [a.reason for a in answers].count("cached") == 4
    assert [a.text for a in answers] == [a.text for a in LocalChat(FakeLLM()).chat(questions())[0]]
    again, free = LocalChat(FakeLLM(), cache=cache).chat(questions())
    assert {a.reason for a in again} == {"cached"} and free == Usage()
    other = FakeLLM(seed=1)
    LocalChat(other, cache=cache).chat(questions())
    assert len(other.calls) == 7


def test_progress_counts_requests():
    told = []
    LocalChat(FakeLLM(), requests_per_batch=3).chat(questions(), progress=lambda *at: told.append(at))
    assert told == [(3, 7), (6, 7), (7, 7), (7, 7)]
    assert LocalChat(FakeLLM()).chat([]) == ([], Usage())


def test_bad_options_and_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="requests_per_batch must be at least 1, not 0"):
        LocalChat(FakeLLM(), requests_per_batch=0).chat(questions())
    damaged = tmp_path / "answers.sqlite"
    damaged.write_bytes(b"no database" * 500)
    with pytest.raises(StorageError, match=r"answers\.sqlite cannot be used"):
        LocalChat(FakeLLM(), cache=damaged).chat(questions())
