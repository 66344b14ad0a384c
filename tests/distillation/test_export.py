"""Learned prompts as rows of a plain model's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from frugalrec.distillation.export import export_model
from frugalrec.errors import ModelError, StorageError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt, token_embeddings
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5, tiny_tokenizer

TASKS = ("sequential", "top-n")
TEXT = "Films watched: Alien (1979), Heat (1995)"


def padded_t5(folder: Path) -> Path:
    """T5 as it is published: tied, scaled logits, and more rows than its tokenizer has tokens."""
    config = transformers.T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return written(transformers.T5ForConditionalGeneration, config, folder)


def tiny_gemma(folder: Path) -> Path:
    """A network that scales what it looks up."""
    config = transformers.GemmaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return written(transformers.GemmaForCausalLM, config, folder)


def biased_phi(folder: Path) -> Path:
    """A network whose output layer has biases."""
    config = transformers.PhiConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return written(transformers.PhiForCausalLM, config, folder)


def written(kind: Any, config: Any, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


MAKERS = {
    "llama": tiny_llama,
    "qwen": tiny_qwen,
    "t5": tiny_t5,
    "padded t5": padded_t5,
    "gemma": tiny_gemma,
    "phi": biased_phi,
}


def prompted(folder: Path, n: int = 3) -> tuple[LocalLM, TaskPrompt]:
    lm = LocalLM.load(folder, dtype="float32", device="cpu")
    prompt = TaskPrompt.uniform(TASKS, n, token_embeddings(lm).shape[1], seed=1, bound=2.0)
    add_prompt(lm, prompt)
    return lm, prompt


def plain(folder: Path) -> tuple[Any, Any]:
    """What anybody would write."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    return kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MAKERS))
def test_plain_transformers_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    lm, prompt = prompted(MAKERS[name](tmp_path / "model"))
    before = {key: value.clone() for key, value in lm.network.state_dict().items()}
    old = lm.network.get_output_embeddings().weight.shape[0]
    assert export_model(lm, tmp_path / "out") < 1e-4
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".jinja"}
    network, tokenizer = plain(tmp_path / "out")
    start = {"decoder_input_ids": torch.tensor([[0]])} if lm.is_encoder_decoder else {}
    for text in (TEXT, *(prompt.text(task) + TEXT for task in TASKS)):
        ids = tokenizer(text).input_ids
        assert ids == lm.tokenizer(text).input_ids
        with torch.no_grad():
            own, other = (
                model(input_ids=torch.tensor([ids]), **start).logits for model in (lm.network, network)
            )
        torch.testing.assert_close(other[..., :old], own, atol=1e-4, rtol=1e-4)
    for key, value in lm.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    again = LocalLM.load(tmp_path / "out", dtype="float32", device="cpu")
    group = PromptGroup(prefix=prompt.text("top-n"), suffixes=(TEXT, "Heat?"))
    odds = [
        pair[:, 0] - pair[:, 1] for model in (lm, again) for pair in model.choose([group], (" Yes", " No"))[0]
    ]
    np.testing.assert_allclose(odds[0], odds[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MAKERS))
def test_the_new_tokens_are_never_written(name: str, tmp_path: Path) -> None:
    lm, prompt = prompted(MAKERS[name](tmp_path / "model"))
    new = set(lm.tokenizer.convert_tokens_to_ids(prompt.tokens))
    export_model(lm, tmp_path / "out")
    network, tokenizer = plain(tmp_path / "out")
    ids = torch.tensor([tokenizer(prompt.text("top-n") + TEXT).input_ids])
    torch.manual_seed(0)
    for options in (
        {"do_sample": False},
        {"do_sample": True, "temperature": 50.0, "num_return_sequences": 20},
    ):
        written = network.generate(ids, max_new_tokens=20, top_k=0, **options)
        fresh = written if lm.is_encoder_decoder else written[:, ids.shape[1] :]
        assert not new & set(fresh.flatten().tolist())
    if max(new) >= lm.network.get_output_embeddings().weight.shape[0]:
        with torch.no_grad():
            start = {"decoder_input_ids": torch.tensor([[0]])} if lm.is_encoder_decoder else {}
            logits = network(input_ids=ids, **start).logits
        # Without `generate`, as other servers read the folder: an old token is always at least as likely.
        best = logits[..., : min(new)].max(dim=-1).values
        assert bool((best[..., None] >= logits[..., min(new) :]).all())


@pytest.mark.slow
def test_an_adapter_is_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs frugalrec[llm]")
    from frugalrec.testing.tiny_models import tiny_llama as make
    from frugalrec.tuning import PointwiseConfig, PointwiseTuner, TrainingRow

    base = LocalLM.load(make(tmp_path / "model"), dtype="float32", device="cpu")
    rows = [TrainingRow(prompt=f"{TEXT} {n}? Answer:", label=bool(n % 2)) for n in range(4)]
    adapter = PointwiseTuner(PointwiseConfig(epochs=1, learning_rate=0.05)).tune(
        base, rows, None, tmp_path / "a"
    )
    lm = LocalLM.load(tmp_path / "model", adapter=adapter.path, dtype="float32", device="cpu")
    prompt = TaskPrompt.uniform(TASKS, 3, 32, seed=1)
    add_prompt(lm, prompt)
    export_model(lm, tmp_path / "out")
    again = LocalLM.load(tmp_path / "out", dtype="float32", device="cpu")
    text = [prompt.text("sequential") + TEXT]
    found = [model.loglikelihood(text, [[" Yes", " No"]])[0][0] for model in (lm, again, base)]
    # Log-odds: the new tokens take a little probability from the old ones.
    np.testing.assert_allclose(np.diff(found[0]), np.diff(found[1]), atol=1e-4)
    assert hasattr(lm.network, "merge_and_unload")


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    lm, _ = prompted(tiny_llama(tmp_path / "model"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(StorageError, match="holds other files"):
        export_model(lm, tmp_path / "out")
    bare = LocalLM.load(tmp_path / "model", dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="no prompt vectors"):
        export_model(bare, tmp_path / "other")
