"""Ids from co-occurrence: groups are found, held-out data are not seen, codes of items do not matter."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.item_ids import collaborative
from frugalrec.grounding.item_ids.cooccurrence import _together, spectral_vectors
from frugalrec.grounding.trie import TitleTrie

GROUPS, EACH = 4, 9


def clubs(seed: int = 0, data_seed: int = 0, lonely: int = 3) -> Dataset:
    """Users of four clubs who keep to their club's nine items, but for one in ten; some items nobody has."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(80):
        items = (user % GROUPS) * EACH + rng.permutation(EACH)[:6]
        strays = rng.random(6) < 0.1
        items[strays] = rng.integers(GROUPS * EACH, size=int(strays.sum()))
        rows += [(f"u{user}", f"i{item}") for item in items]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    catalogue = pl.DataFrame({"item": [f"i{item}" for item in range(GROUPS * EACH + lonely)]})
    return Dataset.from_frames(frame, catalogue, name="clubs", seed=data_seed)


def club_of(dataset: Dataset) -> np.ndarray:
    return np.array([int(name[1:]) // EACH for name in dataset.item_ids])


def test_items_of_a_club_share_the_beginning_of_their_ids():
    dataset = clubs(lonely=0)
    ids = collaborative(dataset, branches=4, leaf=3)
    first, clubs_ = ids.codes[:, 0], club_of(dataset)
    assert len(set(zip(first.tolist(), clubs_.tolist(), strict=True))) == GROUPS  # parts are clubs
    assert ids.evidence["together"] > 0.75 and ids.evidence["together_by_chance"] == 0.25
    assert ids.prefix_free and TitleTrie.build(ids.sequences()).n_titles == dataset.n_items


def test_items_that_nobody_has_get_ids_too():
    ids = collaborative(clubs(), branches=4, leaf=3)
    assert ids.n_items == GROUPS * EACH + 3
    assert len({ids.text(item) for item in range(ids.n_items)}) == ids.n_items
    assert np.bincount(ids.codes[:, 0], minlength=4).max() <= 10  # 39 items in 4 parts


@pytest.mark.parametrize("seed", range(3))
def test_other_held_out_items_change_nothing(seed):
    # The whole road, from files on: the rows are the same but for who has which held-out item.
    dataset = clubs()
    frame, texts = dataset.to_frames()
    parts = split(dataset, "leave-last-out")
    last = np.zeros(dataset.n, dtype=bool)
    last[dataset.indptr[1:] - 1] = last[dataset.indptr[1:] - 2] = True
    items = frame["item"].to_numpy().copy()
    items[last] = np.random.default_rng(seed).permutation(items[last])
    other = Dataset.from_frames(frame.with_columns(pl.Series("item", items)), texts, name="other")
    assert not np.array_equal(other.items, dataset.items)
    first = collaborative(parts.train, branches=4, leaf=3)
    again = collaborative(split(other, "leave-last-out").train, branches=4, leaf=3)
    assert first.fingerprint == again.fingerprint
    # The test can fail: the whole data set does hold the difference.
    assert collaborative(dataset, branches=4).fingerprint != collaborative(other, branches=4).fingerprint


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 1000), st.integers(0, 3))
def test_the_codes_of_items_do_not_matter(data_seed, seed):
    first, other = clubs(), clubs(data_seed=data_seed)
    ids = {
        dataset.item_ids[item]: found.text(item)
        for dataset, found in ((first, collaborative(first, branches=3, leaf=4, seed=seed)),)
        for item in range(dataset.n_items)
    }
    again = collaborative(other, branches=3, leaf=4, seed=seed)
    assert {other.item_ids[item]: again.text(item) for item in range(other.n_items)} == ids


def test_the_seed_matters_and_the_same_seed_gives_the_same():
    dataset = clubs()
    first = collaborative(dataset, branches=4, seed=1)
    assert first.fingerprint == collaborative(dataset, branches=4, seed=1).fingerprint
    assert first.fingerprint != collaborative(dataset, branches=4, seed=2).fingerprint


@pytest.mark.parametrize(("n", "branches", "leaf"), [(1, 2, 1), (2, 2, 1), (5, 8, 2), (7, 2, 1)])
def test_small_catalogues_and_deep_trees(n, branches, leaf):
    frame = pl.DataFrame({"user": ["u"] * n, "item": [f"i{i}" for i in range(n)]})
    ids = collaborative(Dataset.from_frames(frame, name="small"), branches=branches, leaf=leaf)
    assert ids.n_items == n and ids.prefix_free
    if leaf == 1:
        assert ids.collisions == 0  # parts of one item need no number
        assert ids.max_length == max(1, int(np.ceil(np.log2(n))))  # halves of halves


def test_users_with_one_item_each_say_nothing():
    frame = pl.DataFrame({"user": range(40), "item": range(40)})
    dataset = Dataset.from_frames(frame, name="singles")
    for train in (dataset, dataset.where(np.zeros(40, dtype=bool))):
        ids = collaborative(train, branches=4, leaf=5)
        assert np.bincount(ids.codes[:, 0]).tolist() == [10] * 4
        assert ids.evidence["together"] == 0


def test_what_cannot_be_is_refused():
    dataset = clubs()
    with pytest.raises(ConfigError, match="branches=1 must be at least 2"):
        collaborative(dataset, branches=1)
    with pytest.raises(ConfigError, match="leaf=0"):
        collaborative(dataset, leaf=0)
    frame, _ = dataset.to_frames()
    folded = Dataset.from_frames(frame.with_columns(pl.lit(2).alias("fold")), name="all test")
    with pytest.raises(DataError, match="all test holds 480 held-out interactions"):
        collaborative(folded)


def test_exact_and_iterated_vectors_span_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    weights = (rng.random((60, 60)) < 0.05) + np.kron(np.eye(4), np.ones((15, 15)))
    graph = sp.csr_array((weights + weights.T) * (1 - np.eye(60)))
    exact = spectral_vectors(graph, 4, np.random.default_rng(1))
    monkeypatch.setattr("frugalrec.grounding.item_ids.cooccurrence.DENSE", 0)
    iterated = spectral_vectors(graph, 4, np.random.default_rng(1))
    # Rotated against each other, so products agree where vectors do not.
    np.testing.assert_allclose(exact @ exact.T, iterated @ iterated.T, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(exact, axis=1), 1)


def test_together_equals_a_loop():
    rng = np.random.default_rng(0)
    graph = sp.csr_array(np.triu(rng.integers(0, 3, size=(12, 12)), 1).astype(float))
    parts = rng.integers(3, size=12)
    dense = graph.toarray()
    inside = sum(dense[i, j] for i in range(12) for j in range(12) if parts[i] == parts[j])
    found = _together(graph, parts)
    assert found["together"] == pytest.approx(inside / dense.sum(), abs=1e-6)
    assert found["together_by_chance"] == pytest.approx(
        sum(((parts == p).sum() / 12) ** 2 for p in range(3)), abs=1e-6
    )
