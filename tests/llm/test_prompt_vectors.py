"""Learned prompts as extra rows of a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_files import MANIFEST, WEIGHTS, load_prompt, save_prompt
from frugalrec.llm.prompt_vectors import (
    TaskPrompt,
    add_prompt,
    learned_prompt,
    remove_prompt,
    token_embeddings,
)
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5

MAKERS = {"llama": tiny_llama, "qwen": tiny_qwen, "t5": tiny_t5}
TASKS = ("sequential", "top-n")
TEXT = "Films watched: Alien"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(params=list(MAKERS))
def lm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LocalLM:
    return loaded(folders[request.param])


def loaded(folder: Path, **options: Path) -> LocalLM:
    return LocalLM.load(folder, dtype="float32", device="cpu", **options)


def uniform(lm: LocalLM, bound: float = 1.0) -> TaskPrompt:
    return TaskPrompt.uniform(TASKS, 3, token_embeddings(lm).shape[1], seed=0, bound=bound)


def likelihood(lm: LocalLM, *texts: str) -> np.ndarray:
    found, _ = lm.loglikelihood(texts, [[" Heat", " Blade"]] * len(texts))
    return np.stack(found)


@pytest.mark.slow
def test_texts_without_the_tokens_read_as_before(lm: LocalLM) -> None:
    before = likelihood(lm, TEXT)
    prompt = uniform(lm)
    add_prompt(lm, prompt)
    np.testing.assert_array_equal(likelihood(lm, TEXT), before)
    remove_prompt(lm)
    np.testing.assert_array_equal(likelihood(lm, TEXT), before)
    assert learned_prompt(lm) is None


def test_vectors_equal_to_words_answer_as_the_words_do(lm: LocalLM) -> None:
    """The second oracle: a prompt made of three tokens' own embeddings is those three tokens."""
    words = lm.tokenizer("Yes No the", add_special_tokens=False).input_ids
    text = lm.tokenizer.decode(words)
    prompt = TaskPrompt.from_words(lm, {"sequential": text}, len(words))
    torch.testing.assert_close(prompt.weight[0], token_embeddings(lm)[words])
    worded = likelihood(lm, f"{text}{TEXT}")
    add_prompt(lm, prompt)
    np.testing.assert_allclose(likelihood(lm, f"{prompt.text('sequential')}{TEXT}"), worded, atol=1e-5)


def test_tasks_differ_and_batches_do_not_matter(lm: LocalLM) -> None:
    prompt = uniform(lm)
    add_prompt(lm, prompt)
    texts = [f"{prompt.text(task)}{TEXT}" for task in TASKS]
    both = likelihood(lm, *texts)
    assert np.abs(both[0] - both[1]).min() > 1e-4
    alone = np.concatenate([likelihood(lm, text) for text in texts])
    np.testing.assert_allclose(both, alone, atol=1e-5)


def test_a_shared_prefix_may_hold_the_vectors(folders: dict[str, Path]) -> None:
    lm = loaded(folders["llama"])
    prompt = uniform(lm)
    add_prompt(lm, prompt)
    group = PromptGroup(prefix=f"{prompt.text('top-n')}{TEXT} ", suffixes=("Heat? ", "Alien? ", "Blade? "))
    (shared,), usage = lm.choose([group], (" Yes", " No"))
    lm.share_prefix = False
    lm._scorer = None
    (whole,), more = lm.choose([group], (" Yes", " No"))
    np.testing.assert_allclose(shared, whole, atol=1e-5)
    assert usage.tokens_in < more.tokens_in


def test_only_the_vectors_in_the_text_get_gradients(lm: LocalLM) -> None:
    prompt = uniform(lm)
    add_prompt(lm, prompt)
    for parameter in lm.network.parameters():
        parameter.requires_grad_(False)
    prompt.weight.requires_grad_(True)
    ids = torch.tensor(lm.encode([prompt.text("top-n") + TEXT]))
    words = torch.where(ids < lm.tokenizer.vocab_size, ids, -100)
    lm.network(input_ids=ids, labels=words).loss.backward()
    gradient = prompt.weight.grad
    assert gradient is not None
    assert bool(gradient[1].abs().sum(dim=1).min() > 0)
    if not lm.is_encoder_decoder:
        assert not gradient[0].any()


@pytest.mark.slow
def test_save_and_load_give_identical_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        lm = loaded(folder)
        plain = lm.fingerprint
        prompt = uniform(lm)
        add_prompt(lm, prompt)
        text = prompt.text("sequential") + TEXT
        save_prompt(lm, tmp_path / name, {"rows": 3})
        again = loaded(folder, prompt=tmp_path / name)
        np.testing.assert_array_equal(likelihood(again, text), likelihood(lm, text))
        assert again.fingerprint == lm.fingerprint != plain


def test_what_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    lm = loaded(folders["llama"])
    with pytest.raises(ModelError, match="nothing to save"):
        save_prompt(lm, tmp_path / "p")
    add_prompt(lm, uniform(lm))
    save_prompt(lm, tmp_path / "p")
    with pytest.raises(ModelError, match="already"):
        add_prompt(lm, uniform(lm))
    with pytest.raises(ModelError, match="another one"):
        loaded(tiny_llama(tmp_path / "other", seed=1), prompt=tmp_path / "p")
    fresh = loaded(folders["llama"])
    fresh.tokenizer.add_tokens(["<more>"])
    with pytest.raises(ModelError, match="another vocabulary"):
        load_prompt(fresh, tmp_path / "p")
    with pytest.raises(ModelError, match="width 8"):
        add_prompt(fresh, TaskPrompt.uniform(TASKS, 3, 8, seed=0))
    fresh.adapter = tmp_path
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="no adapter"):
        load_prompt(fresh, tmp_path / "p")
    (tmp_path / "p" / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ModelError, match="differs from what was written"):
        loaded(folders["llama"], prompt=tmp_path / "p")
    (tmp_path / "p" / MANIFEST).write_text(json.dumps({"tasks": []}))
    with pytest.raises(ModelError, match="damaged"):
        loaded(folders["llama"], prompt=tmp_path / "p")
    with pytest.raises(ModelError, match="no learned prompt"):
        loaded(folders["llama"], prompt=tmp_path)


def test_starts(folders: dict[str, Path]) -> None:
    lm = loaded(folders["llama"])
    table = token_embeddings(lm)
    drawn = TaskPrompt.from_vocabulary(lm, TASKS, 4, seed=1)
    assert all(bool((table == row).all(dim=1).any()) for row in drawn.weight.flatten(0, 1))
    assert drawn.sha256 == TaskPrompt.from_vocabulary(lm, TASKS, 4, seed=1).sha256
    assert drawn.sha256 != TaskPrompt.from_vocabulary(lm, TASKS, 4, seed=2).sha256
    assert float(uniform(lm, bound=0.1).weight.detach().abs().max()) <= 0.1
    few = lm.tokenizer("the", add_special_tokens=False).input_ids
    stretched = TaskPrompt.from_words(lm, {"top-n": "the"}, 7)
    assert stretched.weight.shape == (1, 7, 32)
    assert len(few) < 7
    torch.testing.assert_close(stretched.weight[0, 0], table[few[0]])
    squeezed = TaskPrompt.from_words(lm, {"top-n": "the quick brown fox jumps"}, 1)
    ids = lm.tokenizer("the quick brown fox jumps", add_special_tokens=False).input_ids
    torch.testing.assert_close(squeezed.weight[0, 0], table[ids].mean(dim=0))
    with pytest.raises(ConfigError, match="no token"):
        TaskPrompt.from_words(lm, {"top-n": ""}, 2)
    with pytest.raises(ConfigError, match="different names"):
        TaskPrompt.uniform(("a b",), 1, 4, seed=0)
    with pytest.raises(ConfigError, match="cannot be"):
        TaskPrompt(("a",), torch.zeros(2, 3, 4))
    with pytest.raises(ConfigError, match="no prompt for the task"):
        drawn.text("other")
