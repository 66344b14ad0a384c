"""The text encoder: against one text at a time, in any batch, from the cache, and for real."""

import logging

import numpy as np
import pytest

from frugalrec.errors import ConfigError, DataError, FrugalrecError, ModelError
from frugalrec.llm import models
from frugalrec.llm.encoders import SentenceEncoder
from frugalrec.testing.tiny_models import tiny_t5, tiny_tokenizer

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
transformers = pytest.importorskip("transformers", reason="needs frugalrec[llm]")

TEXTS = ["Heat (1995)", "Alien (1979)", "", "the quick brown fox " * 12, "Heat (1995)", "Ω 東京 \ud7ff"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with 2 layers of width 32 and random weights."""
    target = tmp_path_factory.mktemp("models") / "bert"
    config = transformers.BertConfig(
        vocab_size=384,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]), models.conversion.quiet_transformers():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(str(target))
        tiny_tokenizer().save_pretrained(str(target))
    return target


def load(folder, **options):
    return SentenceEncoder.load(folder, device="cpu", **options)


def one_at_a_time(encoder, text):
    """Mean over the tokens of one text, without padding, in double precision."""
    ids = encoder.tokenizer(text).input_ids[: encoder.max_length] or [encoder.tokenizer.pad_token_id]
    with torch.no_grad():
        states = encoder.network(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    vector = states[0] if encoder.pooling == "first" else sum(states) / len(states)
    return vector / np.sqrt((vector**2).sum())


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("max_length", [5, 256])
def test_vectors_are_those_of_one_text_at_a_time(folder, pooling, max_length):
    encoder = load(folder, pooling=pooling, max_length=max_length)
    vectors = encoder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 32) and vectors.dtype == np.float32
    assert encoder.max_length == min(max_length, 64)
    np.testing.assert_allclose(vectors, [one_at_a_time(encoder, text) for text in TEXTS], atol=2e-6)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_its_batch(folder):
    encoder = load(folder)
    whole = encoder.embed(TEXTS)
    for budget in (1, 40, 100_000):
        encoder.max_batch_tokens = budget
        np.testing.assert_allclose(encoder.embed(TEXTS), whole, atol=2e-6)
        order = [3, 0, 5, 1]
        np.testing.assert_allclose(encoder.embed([TEXTS[row] for row in order]), whole[order], atol=2e-6)
    assert not np.allclose(whole[0], whole[1], atol=0.05)
    assert np.array_equal(whole[0], whole[4])


def test_no_texts_give_no_vectors(folder):
    assert load(folder).embed([]).shape == (0, 32)
    with pytest.raises(DataError, match="list of texts"):
        load(folder).embed("Heat")


def test_the_cache_answers_without_the_network(folder, tmp_path, monkeypatch, caplog):
    cached, plain = load(folder, cache=tmp_path / "vectors"), load(folder)
    expected = plain.embed(TEXTS)
    np.testing.assert_array_equal(cached.embed(TEXTS), expected)
    (file,) = (tmp_path / "vectors").iterdir()
    monkeypatch.setattr(cached, "network", types_without_forward(cached.network))
    # Neither order nor repetition makes another file.
    np.testing.assert_array_equal(cached.embed(TEXTS[::-1]), expected[::-1])
    with pytest.raises(RuntimeError, match="was asked"):
        cached.embed(TEXTS[:2])
    cached.pooling = "first"
    with pytest.raises(RuntimeError, match="was asked"):
        cached.embed(TEXTS)
    file.write_bytes(file.read_bytes()[:50])
    again = load(folder, cache=tmp_path / "vectors")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(again.embed(TEXTS), expected)
    assert "damaged" in caplog.text
    assert [p.name for p in (tmp_path / "vectors").iterdir()] == [file.name]


def types_without_forward(network):
    class Silent:
        config, device = network.config, network.device

        def __call__(self, **_):
            raise RuntimeError("the network was asked")

    return Silent()


def test_the_fingerprint_names_all_that_decides_a_vector(folder, tmp_path):
    prints = {
        load(folder).fingerprint,
        load(folder, pooling="first").fingerprint,
        load(folder, max_length=7).fingerprint,
    }
    assert len(prints) == 3 and load(folder, max_batch_tokens=9, cache=tmp_path).fingerprint in prints
    other = tmp_path / "other"
    network = load(folder).network
    with models.conversion.quiet_transformers(), torch.no_grad():
        network.embeddings.word_embeddings.weight[5] += 1
        network.save_pretrained(str(other))
        tiny_tokenizer().save_pretrained(str(other))
    assert load(other).fingerprint not in prints


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(tiny_t5(tmp_path / "t5"))
    with pytest.raises(ModelError, match="no config.json"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="mean, first.*'max'"):
        load(folder, pooling="max")
    with pytest.raises(ConfigError, match=r"max_length \(0\).* at least 1"):
        load(folder, max_length=0)


def test_an_encoder_is_no_language_model(folder):
    from frugalrec.llm.local import LocalLM

    with pytest.raises(ModelError, match=r"no language model: its weights lack .*text encoder"):
        LocalLM.load(folder, device="cpu")


@pytest.fixture(scope="module")
def minilm():
    try:
        models.get("minilm-l6")
    except FrugalrecError as error:
        pytest.skip(f"the embedded text encoder cannot be had here: {error}")
    return load("minilm-l6")


@pytest.mark.slow
def test_the_embedded_encoder_knows_what_belongs_together(minilm):
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The sky is full of stars."]
    vectors = minilm.embed(texts)
    cosines = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    assert cosines[0, 1] > 0.7 > 0.2 > cosines[0, 2]
    assert minilm.embed(["FILM"]) == pytest.approx(minilm.embed(["film"]), abs=1e-6)
    np.testing.assert_allclose(vectors, [one_at_a_time(minilm, text) for text in texts], atol=2e-6)
