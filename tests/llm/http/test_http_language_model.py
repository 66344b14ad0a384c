"""HttpLM: the language model's contract over HTTP, and clear errors where an endpoint cannot."""

from __future__ import annotations

import numpy as np
import pytest

from frugalrec.errors import ModelError
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat
from frugalrec.llm.http.first_tokens import alternatives, first_tokens, sum_after
from frugalrec.llm.http.language_model import HttpLM
from frugalrec.rng import derive_seed
from frugalrec.testing.faulty_endpoint import FaultyEndpoint
from frugalrec.testing.llm_contract import CONTINUATIONS, PREFIX, LanguageModelContract

WORDS = (" Yes", " No", " the", " lazy", " dog", " jumps", " 7", " Heat", " (1995)")


def next_token(prefix):
    """A distribution over nine words, by the hash of what came before."""
    logits = np.array([derive_seed(0, prefix, word) / 2**62 for word in WORDS])
    logits -= np.logaddexp.reduce(logits)
    return dict(zip(WORDS, logits.tolist(), strict=True))


def make_lm(server, profile="vllm", **settings):
    endpoint = Endpoint(base_url=server.url, model="m", profile=profile, name="test")
    return HttpLM(HttpChat(endpoint, policy=CallPolicy(backoff_s=0.0, **settings)))


class TestContract(LanguageModelContract):
    @pytest.fixture(autouse=True)
    def endpoint(self):
        def reply(body):
            prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            return "x" * (derive_seed(0, prompt) % 100)

        with FaultyEndpoint(reply=reply, next_token=next_token) as server:
            self.server = server
            yield

    def make(self) -> LanguageModel:
        return make_lm(self.server)

    def test_choose_gives_log_probabilities(self):
        other = PromptGroup(prefix="The quick brown fox", suffixes=(" jumps. Answer:",))
        scores, usage = self.make().choose([self._group(), other], self.answers)
        assert [s.shape for s in scores] == [(3, 2), (1, 2)] and scores[0].dtype == np.float32
        # Unlike a model of one's own, an endpoint has to generate a token to tell of it.
        assert usage.llm_calls == 4 and usage.tokens_in + usage.tokens_out == self.server.billed_tokens
        expected = next_token(other.prefix + other.suffixes[0])
        np.testing.assert_allclose(scores[1][0], [expected[" Yes"], expected[" No"]], rtol=1e-6)

    def test_loglikelihood_is_the_sum_over_the_continuation(self):
        (scores,), usage = self.make().loglikelihood([PREFIX], [[*CONTINUATIONS, ""]])
        text = CONTINUATIONS[1]  # " the lazy dog jumps"
        by_hand = (
            next_token(PREFIX)[" the"]
            + next_token(PREFIX + " the")[" lazy"]
            + next_token(PREFIX + " the lazy")[" dog"]
            + next_token(PREFIX + " the lazy dog")[" jumps"]
        )
        assert text == " the lazy dog jumps" and scores[1] == pytest.approx(by_hand, rel=1e-6)
        assert scores[3] == 0.0 and usage.llm_calls == 3


def test_a_chats_log_probabilities_are_read_too():
    probabilities = {"Yes": -0.2, " Yes": -3.0, "No": -2.0, "Maybe": -2.5}
    with FaultyEndpoint(next_token=lambda _: probabilities) as server:
        (scores,), _ = make_lm(server, "openai").choose(
            [PromptGroup(prefix="Good?", suffixes=("",))], (" Yes", " No")
        )
    np.testing.assert_allclose(scores, [[-0.2, -2.0]], rtol=1e-6)
    assert server.bodies[0]["top_logprobs"] == 20 and server.bodies[0]["max_completion_tokens"] == 1


def test_equal_prompts_are_asked_once():
    with FaultyEndpoint(next_token=next_token) as server:
        groups = [PromptGroup(prefix="a", suffixes=("b", "b")), PromptGroup(prefix="ab", suffixes=("",))]
        scores, usage = make_lm(server).choose(groups, (" Yes", " No"))
    assert server.calls == usage.llm_calls == 1
    assert (scores[0][0] == scores[0][1]).all() and (scores[1][0] == scores[0][0]).all()


def test_generate_goes_through_the_chat_and_its_store(make_chat, tmp_path):
    with FaultyEndpoint(reply="words") as server:
        lm = HttpLM(make_chat(server, file=tmp_path / "f"))
        (first,), _ = lm.generate(["prompt"], max_new_tokens=8)
        (second,), usage = lm.generate(["prompt"], max_new_tokens=8)
    assert first.text == second.text == "words" and first.tokens_out == 2
    assert server.calls == 1 and usage == Usage(
        wall_s=usage.wall_s, cpu_s=usage.cpu_s, peak_memory_bytes=usage.peak_memory_bytes
    )
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "prompt"}]


@pytest.mark.parametrize("fault", ["400", "null-content", "reset"])
def test_a_prompt_without_an_answer_is_an_error_that_says_why(fault):
    with FaultyEndpoint(faults=[fault] * 9, next_token=next_token) as server:
        for ask in (
            lambda lm: lm.generate(["x"]),
            lambda lm: lm.choose([PromptGroup(prefix="x", suffixes=("y",))], (" Yes", " No")),
            lambda lm: lm.loglikelihood(["x"], [[" y"]]),
        ):
            with pytest.raises(ModelError, match=r"m gave no answer \((refused|malformed|unavailable): "):
                ask(make_lm(server, attempts=2))
            server.faults = [fault] * (server.calls + 9)


PROMPTS = [PromptGroup(prefix="a", suffixes=tuple(f" {i}" for i in range(30)))]


@pytest.mark.parametrize(
    "ask",
    [
        lambda lm: lm.choose(PROMPTS, (" Yes", " No")),
        lambda lm: lm.loglikelihood(["a"], [[f" {i}" for i in range(30)]]),
    ],
)
def test_one_reply_without_words_does_not_waste_the_others(ask, make_chat, tmp_path):
    def fresh(faults=()):
        server.faults = [None] * server.calls + list(faults)
        return HttpLM(make_chat(server, profile="vllm", file=tmp_path / "f"))

    with FaultyEndpoint(next_token=next_token) as server:
        with pytest.raises(ModelError, match="malformed.*is kept in .*f, and is not asked again"):
            ask(fresh([None] * 20 + ["null-content"]))
        assert server.calls == 30
        (scores,), usage = ask(fresh())
        assert server.calls == 31 and usage.llm_calls == 1
        again, nothing = ask(fresh())
        assert server.calls == 31 and nothing.llm_calls == 0
        (truth,), _ = ask(make_lm(server))
    np.testing.assert_array_equal(scores, truth)
    np.testing.assert_array_equal(again[0], truth)


def test_the_file_of_log_probabilities_holds_no_prompt(make_chat, tmp_path):
    with FaultyEndpoint(next_token=next_token) as server:
        lm = HttpLM(make_chat(server, profile="vllm", file=tmp_path / "f"))
        lm.choose([PromptGroup(prefix="watched Zardoz,", suffixes=(" likes Alien?",))], (" Yes", " No"))
        lm.loglikelihood(["watched Zardoz,"], [[" and Heat"]])
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b" Yes" in stored
    assert not any(word in stored for word in (b"Zardoz", b"Alien?", b"and Heat"))


def test_where_a_continuation_begins_is_part_of_the_question(make_chat, tmp_path):
    with FaultyEndpoint(next_token=next_token) as server:
        lm = HttpLM(make_chat(server, profile="vllm", file=tmp_path / "f"))
        long, short = (
            lm.loglikelihood([p], [[t]])[0][0][0] for p, t in (("a", " lazy dog"), ("a lazy", " dog"))
        )
    assert server.calls == 2 and long < short


def test_answers_that_an_endpoint_does_not_tell_of_cost_one_call():
    letters = tuple(f" {letter}" for letter in "ABCDEFGHIJKLMNOPQR")
    told = {**{letter: -1.0 - i for i, letter in enumerate(letters[:15])}, " The": -0.1}
    with FaultyEndpoint(next_token=lambda _: told) as server:
        lm = make_lm(server)
        for answers in (letters, letters[:16]):
            with pytest.raises(ModelError, match=r"' P' is not among the 16 likeliest"):
                lm.choose(PROMPTS, answers)
        assert server.calls == 2
        lm.choose(PROMPTS, letters[:15])
        assert server.calls == 2 + 30


@pytest.mark.parametrize("profile", ["vllm", "openai"])
def test_more_answers_than_an_endpoint_tells_of_are_refused_before_any_call(profile):
    words = tuple(f" {i}" for i in range(21))
    with FaultyEndpoint() as server:
        with pytest.raises(
            ModelError, match="tells of the 20 likeliest first tokens, too few for 21 answers"
        ):
            make_lm(server, profile).choose(PROMPTS, words)
    assert server.calls == 0


def test_endpoints_that_cannot_name_the_remedy():
    with FaultyEndpoint() as server:
        with pytest.raises(ModelError, match="'generic' tells no log-probabilities.*local model"):
            make_lm(server, "generic").choose([], (" Yes", " No"))
        for profile in ("openai", "ollama", "llamacpp", "generic"):
            with pytest.raises(ModelError, match="Use vLLM"):
                make_lm(server, profile).loglikelihood(["a"], [["b"]])
        with pytest.raises(ModelError, match="told no log-probabilities"):
            make_lm(server, "openai").choose([PromptGroup(prefix="a", suffixes=("b",))], (" Yes", " No"))


TOLD = {" Yes": -1.0, " Y": -0.5, " No": -2.0, "\n": -0.1, "": -0.2}


def test_the_longest_told_token_of_an_answer_counts():
    assert first_tokens(TOLD, [" Yes", " No"], spaced=True) == [-1.0, -2.0]
    assert first_tokens(TOLD, [" Yesterday", " Nobody"], spaced=True) == [-1.0, -2.0]
    assert first_tokens(TOLD, ["Yes", "No"], spaced=False) == [-1.0, -2.0]
    assert first_tokens({"Yes": -2.0, " Yes": -1.0}, [" Yes"], spaced=False) == [-1.0]


@pytest.mark.parametrize(
    ("answers", "spaced", "message"),
    [
        ([" Yes", " Perhaps"], True, "' Perhaps' is not among the 5 likeliest"),
        (["Yes", "No"], True, "'Yes' is not among"),
        ([" Yes", " Yesterday"], True, "begin with the same token"),
    ],
)
def test_answers_that_were_not_told_are_an_error(answers, spaced, message):
    with pytest.raises(ModelError, match=message):
        first_tokens(TOLD, answers, spaced=spaced)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": []},
        {"content": [7]},
        {"content": [{"token": 3, "logprob": None}]},
        {"top_logprobs": [None]},
        {"top_logprobs": [{"a": "x", "b": float("nan")}]},
        {"top_logprobs": {"a": -1}},
    ],
)
def test_log_probabilities_in_no_known_form_are_an_error(logprobs):
    with pytest.raises(ModelError, match="told no log-probabilities"):
        alternatives(logprobs)


def test_log_probabilities_above_zero_are_rounding():
    assert alternatives({"top_logprobs": [{"a": 1e-7, "b": -1}]}) == {"a": 0.0, "b": -1.0}


def test_an_echo_is_summed_over_what_reaches_into_the_continuation():
    # "ab cd" with the continuation from character 3 on; the token " cd" begins before it.
    told = {"token_logprobs": [None, -1.0, -9.0], "text_offset": [0, 2, 5], "tokens": ["ab", " cd", "!"]}
    assert sum_after(3, 5, told) == -1.0
    with pytest.raises(ModelError, match="longer prompt"):
        sum_after(0, 5, told)
    with pytest.raises(ModelError, match="less than the whole text"):
        sum_after(3, 9, told)
    for bad in (None, {}, {**told, "text_offset": []}, {**told, "text_offset": ["0", 1, 2]}):
        with pytest.raises(ModelError, match="did not echo"):
            sum_after(0, 1, bad)
