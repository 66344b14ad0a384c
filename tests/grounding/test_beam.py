"""Beam search against three oracles: every title scored alone, a plain loop, and transformers' generate."""

import numpy as np
import pytest
import torch
import transformers

from frugalrec.grounding.beam import TrieTensors, search
from frugalrec.grounding.trie import TitleTrie, title_trie
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.queries import decoder_start
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5

PROMPT = NextTitlePrompt(noun="film")
WORDS = ["Alien", "Heat", "Blade Runner", "The Matrix", "film", "fox", "dog", "II", "III", "quick"]


def catalogue(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 5))) for _ in range(n)]


TITLES = catalogue(60)
QUESTIONS = [PROMPT.question(catalogue(n, seed=n)) for n in (1, 4, 2, 7, 0, 3)]
MODELS = {
    "llama": tiny_llama,
    "qwen": tiny_qwen,
    "llama-start": lambda folder: tiny_llama(folder, seed=3, start=True),
    "t5": tiny_t5,
}


@pytest.fixture(scope="module", params=MODELS)
def lm(request, tmp_path_factory):
    return LocalLM.load(MODELS[request.param](tmp_path_factory.mktemp("lm")))


def find(lm, trie, questions=QUESTIONS, *, k, beams, values=None):
    with torch.no_grad():
        return search(
            lm, TrieTensors(trie, lm.network.device), lm.encode(questions), k=k, beams=beams, values=values
        )


def exhaustive(lm, questions=QUESTIONS):
    """Log-probability of every title of the trie, in its order, by whole texts."""
    trie = title_trie(lm, PROMPT, TITLES)
    texts = [
        PROMPT.answer(TITLES[trie.items_of(t)[0]]) + lm.tokenizer.eos_token for t in range(trie.n_titles)
    ]
    return trie, np.stack(lm.loglikelihood(questions, [texts] * len(questions))[0])


@pytest.mark.slow
def test_as_many_beams_as_titles_give_the_order_of_all_titles_scored_alone(lm):
    trie, expected = exhaustive(lm)
    titles, scores, usage = find(lm, trie, k=trie.n_titles, beams=trie.n_titles)
    np.testing.assert_array_equal(titles, np.argsort(-expected, axis=1, kind="stable"))
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-4)
    assert usage.tokens_in == sum(map(len, lm.encode(QUESTIONS)))
    assert usage.llm_calls == len(QUESTIONS)


@pytest.mark.slow
def test_values_are_added_and_what_they_rule_out_never_comes(lm):
    trie, expected = exhaustive(lm)
    values = np.random.default_rng(1).normal(scale=9, size=expected.shape).astype(np.float32)
    values[:, ::3] = -np.inf
    expected = expected + values
    titles, scores, _ = find(lm, trie, k=trie.n_titles, beams=trie.n_titles, values=values)
    possible = int(np.isfinite(values[0]).sum())
    order = np.argsort(-expected, axis=1, kind="stable")[:, :possible]
    np.testing.assert_array_equal(titles[:, :possible], order)
    np.testing.assert_allclose(scores[:, :possible], np.take_along_axis(expected, order, 1), atol=1e-4)
    assert (titles[:, possible:] == -1).all() and np.isneginf(scores[:, possible:]).all()


def following(lm, prompt, path):
    """Log-probabilities of the next token, from one whole text."""
    if lm.is_encoder_decoder:
        given = torch.tensor([[decoder_start(lm), *path]])
        logits = lm.network(torch.tensor([prompt]), decoder_input_ids=given).logits
    else:
        logits = lm.network(torch.tensor([[*prompt, *path]])).logits
    return torch.log_softmax(logits[0, -1].float(), dim=-1)


def plain_beam_search(lm, titles, prompt, k, beams):
    """The same search in a few lines: nothing shared, nothing cached, no early end."""
    starts = {title[:n] for title in titles for n in range(len(title) + 1)}
    alive, finished = [((), 0.0)], []
    while alive:
        candidates = []
        for path, score in alive:
            values = following(lm, prompt, path)
            for token in {start[len(path)] for start in starts if start[:-1] == path and start}:
                candidates.append(((*path, token), score + float(values[token])))
        finished += [c for c in candidates if c[0] in titles]
        going = [c for c in candidates if any(t[: len(c[0])] == c[0] and t != c[0] for t in titles)]
        alive = sorted(going, key=lambda c: -c[1])[:beams]
    return sorted(finished, key=lambda c: -c[1])[:k]


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_few_beams_find_what_a_plain_loop_finds(lm, beams):
    trie = title_trie(lm, PROMPT, TITLES[:30])
    paths = [tuple(p.tolist()) for p in np.split(trie.path, trie.path_indptr[1:-1])]
    titles, scores, _ = find(lm, trie, QUESTIONS[:3], k=5, beams=beams)
    with torch.no_grad():
        for row, prompt in enumerate(lm.encode(QUESTIONS[:3])):
            expected = plain_beam_search(lm, set(paths), prompt, 5, beams)
            found = [(paths[t], s) for t, s in zip(titles[row], scores[row], strict=True) if t >= 0]
            assert [path for path, _ in found] == [path for path, _ in expected]
            np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-4)


def test_titles_that_begin_longer_titles_are_found_without_an_end_token(lm):
    sequences = [[5, 7], [5], [5, 7, 9, 11], [8], [8, 8], [8, 9]]
    trie = TitleTrie.build(sequences)
    prompt = lm.encode(QUESTIONS)[1]
    titles, scores, _ = find(lm, trie, QUESTIONS[1:2], k=6, beams=6)
    with torch.no_grad():
        expected = plain_beam_search(lm, {tuple(s) for s in sequences}, prompt, 6, 6)
    assert [tuple(sequences[trie.items_of(t)[0]]) for t in titles[0]] == [path for path, _ in expected]
    np.testing.assert_allclose(scores[0], [score for _, score in expected], atol=1e-4)


def generated(lm, trie, prompt, beams):
    """(path, score) of transformers' own beam search under a prefix function."""
    allowed = {}
    for path in np.split(trie.path, trie.path_indptr[1:-1]):
        for n in range(len(path)):
            allowed.setdefault(tuple(path[:n].tolist()), set()).add(int(path[n]))
    skip, end = (1 if lm.is_encoder_decoder else len(prompt)), lm.tokenizer.eos_token_id
    settings = transformers.GenerationConfig(
        num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=0.0,
        early_stopping=False, max_new_tokens=trie.longest, pad_token_id=lm.pad_id, eos_token_id=end,
        decoder_start_token_id=decoder_start(lm) if lm.is_encoder_decoder else None,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    output = lm.network.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        generation_config=settings,
        prefix_allowed_tokens_fn=lambda _, ids: sorted(allowed.get(tuple(ids[skip:].tolist()), {end})),
    )
    rows = [row[skip:].tolist() for row in output.sequences]
    rows = [row[: row.index(end) + 1] for row in rows]
    return list(zip(rows, output.sequences_scores.tolist(), strict=True))


@pytest.mark.slow
def test_with_room_for_all_titles_transformers_own_beam_search_finds_the_same(lm):
    trie = title_trie(lm, PROMPT, TITLES[:10])
    titles, scores, _ = find(lm, trie, QUESTIONS[:4], k=trie.n_titles, beams=12)
    for row, prompt in enumerate(lm.encode(QUESTIONS[:4])):
        theirs = generated(lm, trie, prompt, 12)[: trie.n_titles]
        ours = [trie.path[trie.path_indptr[t] : trie.path_indptr[t + 1]].tolist() for t in titles[row]]
        assert ours == [path for path, _ in theirs]
        np.testing.assert_allclose(scores[row], [score for _, score in theirs], atol=1e-4)


@pytest.mark.slow
def test_with_few_beams_transformers_own_beam_search_finds_nothing_better(lm):
    # Ours keeps every title that ends on the way; theirs only those that end among the best paths.
    trie = title_trie(lm, PROMPT, TITLES)
    _, scores, _ = find(lm, trie, QUESTIONS[:3], k=6, beams=6)
    for row, prompt in enumerate(lm.encode(QUESTIONS[:3])):
        theirs = np.array([score for _, score in generated(lm, trie, prompt, 6)])
        assert (scores[row] >= theirs - 1e-4).all()
        assert np.isclose(scores[row][:, None], theirs, atol=1e-4).any()  # it is the same search
