"""Beam search against three oracles: copies of the prompts, transformers' generate, and a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.beam_search import BeamSettings, beam_search
from frugalrec.llm.local import LocalLM
from frugalrec.llm.queries import decoder_start
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5

TEXTS = [
    "Films watched: Alien (1979), Heat",
    "the quick brown fox",
    "Yes",
    "Next film: The Matrix (1999)?",
    "game",
]
MODELS = {"llama": tiny_llama, "qwen": tiny_qwen, "t5": tiny_t5}
SETTINGS = BeamSettings(beams=5, max_new_tokens=6)


@pytest.fixture(scope="module", params=MODELS)
def lm(request, tmp_path_factory):
    lm = LocalLM.load(MODELS[request.param](tmp_path_factory.mktemp("lm")))
    # Random networks hardly ever end a text; this one does, now and then.
    with torch.no_grad():
        lm.network.get_output_embeddings().weight[1] *= -4 if lm.is_encoder_decoder else 4
    return lm


def same(one, other, atol=1e-4):
    assert one.tokens == other.tokens
    np.testing.assert_allclose(one.scores, other.scores, atol=atol)


def lengths(written):
    return {len(text) for texts in written.tokens for text in texts}


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("early", [True, False])
def test_shared_prompts_give_what_copies_give_and_what_generate_gives(lm, penalty, early):
    prompts = lm.encode(TEXTS)
    settings = replace(SETTINGS, length_penalty=penalty, early_stopping=early)
    shared, usage = beam_search(lm, prompts, settings)
    copied, spent = beam_search(lm, prompts, replace(settings, shared=False))
    same(shared, copied)
    assert lengths(shared) > {6}  # some texts end, some are cut
    own = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id)
    for prompt, tokens, scores in zip(prompts, shared.tokens, shared.scores, strict=True):
        output = lm.network.generate(
            input_ids=torch.tensor([prompt]),
            generation_config=transformers.GenerationConfig(
                num_beams=5, num_return_sequences=5, do_sample=False, max_new_tokens=6, length_penalty=penalty,
                early_stopping=early, pad_token_id=own[0], eos_token_id=own[1], return_dict_in_generate=True,
                output_scores=True, decoder_start_token_id=decoder_start(lm) if lm.is_encoder_decoder else None,
            ),
        )  # fmt: skip
        skip = 1 if lm.is_encoder_decoder else len(prompt)
        found = [row[skip:].tolist() for row in output.sequences]
        found = [row[: row.index(1) + 1] if 1 in row else row for row in found]
        assert [[t for t in row if t != own[0]] for row in found] == [
            [t for t in r if t != own[0]] for r in tokens
        ]
        np.testing.assert_allclose(output.sequences_scores.numpy(), scores, atol=1e-4)
    assert usage.tokens_in == sum(map(len, prompts)) and spent.tokens_in == 5 * usage.tokens_in
    assert usage.tokens_out == spent.tokens_out > 0 and usage.llm_calls == len(TEXTS)


def following(lm, prompt, path):
    """Log-probabilities of the next token, from one whole text."""
    if lm.is_encoder_decoder:
        given = torch.tensor([[decoder_start(lm), *path]])
        logits = lm.network(input_ids=torch.tensor([prompt]), decoder_input_ids=given).logits
    else:
        logits = lm.network(torch.tensor([[*prompt, *path]])).logits
    return torch.log_softmax(logits[0, -1].double(), dim=0).tolist()


def plain(lm, prompt, settings):
    """The search in lists, one text at a time."""
    beams, done, n = [((), 0.0)], [], settings.beams
    for length in range(1, settings.max_new_tokens + 1):
        new = [
            ((*path, token), score + gain)
            for path, score in beams
            for token, gain in enumerate(following(lm, prompt, path))
        ]
        new = sorted(new, key=lambda pair: -pair[1])[: 2 * n]
        ends = [path[-1] == 1 or length == settings.max_new_tokens for path, _ in new]
        done += [
            (p, s / length**settings.length_penalty)
            for (p, s), end in zip(new[:n], ends[:n], strict=True)
            if end
        ]
        done = sorted(done, key=lambda pair: -pair[1])[:n]
        beams = [pair for pair, end in zip(new, ends, strict=True) if not end][:n]
        over = not beams or settings.early_stopping
        if len(done) == n and (over or beams[0][1] / length**settings.length_penalty <= done[-1][1]):
            break
    return done


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("early", [True, False])
def test_it_finds_what_a_plain_loop_finds(lm, early):
    settings = BeamSettings(beams=3, max_new_tokens=4, early_stopping=early, length_penalty=0.5)
    prompts = lm.encode(TEXTS[:2])
    written, _ = beam_search(lm, prompts, settings)
    for prompt, tokens, scores in zip(prompts, written.tokens, written.scores, strict=True):
        expected = plain(lm, prompt, settings)
        assert tokens == [list(path) for path, _ in expected]
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_prompt_alone_is_a_prompt_among_others(lm, shared):
    settings = replace(SETTINGS, shared=shared)
    prompts, told = lm.encode(TEXTS), []
    whole, _ = beam_search(lm, prompts, settings)
    small = LocalLM(lm.network, lm.tokenizer, model="small", max_batch_tokens=1)
    alone, _ = beam_search(small, prompts, settings, progress=lambda *at: told.append(at))
    assert told == [(n, 5) for n in range(1, 6)]
    same(alone, whole)
    turned, _ = beam_search(lm, prompts[::-1], settings)
    assert turned.tokens == whole.tokens[::-1]
    nothing, usage = beam_search(lm, [], settings)
    assert nothing.tokens == [] and nothing.scores.shape == (0, 5) and usage.tokens_in == 0


@pytest.mark.parametrize("lm", ["t5"], indirect=True)
def test_a_decoder_that_sees_padding_depends_on_the_batch(lm):
    prompts = lm.encode(TEXTS)
    seeing = replace(SETTINGS, see_padding=True)
    shared, _ = beam_search(lm, prompts, seeing)
    copied, _ = beam_search(lm, prompts, replace(seeing, shared=False))
    usual, _ = beam_search(lm, prompts, SETTINGS)
    same(shared, copied)
    longest = max(map(len, prompts))
    for row in range(len(prompts)):
        alone, _ = beam_search(lm, [prompts[row]], seeing)
        np.testing.assert_allclose(
            alone.scores[0], usual.scores[row], atol=1e-4
        )  # without padding: no mistake
        off = np.abs(alone.scores[0] - shared.scores[row]).max()
        assert off < 1e-4 if len(prompts[row]) == longest else off > 1e-3


def test_more_beams_than_tokens_leave_no_gap(lm):
    written, _ = beam_search(lm, lm.encode(TEXTS[:1]), BeamSettings(beams=400, max_new_tokens=2))
    texts = [tuple(text) for text in written.tokens[0]]
    assert len(set(texts)) == len(texts) and np.isfinite(written.scores[0, : len(texts)]).all()
    assert (np.diff(written.scores[0][: len(texts)]) <= 0).all()


def test_half_precision_finds_nearly_the_same(tmp_path):
    folder = tiny_llama(tmp_path)
    half, full = LocalLM.load(folder, dtype="bfloat16"), LocalLM.load(folder, dtype="float32")
    settings = BeamSettings(beams=4, max_new_tokens=3, length_penalty=0.0)
    one, _ = beam_search(half, half.encode(TEXTS), settings)
    other, _ = beam_search(full, full.encode(TEXTS), settings)
    np.testing.assert_allclose(one.scores[:, 0], other.scores[:, 0], rtol=0.1)


def test_bad_options_are_named(tmp_path):
    with pytest.raises(ConfigError, match="must be at least 1, not 0 and 49"):
        BeamSettings(beams=0)
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=16))
    with pytest.raises(ModelError, match="and 49 new ones"):
        beam_search(lm, lm.encode(TEXTS))
