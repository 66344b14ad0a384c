"""Titles as ids: the model's own tokens, and what tells equal titles apart."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs frugalrec[llm]")

from frugalrec.errors import DataError, ModelError  # noqa: E402
from frugalrec.grounding.item_ids import title_tokens, titles  # noqa: E402
from frugalrec.grounding.trie import TitleTrie, title_trie  # noqa: E402
from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.llm.next_title import NextTitlePrompt  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5  # noqa: E402

PROMPT = NextTitlePrompt(noun="film")


@pytest.fixture(scope="module", params=[tiny_llama, tiny_t5])
def lm(request, tmp_path_factory) -> LocalLM:
    return LocalLM.load(request.param(tmp_path_factory.mktemp("lm")))


def names(n: int) -> np.ndarray:
    return np.array([f"B{i}" for i in range(n)])


def read_back(lm: LocalLM, ids, item: int) -> str:
    return lm.tokenizer.decode(ids.sequences()[item], skip_special_tokens=True).strip()


def test_different_titles_are_the_trie_as_it_was(lm):
    texts = ["Alien (1979)", "Heat (1995)", "Blade Runner (1982)", "Heat"]
    ids = titles(lm, PROMPT, texts, names(4))
    ours, theirs = TitleTrie.build(ids.sequences()), title_trie(lm, PROMPT, texts)
    for field in ("first", "token", "path", "items"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert (ids.collisions, ids.evidence["untitled"]) == (0, 0)
    assert [read_back(lm, ids, item) for item in range(4)] == texts
    assert ids.prefix_free  # the end-of-text token sees to it
    assert len(ids.symbols) == len(lm.tokenizer)


def test_equal_titles_are_numbered_and_missing_ones_named(lm):
    texts = ["Heat", "Heat", None, "Heat (2)", " \u200b", "Heat", "Alien"]
    ids = titles(lm, PROMPT, texts, names(7), seed=1)
    found = sorted(read_back(lm, ids, item) for item in range(7))
    assert found == ["Alien", "Heat", "Heat (2)", "Heat (3)", "Heat (4)", "Untitled", "Untitled (2)"]
    assert read_back(lm, ids, 3) == "Heat (2)"  # a title of its own keeps it
    assert (ids.collisions, ids.evidence["untitled"]) == (5, 2)  # three of Heat, two without a title


def test_the_codes_of_items_do_not_matter(lm):
    texts = np.array(["Heat", "Heat", "Alien", "Heat", "", "Alien"])
    order = np.random.default_rng(0).permutation(6)
    first = titles(lm, PROMPT, texts.tolist(), names(6))
    other = titles(lm, PROMPT, texts[order].tolist(), names(6)[order])
    assert [other.sequences()[i] for i in range(6)] == [first.sequences()[i] for i in order]


def test_a_tokenizer_that_cannot_tell_numbers_apart_is_blamed(lm, monkeypatch):
    monkeypatch.setattr(title_tokens, "answer_tokens", lambda lm, question, answers: [[5]] * len(answers))
    with pytest.raises(ModelError, match="reads titles alike"):
        titles(lm, PROMPT, ["a", "b"], names(2))


def test_a_title_is_needed_for_each_item(lm):
    with pytest.raises(DataError, match="2 titles for 3 items"):
        titles(lm, PROMPT, ["a", "b"], names(3))
