"""Keys and values before a text: as read, shortened, taken away, written and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from frugalrec.errors import ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.kv_prefix import (
    KVPrefix,
    add_kv_prefix,
    kv_prefix,
    remove_kv_prefix,
    save_kv_prefix,
    shared_tokens,
)
from frugalrec.llm.local import LocalLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5

BEGINNING = "Films watched: Alien (1979), Heat (1995)."
GROUPS = [
    PromptGroup(prefix=BEGINNING, suffixes=(" Blade Runner?", " The Matrix (1999)?")),
    PromptGroup(prefix=BEGINNING, suffixes=(" the quick brown fox jumps over the lazy dog?",)),
]


@pytest.fixture(scope="module", params=["llama", "qwen"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"llama": tiny_llama, "qwen": tiny_qwen}[request.param]
    return make(tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture
def lm(folder: Path) -> LocalLM:
    return LocalLM.load(folder, dtype="float32", device="cpu")


def beginning(lm: LocalLM) -> list[int]:
    texts = [group.prefix + suffix for group in GROUPS for suffix in group.suffixes]
    return shared_tokens(lm.encode(texts))


def answers(lm: LocalLM) -> np.ndarray:
    found, _ = lm.choose(GROUPS, (" Yes", " No"))
    return np.concatenate(found)


def test_a_prefix_as_it_was_read_changes_nothing_but_the_tokens(lm: LocalLM) -> None:
    """It is an exact prompt cache, in batches, alone, and for completions."""
    texts = [group.prefix + suffix for group in GROUPS for suffix in group.suffixes]
    wanted, (said, _), (_, before) = (
        answers(lm),
        lm.generate(texts, max_new_tokens=4),
        lm.choose(GROUPS, (" Yes", " No")),
    )
    add_kv_prefix(lm, KVPrefix.read(lm, beginning(lm)))
    np.testing.assert_allclose(answers(lm), wanted, atol=2e-5)
    (found, _), (_, after) = lm.generate(texts, max_new_tokens=4), lm.choose(GROUPS, (" Yes", " No"))
    assert [one.text for one in found] == [one.text for one in said]
    assert after.tokens_in < before.tokens_in
    remove_kv_prefix(lm)
    assert kv_prefix(lm) is None
    np.testing.assert_array_equal(answers(lm), wanted)


def test_shortened_keeps_the_first_or_the_means(lm: LocalLM) -> None:
    whole = KVPrefix.read(lm, beginning(lm))
    length = whole.keys.shape[2]
    first, pooled = whole.shortened(3, "first"), whole.shortened(3, "pooled")
    torch.testing.assert_close(first.keys, whole.keys[:, :, :3])
    torch.testing.assert_close(first.values, whole.values[:, :, :3])
    half = 1 + (length - 1) // 2  # the first position stays alone
    for part, span in enumerate((slice(0, 1), slice(1, half), slice(half, length))):
        torch.testing.assert_close(pooled.values[:, :, part], whole.values[:, :, span].mean(dim=2))
    same = whole.shortened(length, "pooled")
    torch.testing.assert_close(same.values, whole.values)


def test_written_and_read_again_it_answers_alike(lm: LocalLM, folder: Path, tmp_path: Path) -> None:
    add_kv_prefix(lm, KVPrefix.read(lm, beginning(lm)).shortened(4))
    save_kv_prefix(lm, tmp_path / "prefix")
    again = LocalLM.load(folder, prompt=tmp_path / "prefix", dtype="float32", device="cpu")
    np.testing.assert_array_equal(answers(again), answers(lm))
    assert again.fingerprint == lm.fingerprint


def test_what_cannot_be_is_refused(lm: LocalLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        save_kv_prefix(lm, tmp_path)
    with pytest.raises(ModelError):
        remove_kv_prefix(lm)
    t5 = LocalLM.load(tiny_t5(tmp_path / "t5"), dtype="float32", device="cpu")
    with pytest.raises(ModelError):
        KVPrefix.read(t5, [5, 6, 7])
