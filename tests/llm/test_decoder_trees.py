import numpy as np
import pytest
import torch
import transformers

from frugalrec.llm import decoder_trees
from frugalrec.llm.decoder_trees import DecoderTree, reads_trees, score_apart, score_trees
from frugalrec.llm.local import LocalLM
from frugalrec.llm.scoring import Query, Seq2SeqScorer
from frugalrec.testing.tiny_models import tiny_t5

TEXTS = [(5, 9, 3, 7, 1), (5, 9, 1), (20, 30, 40, 50, 60, 70, 1)]


def query(text, answer, width=1):
    targets = np.stack([(np.array(answer) + shift) % 384 for shift in range(width)], axis=1)
    return Query(tokens=text, positions=tuple(range(len(answer))), targets=targets, decoder=(0, *answer[:-1]))


def queries(text, n, seed=0):
    rng = np.random.default_rng([seed, len(text)])
    answers = [(*rng.integers(100, 104, size=rng.integers(1, 4)).tolist(), 1) for _ in range(n)]
    return [query(text, answer, width=1 + number % 2) for number, answer in enumerate(answers)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("t5")))


def test_common_beginnings_stand_once():
    tree = DecoderTree(
        [query((1,), (7, 8, 1)), query((1,), (7, 9, 1)), query((1,), (5, 1)), query((1,), (7, 8, 1))]
    )
    assert (
        tree.tokens == [0, 7, 8, 9, 5] and tree.parents == [-1, 0, 1, 1, 0] and tree.depths == [0, 1, 2, 2, 1]
    )
    assert tree.places == [[0, 1, 2], [0, 1, 3], [0, 4], [0, 1, 2]] and tree.read == [0, 1, 2, 3, 4]
    expected = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    np.testing.assert_array_equal(tree.sees(), expected.astype(bool))


@pytest.mark.slow
@torch.no_grad()
def test_a_tree_gives_what_whole_answers_give(lm):
    asked = [queries(text, n) for text, n in zip(TEXTS, (30, 1, 7), strict=True)]
    found = score_trees(lm.network, 0, TEXTS, asked)
    apart = score_apart(lm.network, 0, TEXTS, asked)
    for text, own, one, other in zip(TEXTS, asked, found, apart, strict=True):
        for wanted, values, same in zip(own, one, other, strict=True):
            np.testing.assert_allclose(values, same, atol=1e-5)
            logits = lm.network(
                input_ids=torch.tensor([text]), decoder_input_ids=torch.tensor([wanted.decoder])
            ).logits[0].log_softmax(dim=1)  # fmt: skip
            whole = np.take_along_axis(logits.numpy(), wanted.targets, axis=1)
            np.testing.assert_allclose(values, whole, atol=1e-5)


@torch.no_grad()
def test_neither_batches_nor_order_matter_and_tokens_are_counted_once(lm):
    groups = [queries(text, 12) for text in TEXTS]
    many, usage = Seq2SeqScorer(lm.network, pad=0, max_batch_tokens=8192).score(groups)
    few, _ = Seq2SeqScorer(lm.network, pad=0, max_batch_tokens=1).score(
        [group[::-1] for group in groups[::-1]]
    )
    for one, other in zip(many, few[::-1], strict=True):
        for a, b in zip(one, other[::-1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    decoded = sum(len({q.decoder[: n + 1] for q in group for n in range(len(q.decoder))}) for group in groups)
    assert usage.tokens_in == sum(map(len, TEXTS)) + decoded
    assert usage.tokens_cached == 11 * sum(map(len, TEXTS)) and usage.llm_calls == 36
    assert Seq2SeqScorer(lm.network, pad=0, max_batch_tokens=9).score([])[0] == []


@torch.no_grad()
def test_a_decoder_that_cannot_read_trees_is_found_out_and_answers_all_the_same(monkeypatch):
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=384, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.3,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    bart = transformers.BartForConditionalGeneration(config).eval()
    assert not reads_trees(bart, 0)  # its positions are columns
    monkeypatch.setattr(decoder_trees, "score_trees", None)
    groups = [queries(text, 4) for text in TEXTS]
    found, usage = Seq2SeqScorer(bart, pad=0, max_batch_tokens=64).score(groups)
    logits = bart(torch.tensor([TEXTS[0]]), decoder_input_ids=torch.tensor([groups[0][1].decoder])).logits[0]
    whole = np.take_along_axis(logits.log_softmax(dim=1).numpy(), groups[0][1].targets, axis=1)
    np.testing.assert_allclose(found[0][1], whole, atol=1e-5)
    assert usage.tokens_in == sum(map(len, TEXTS)) + sum(len(q.decoder) for group in groups for q in group)


def test_trees_are_read(lm):
    assert reads_trees(lm.network, 0)
