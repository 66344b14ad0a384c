"""Ids from text vectors: k-means and the autoencoder; neighbours, uniqueness, seeds and codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.item_ids import semantic, semantic_rqvae
from frugalrec.grounding.trie import TitleTrie


def names(n: int) -> np.ndarray:
    return np.array([f"B{i}" for i in range(n)])


def groups(n: int = 80, kinds: int = 4, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around a few centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(kinds, size=n)
    centres = rng.normal(scale=3, size=(kinds, d))
    return centres[kind] + rng.normal(scale=0.3, size=(n, d)), kind


def rqvae(vectors, ids, **options):
    return semantic_rqvae(vectors, ids, **{"width": 4, "epochs": 3, **options})


MAKERS = [semantic, rqvae]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 3))
def test_items_with_the_same_text_get_different_ids(rows, seed):
    ids = semantic(np.array(rows, dtype=float), names(len(rows)), levels=2, size=4, seed=seed)
    texts = [ids.text(item) for item in range(len(rows))]
    assert len(set(texts)) == len(rows) and ids.prefix_free
    same = {row: {texts[i].partition("<#")[0] for i, r in enumerate(rows) if r == row} for row in rows}
    assert all(len(starts) == 1 for starts in same.values())  # equal texts share all but the number
    assert TitleTrie.build(ids.sequences(3)).n_titles == len(rows)


def test_similar_texts_share_the_first_symbol():
    vectors, kind = groups()
    ids = semantic(vectors, names(80), levels=2, size=4, seed=0)
    assert len(set(zip(ids.codes[:, 0].tolist(), kind.tolist(), strict=True))) == 4
    assert TitleTrie.build(ids.sequences()).n_titles == 80


@pytest.mark.slow
def test_a_trained_autoencoder_puts_similar_texts_together():
    vectors, kind = groups()
    ids = rqvae(vectors, names(80), levels=2, size=4, epochs=60)
    pairs = np.array([[a == b for b in ids.codes[:, 0]] for a in ids.codes[:, 0]])
    alike = kind[:, None] == kind[None, :]
    assert pairs[alike].mean() > 0.8 and pairs[~alike].mean() < 0.4
    assert TitleTrie.build(ids.sequences()).n_titles == 80


@pytest.mark.parametrize("make", MAKERS)
def test_the_codes_of_items_do_not_matter(make):
    vectors, _ = groups()
    order = np.random.default_rng(5).permutation(80)
    first = make(vectors, names(80), levels=2, size=6, seed=2)
    other = make(vectors[order], names(80)[order], levels=2, size=6, seed=2)
    assert [other.text(i) for i in range(80)] == [first.text(i) for i in order]
    assert first.collisions == other.collisions


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_seed_gives_the_same_ids_whatever_was_drawn_before(make):
    torch = pytest.importorskip("torch")
    vectors, _ = groups()
    first = make(vectors, names(80), levels=2, size=6, seed=2)
    torch.rand(3)
    state = torch.random.get_rng_state()
    again = make(vectors, names(80), levels=2, size=6, seed=2)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)  # nor does it touch the caller's draws
    assert make(vectors, names(80), levels=2, size=6, seed=3).fingerprint != first.fingerprint


def test_evidence_says_what_is_left():
    vectors, _ = groups()
    ids = semantic(vectors, names(80), levels=3, size=4)
    left = ids.evidence["unexplained"]
    assert len(left) == 3 and left[0] > left[1] > left[2] > 0
    one = semantic(vectors, names(80), levels=1, size=4)
    assert one.evidence["unexplained"] == left[:1]


@pytest.mark.parametrize("make", MAKERS)
def test_what_cannot_be_is_refused(make):
    vectors, _ = groups()
    with pytest.raises(DataError, match=r"79 items need vectors \(79, d\), not \(80, 12\)"):
        make(vectors, names(79))
    vectors[3, 2] = np.nan
    with pytest.raises(DataError, match="the vector of item 3 holds NaN"):
        make(vectors, names(80))
    for options in ({"levels": 0}, {"levels": 26}, {"size": 1}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
            make(vectors, names(80), **options)


@pytest.mark.parametrize("make", MAKERS)
def test_one_item_and_equal_items(make):
    assert make(np.ones((1, 3)), names(1)).n_items == 1
    ids = make(np.ones((5, 3)), names(5))
    assert ids.collisions == 5 and len({ids.text(i) for i in range(5)}) == 5
