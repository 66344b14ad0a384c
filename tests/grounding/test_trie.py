import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.errors import DataError, ModelError
from frugalrec.grounding import trie as module
from frugalrec.grounding.trie import TitleTrie, title_trie
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=25)


def paths(trie):
    """Node -> the tokens on its way, walked from the root."""
    found = {0: ()}
    for node in range(trie.n_nodes):
        for child in range(trie.first[node], trie.first[node + 1]):
            found[child] = (*found[node], int(trie.token[child]))
    return found


@given(SEQUENCES)
def test_nodes_are_the_starts_of_all_titles(sequences):
    trie, titles = TitleTrie.build(sequences), sorted(set(map(tuple, sequences)))
    starts = {title[:n] for title in titles for n in range(len(title) + 1)}
    found = paths(trie)
    assert len(found) == trie.n_nodes == len(starts)
    assert set(found.values()) == starts
    assert trie.longest == max(map(len, titles))
    for node, path in found.items():
        assert trie.depth[node] == len(path)
        assert trie.title[node] == (titles.index(path) if path in titles else -1)
        assert list(range(*trie.below[node])) == [
            number for number, title in enumerate(titles) if title[: len(path)] == path
        ]


@given(SEQUENCES)
def test_items_stay_apart_though_their_titles_are_the_same(sequences):
    trie, titles = TitleTrie.build(sequences), sorted(set(map(tuple, sequences)))
    assert trie.n_titles == len(titles) and trie.n_items == len(sequences)
    for number, title in enumerate(titles):
        assert trie.items_of(number) == [i for i, s in enumerate(sequences) if tuple(s) == title]
        assert tuple(trie.path[trie.path_indptr[number] : trie.path_indptr[number + 1]]) == title


@pytest.mark.slow
@given(SEQUENCES, st.integers(0, 9))
def test_values_of_titles_and_nodes_are_the_highest_below(sequences, seed):
    trie = TitleTrie.build(sequences)
    values = np.random.default_rng(seed).normal(size=(3, len(sequences))).astype(np.float32)
    values[1, ::2] = -np.inf
    of_titles = trie.title_values(values)
    of_nodes = trie.node_values(of_titles)
    for title in range(trie.n_titles):
        np.testing.assert_array_equal(of_titles[:, title], values[:, trie.items_of(title)].max(axis=1))
    for node, (low, high) in enumerate(trie.below):
        np.testing.assert_array_equal(of_nodes[:, node], of_titles[:, low:high].max(axis=1))


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(sequences, random):
    order = list(range(len(sequences)))
    random.shuffle(order)
    one, other = TitleTrie.build(sequences), TitleTrie.build([sequences[i] for i in order])
    for name in ("first", "token", "depth", "title", "below", "path", "path_indptr", "item_indptr"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for title in range(one.n_titles):
        assert one.items_of(title) == sorted(order[i] for i in other.items_of(title))


@pytest.mark.parametrize(("sequences", "said"), [([], "no items"), ([[1], []], "item 1 has none")])
def test_a_catalogue_without_titles_is_refused(sequences, said):
    with pytest.raises(DataError, match=said):
        TitleTrie.build(sequences)


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_paths_are_the_tokens_that_training_reads(make, tmp_path):
    from frugalrec.llm.next_title import fitted

    lm, prompt = LocalLM.load(make(tmp_path)), NextTitlePrompt(noun="film")
    titles = ["Alien (1979)", "Heat", "Alien (1979)", "Alien: the film"]
    trie = title_trie(lm, prompt, titles)
    assert trie.n_titles == 3
    for number in range(trie.n_titles):
        item = trie.items_of(number)[0]
        query = fitted(lm, prompt, ["Heat", "Blade Runner"], titles[item], 500)
        path = trie.path[trie.path_indptr[number] : trie.path_indptr[number + 1]]
        np.testing.assert_array_equal(path, query.targets[:, 0])


def test_items_without_a_title_are_not_in_the_trie(tmp_path):
    lm, prompt = LocalLM.load(tiny_llama(tmp_path)), NextTitlePrompt(noun="film")
    trie = title_trie(lm, prompt, ["", "Heat", " ", "Alien", "\u200b", "Heat"])
    assert trie.n_titles == 2 and trie.n_items == 3
    assert sorted(map(trie.items_of, range(2))) == [[1, 5], [3]]
    values = np.array([[9, 1, 9, 2, 9, 3]], dtype=np.float32)
    assert sorted(trie.title_values(values)[0].tolist()) == [2, 3]
    with pytest.raises(DataError, match="item 7 has none"):
        TitleTrie.build([[1], []], [4, 7])


def test_a_prompt_that_merges_with_its_answers_is_refused(tmp_path):
    class Glued(NextTitlePrompt):
        def question(self, history):
            return "The quick bro"

        def answer(self, title):
            return "wn fox"

    with pytest.raises(ModelError, match="does not split 'he quick bro' and 'wn fox'"):
        title_trie(LocalLM.load(tiny_llama(tmp_path)), Glued(noun="film"), ["Heat"])


def test_the_example_in_the_docstring():
    assert doctest.testmod(module).failed == 0
