import numpy as np
import pytest
import torch

from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.embeddings import LMEmbedder
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.local import LocalLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5

TEXTS = ["Heat (1995)", "Alien", "The quick brown fox jumps", "Alien", "Blade Runner (1982)", ""]


@pytest.fixture(scope="module", params=["llama", "llama-start", "t5"])
def lm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return LocalLM.load(
        tiny_t5(folder) if request.param == "t5" else tiny_llama(folder, start="start" in request.param)
    )


def one(lm, text, pooling):
    """The vector of one text on its own, from the states that transformers hands out."""
    ids = torch.tensor([lm.encode([text])[0] or [lm.pad_id]])
    with torch.no_grad():
        if lm.is_encoder_decoder:
            states = lm.network.encoder(ids).last_hidden_state[0]
        else:
            states = lm.network(ids, output_hidden_states=True).hidden_states[-1][0]
    return (states[-1] if pooling == "last" else states.mean(dim=0)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_each_text_alone_in_any_batch(lm, pooling):
    found = LMEmbedder(lm, pooling=pooling).embed(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([one(lm, text, pooling) for text in TEXTS]), atol=1e-5)
    small = LocalLM(lm.network, lm.tokenizer, model="small", max_batch_tokens=1)
    turned = LMEmbedder(small, pooling=pooling).embed(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(found, turned, atol=1e-5)
    assert LMEmbedder(lm).embed([]).shape == (0, found.shape[1])


def test_no_logits_are_computed(lm):
    def never(*_):
        raise AssertionError("the output layer ran")

    handle = lm.network.get_output_embeddings().register_forward_pre_hook(never)
    try:
        LMEmbedder(lm).embed(TEXTS)
    finally:
        handle.remove()


def test_an_adapter_takes_part_only_if_asked(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path / "base"))
    plain = LMEmbedder(lm).embed(TEXTS)
    tuned = tmp_path / "adapter"
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    with quiet_peft():
        peft.get_peft_model(LocalLM.load(tmp_path / "base").network, config).save_pretrained(str(tuned))
    both = LocalLM.load(tmp_path / "base", adapter=tuned)
    np.testing.assert_allclose(LMEmbedder(both).embed(TEXTS), plain, atol=1e-5)
    assert np.abs(LMEmbedder(both, adapter=True).embed(TEXTS) - plain).max() > 0.01
    assert LMEmbedder(both).fingerprint == LMEmbedder(lm).fingerprint
    assert LMEmbedder(both, adapter=True).fingerprint != LMEmbedder(lm).fingerprint


def test_vectors_are_kept_on_disk_a_model_pooling_and_set_of_texts(tmp_path, caplog):
    lm = LocalLM.load(tiny_llama(tmp_path / "base"))
    cache = tmp_path / "cache"
    embedder = LMEmbedder(lm, cache=cache)
    found = embedder.embed(TEXTS)
    (file,) = cache.iterdir()
    embedder._compute = None  # from here on, only what is stored
    np.testing.assert_array_equal(embedder.embed(TEXTS[::-1]), found[::-1])
    other = LMEmbedder(LocalLM.load(tiny_llama(tmp_path / "other", seed=1)), cache=cache)
    assert np.abs(other.embed(TEXTS) - found).max() > 0.01
    LMEmbedder(lm, pooling="mean", cache=cache).embed(TEXTS)
    LMEmbedder(lm, cache=cache).embed(TEXTS[:2])
    assert len(list(cache.iterdir())) == 4
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(LMEmbedder(lm, cache=cache).embed(TEXTS), found)
    assert "is damaged" in caplog.text
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_bad_input_is_named(lm):
    with pytest.raises(ConfigError, match="pooling must be one of last, mean, not 'first'"):
        LMEmbedder(lm, pooling="first").embed(TEXTS)
    with pytest.raises(DataError, match="embed takes a list of texts"):
        LMEmbedder(lm).embed("Heat")
