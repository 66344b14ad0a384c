"""The decoding loop against `LocalLM.generate` and plain forward passes."""

import json

import numpy as np
import pytest
import torch
from test_json_schema import DIFFERENT, RANKING

from frugalrec.errors import ModelError
from frugalrec.rng import generator
from frugalrec.serving import grammar, masks
from frugalrec.serving.decoding import Plan, Writer, draw, given
from frugalrec.serving.grammar import NOTHING
from frugalrec.serving.json_schema import grammar_of
from frugalrec.serving.masks import TokenBytes
from frugalrec.serving.prefixes import KeptPrefixes

OPENING = "The user liked the book and disliked the game. Films watched: Alien (1979)."
PROMPTS = [
    OPENING + " Next film:",
    OPENING + " Recommend another film. Answer:",
    "the quick brown fox",
    OPENING + " Next film: Heat? Answer:",
]


def writer(lm, kept=4096):
    return Writer(lm, KeptPrefixes(kept), TokenBytes(lm.tokenizer))


def write(lm, prompts, plans, *, by=None):
    by = by or writer(lm)
    with lm._running():
        return by.write(lm.encode(prompts), plans)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("kept", [0, 4096])
def test_greedy_texts_are_those_of_generate(kind, kept, request):
    lm = request.getfixturevalue(kind)
    expected, usage = lm.generate(PROMPTS, max_new_tokens=24)

    texts = write(lm, PROMPTS, [Plan(max_tokens=24)] * 4, by=writer(lm, kept))

    assert [text.text for text in texts] == [completion.text for completion in expected]
    assert sum(text.written for text in texts) == usage.tokens_out


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_text_does_not_depend_on_what_is_written_beside_it(llama, temperature):
    plans = [
        Plan(max_tokens=30, temperature=temperature, seed=1, top=2),
        Plan(max_tokens=5, temperature=temperature, seed=2),
        Plan(max_tokens=17, temperature=temperature, seed=3, top_p=0.7),
        Plan(max_tokens=30, seed=4, grammar=grammar_of(DIFFERENT), temperature=temperature),
    ]
    together = write(llama, PROMPTS, plans)

    for prompt, plan, found in zip(PROMPTS, plans, together, strict=True):
        (alone,) = write(llama, [prompt], [plan], by=writer(llama, 0))
        assert (alone.text, alone.written, alone.finish) == (found.text, found.written, found.finish)
        for one, other in zip(alone.tokens, found.tokens, strict=True):
            assert one.token == other.token
            if plan.top is not None:
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_kept_prefixes_change_no_number_and_are_counted_exactly(llama):
    by = writer(llama)
    plans = [Plan(max_tokens=6, top=3)]
    rows = llama.encode(PROMPTS)
    shared = next(i for i in range(99) if rows[0][i] != rows[1][i])

    first = write(llama, PROMPTS[:1], plans, by=by)[0]
    second = write(llama, PROMPTS[1:2], plans, by=by)[0]
    again = write(llama, PROMPTS[:1], plans, by=by)[0]
    other = write(llama, PROMPTS[2:3], plans, by=by)[0]
    fresh = write(llama, PROMPTS[1:2], plans, by=writer(llama, 0))[0]

    assert [first.reused, second.reused, again.reused, other.reused] == [0, shared, len(rows[0]) - 1, 0]
    assert fresh.text == second.text
    for one, two in zip(fresh.tokens, second.tokens, strict=True):
        assert [t for t, _ in one.top] == [t for t, _ in two.top]
        np.testing.assert_allclose([v for _, v in one.top], [v for _, v in two.top], atol=1e-4)


def test_a_batch_reads_what_it_shares_once(llama):
    prompts = PROMPTS[:2] + PROMPTS[3:]
    rows = llama.encode(prompts)
    shared = next(i for i in range(99) if len({row[i] for row in rows}) > 1)
    expected, _ = llama.generate(prompts, max_new_tokens=12)

    texts = write(llama, prompts, [Plan(max_tokens=12)] * 3)

    assert [text.text for text in texts] == [completion.text for completion in expected]
    assert texts[0].reused == 0
    assert all(text.reused >= shared for text in texts[1:])


def test_kept_prefixes_stay_within_their_room(llama):
    rows = llama.encode([f"{number} {OPENING}" for number in range(6)])
    kept = KeptPrefixes(2 * len(rows[0]) + 3)
    by = Writer(llama, kept, TokenBytes(llama.tokenizer))
    with llama._running():
        for row in rows:
            by.write([row], [Plan(max_tokens=1)])
            assert kept.tokens <= kept.max_tokens
    assert kept.longest(rows[-1])[0] == len(rows[-1]) - 1
    assert kept.longest(rows[0])[0] == 0


def test_logprobs_are_those_of_a_plain_forward_pass(llama):
    (text,) = write(llama, PROMPTS[2:3], [Plan(max_tokens=8, top=4, temperature=0.9, seed=5)])
    prompt = llama.encode(PROMPTS[2:3])[0]
    with torch.no_grad():
        whole = torch.tensor([[*prompt, *(token.token for token in text.tokens)]])
        expected = torch.log_softmax(llama.network(whole).logits[0].double(), dim=-1)

    for place, token in enumerate(text.tokens):
        row = expected[len(prompt) - 1 + place]
        assert token.logprob == pytest.approx(float(row[token.token]), abs=1e-4)
        assert [t for t, _ in token.top] == row.topk(4).indices.tolist()


def test_given_texts_have_the_probabilities_of_loglikelihood(llama):
    prompt, continuations = PROMPTS[1], [" Heat (1995)", " the lazy dog. Yes"]
    (expected,), _ = llama.loglikelihood([prompt], [continuations])
    start = len(llama.encode([prompt])[0])

    for value, continuation in zip(expected, continuations, strict=True):
        (tokens,) = llama.encode([prompt + continuation])
        with llama._running():
            facts = given(llama, tokens, 2, chunk=7)
        assert facts[0].logprob is None
        assert sum(fact.logprob for fact in facts[start:]) == pytest.approx(float(value), abs=1e-4)
        with torch.no_grad():
            plain = torch.log_softmax(llama.network(torch.tensor([tokens])).logits[0].double(), dim=-1)
        for place, fact in enumerate(facts[1:]):
            assert [t for t, _ in fact.top] == plain[place].topk(2).indices.tolist()


def test_encoders_give_no_probabilities(t5):
    with pytest.raises(ModelError, match="encoder"):
        given(t5, [5, 6], None)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_keep_to_a_schema_whatever_the_model_wants(kind, temperature, request):
    lm = request.getfixturevalue(kind)
    plan = Plan(max_tokens=60, grammar=grammar_of(RANKING), temperature=temperature)
    other = Plan(max_tokens=60, grammar=grammar_of(DIFFERENT), temperature=temperature, seed=7)

    ranking, different = write(lm, PROMPTS[:2], [plan, other])

    assert {ranking.finish, different.finish} == {"stop"}
    assert set(json.loads(ranking.text)) == {"ranking"}
    assert 1 <= len(json.loads(ranking.text)["ranking"]) <= 3
    assert len(set(json.loads(different.text))) == len(json.loads(different.text)) >= 3


def test_a_greedy_constrained_token_is_the_likeliest_that_fits(llama):
    (text,) = write(llama, PROMPTS[:1], [Plan(max_tokens=3, grammar=grammar_of({"enum": [3, 5, 8]}))])
    prompt = llama.encode(PROMPTS[:1])[0]
    with torch.no_grad():
        logits = llama.network(torch.tensor([prompt])).logits[0, -1]
    digits = {digit: llama.tokenizer(digit).input_ids[0] for digit in "358"}

    assert text.text == max(digits, key=lambda digit: float(logits[digits[digit]]))


def test_a_text_ends_before_its_stop_word(llama):
    (whole,) = write(llama, PROMPTS[:1], [Plan(max_tokens=20)])
    word = whole.text[4:6]

    (cut,) = write(llama, PROMPTS[:1], [Plan(max_tokens=20, stop=("\x00", word))])

    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.finish == "stop"
    assert cut.written <= whole.written


def test_draws_follow_the_probabilities_and_top_p_cuts_the_tail():
    logits = np.log([0.5, 0.1, 0.3, 0.1])
    rng = generator(0, "test")
    counts = np.bincount([draw(logits, 1.0, 1.0, rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.1, 0.3, 0.1], atol=0.03)
    # At temperature 1/2 probabilities are squared: .25 .01 .09 .01 of .36.
    counts = np.bincount([draw(logits, 0.5, 1.0, rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, np.array([0.25, 0.01, 0.09, 0.01]) / 0.36, atol=0.03)
    assert {draw(logits, 1.0, 0.7, rng) for _ in range(500)} == {0, 2}
    assert {draw(logits, 1.0, 0.01, rng) for _ in range(50)} == {0}
    assert {draw(np.array([1e4, -1e4]), 1e-6, 1.0, rng) for _ in range(50)} == {0}


def test_tokens_have_the_bytes_that_they_are_decoded_to(llama):
    vocabulary = TokenBytes(llama.tokenizer)
    for text in ('Alien³ — "naïve" 東京\n', '{"ranking": [1, 2]}'):
        tokens = llama.tokenizer(text).input_ids
        assert b"".join(vocabulary.piece(token) for token in tokens) == text.encode()
    assert vocabulary.table[llama.tokenizer.eos_token_id] is None


@pytest.mark.parametrize("most", [None, 5000])
def test_masks_are_those_of_trying_each_token_and_take_little_room(llama, monkeypatch, most):
    if most is not None:
        monkeypatch.setattr(masks, "KEPT_BYTES", most)
    vocabulary = TokenBytes(llama.tokenizer)
    state, inside = grammar_of({"type": "array", "items": {"type": "string"}, "maxItems": 9}), 0
    for byte in b'["a", "b\\n", "a"]':
        expected = [
            token
            for token, content in enumerate(vocabulary.table)
            if content and vocabulary.after(state, token) is not NOTHING
        ]
        assert vocabulary.allowed(state).tolist() == vocabulary.allowed(state).tolist() == expected
        kept = vocabulary._masks.get(state)
        inside += set(kept) == set(expected) - set(vocabulary._plain) and len(kept) < len(expected)
        state = grammar.after(state, byte)
        assert most is None or sum(mask.nbytes for mask in vocabulary._masks.values()) <= most
    assert inside >= 4  # inside strings only what is not plain is kept for each state
