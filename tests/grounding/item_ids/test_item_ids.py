"""The type, its files and its figures; random numbers; assembly of levels into unique ids."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.audit import ids as audit_ids
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.grounding.item_ids import ItemIds, base, catalogue_hash, digits, figures, random_numbers
from frugalrec.grounding.item_ids.assembly import assembled, working_order
from frugalrec.grounding.trie import TitleTrie


def names(n: int) -> np.ndarray:
    return np.array([f"B{i}" for i in range(n)])


def toy(codes: list[list[int]], symbols: int = 9) -> ItemIds:
    return ItemIds(
        kind="toy",
        seed=0,
        codes=np.array(codes, dtype=np.int32),
        symbols=tuple(f"<{i}>" for i in range(symbols)),
        collisions=0,
        catalogue=catalogue_hash(names(len(codes))),
    )


# ---- the type -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [base, digits])
def test_examples_in_docstrings_are_true(module):
    assert doctest.testmod(module).failed == 0


def test_lengths_sequences_and_text():
    ids = toy([[1, 2, 3], [4, -1, -1], [1, 3, -1]])
    assert ids.lengths.tolist() == [3, 1, 2]
    assert (ids.mean_length, ids.max_length, ids.n_items, ids.used_symbols) == (6 / 3, 3, 3, 4)
    assert ids.sequences(50) == [[51, 52, 53], [54], [51, 53]]
    assert ids.text(2) == "<1><3>"
    assert ids.prefix_free


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 2], [1, 2]], "2 items share their id"),
        ([[1, 2], [-1, -1]], "the id of item 1 is empty"),
        ([[-1, 2], [3, 3]], "the id of item 0 is empty or has a gap"),
        ([[1, -1, 2], [3, 3, 3]], "has a gap"),
        ([[1, 9]], "symbol 9 is used, but there are 9"),
    ],
)
def test_codes_that_are_no_ids_are_refused(codes, message):
    with pytest.raises(DataError, match=message):
        toy(codes)


@settings(max_examples=80, deadline=None)
@given(st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12))
def test_prefix_free_equals_a_loop(rows):
    rows = sorted(rows)
    ids = toy([[*row, *[-1] * (4 - len(row))] for row in rows])
    starts = any(a != b and b[: len(a)] == a for a in rows for b in rows)
    assert ids.prefix_free is not starts
    trie = TitleTrie.build(ids.sequences(7))
    assert trie.n_titles == ids.n_items and trie.longest == ids.max_length


def test_saved_ids_come_back(tmp_path):
    ids = replace(random_numbers(names(30), seed=3), evidence={"digits": 2, "é": [0.5]})
    ids.save(tmp_path / "ids")
    back = ItemIds.load(tmp_path / "ids", catalogue=ids.catalogue)
    np.testing.assert_array_equal(back.codes, ids.codes)
    for field in ("kind", "seed", "symbols", "collisions", "catalogue", "evidence", "fingerprint"):
        assert getattr(back, field) == getattr(ids, field)
    assert sorted(p.name for p in (tmp_path / "ids").iterdir()) == ["item_ids.json", "item_ids.npz"]


def test_ids_for_another_catalogue_are_refused(tmp_path):
    ids = random_numbers(names(30))
    ids.save(tmp_path)
    for other in (names(31), names(30)[::-1]):  # another item; the same items under other codes
        with pytest.raises(DataError, match="made for another catalogue"):
            ItemIds.load(tmp_path, catalogue=catalogue_hash(other))


def test_damaged_files_are_refused(tmp_path):
    ids = random_numbers(names(30))
    with pytest.raises(StorageError, match="holds no complete item ids"):
        ItemIds.load(tmp_path, catalogue=ids.catalogue)
    ids.save(tmp_path)
    other = random_numbers(names(30), seed=1)
    np.savez_compressed(tmp_path / "item_ids.npz", codes=other.codes)
    with pytest.raises(StorageError, match="their hash differs"):
        ItemIds.load(tmp_path, catalogue=ids.catalogue)
    (tmp_path / "item_ids.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(StorageError, match="holds no complete item ids"):
        ItemIds.load(tmp_path, catalogue=ids.catalogue)
    ids.save(tmp_path)
    facts = json.loads((tmp_path / "item_ids.json").read_text())
    (tmp_path / "item_ids.json").write_text(json.dumps({**facts, "symbols": facts["symbols"][::-1]}))
    with pytest.raises(StorageError, match="their hash differs"):
        ItemIds.load(tmp_path, catalogue=ids.catalogue)


def test_the_catalogue_hash_keeps_ids_apart():
    # Joined without lengths, all of these would read alike.
    hashes = {catalogue_hash(ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["abc", ""])}
    assert len(hashes) == 5
    assert catalogue_hash(["a", "b"]) == catalogue_hash(np.array(["a", "b"]))


def test_figures_are_one_row_a_kind():
    ids = toy([[1, 2, 3], [4, -1, -1]])
    table = figures([replace(ids, collisions=1), random_numbers(names(2000))])
    assert table["kind"].to_list() == ["toy", "random-numbers"]
    assert table["items"].to_list() == [2, 2000]
    assert table["mean_length"].to_list() == [2.0, 2.0]  # 1,999 has 4 digits: 2 pieces
    assert table["max_length"].to_list() == [3, 2]
    assert table["collision_share"].to_list() == [0.5, 0.0]
    assert table["symbols"].to_list() == [4, 100]


# ---- working order, and assembly ------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_the_working_order_follows_external_ids_not_codes(n, seed, shuffle):
    ids = names(n)
    codes = np.random.default_rng(shuffle).permutation(n)
    np.testing.assert_array_equal(
        ids[working_order(ids, "toy", seed)], ids[codes][working_order(ids[codes], "toy", seed)]
    )


def test_the_working_order_needs_ids_that_differ():
    for bad in (np.array([], dtype=np.str_), np.array(["a", "a"])):
        with pytest.raises(DataError, match="external ids that differ"):
            working_order(bad, "toy", 0)


LEVELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(LEVELS, st.integers(0, 3))
def test_every_item_gets_an_id_of_its_own(rows, seed):
    levels = np.array(rows)
    ids, order = names(len(rows)), working_order(names(len(rows)), "toy", seed)
    found = assembled("toy", levels, item_ids=ids, order=order, seed=seed, evidence={})
    texts = [found.text(item) for item in range(len(rows))]
    assert len(set(texts)) == len(rows) and found.prefix_free
    taken: dict[tuple[int, int], int] = {}
    for place, (a, b) in enumerate(rows):  # a loop that gives out numbers one by one
        number = taken.get((a, b), 0)
        taken[a, b] = number + 1
        last = f"<#{number}>" if rows.count((a, b)) > 1 else ""
        assert texts[order[place]] == f"<a_{a}><b_{b}>{last}"
    assert found.collisions == sum(rows.count(row) > 1 for row in rows)


def test_ways_of_different_lengths_get_their_number_where_they_end():
    levels = np.array([[0, -1], [0, -1], [1, 0], [1, 1]])
    found = assembled("toy", levels, item_ids=names(4), order=np.arange(4), seed=0, evidence={})
    assert [found.text(i) for i in range(4)] == ["<a_0><#0>", "<a_0><#1>", "<a_1><b_0>", "<a_1><b_1>"]
    assert found.symbols == ("<a_0>", "<a_1>", "<b_0>", "<b_1>", "<#0>", "<#1>")


# ---- random numbers -------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 4), st.integers(0, 3))
def test_random_numbers_are_all_numbers_once(n, piece, seed):
    ids = random_numbers(names(n), digits=piece, seed=seed)
    texts = [ids.text(item) for item in range(n)]
    assert sorted(map(int, texts)) == list(range(n))
    assert {len(text) for text in texts} == {ids.max_length * piece}
    assert ids.prefix_free


def test_random_numbers_depend_on_seed_and_external_id_alone():
    ids = names(50)
    codes = np.random.default_rng(1).permutation(50)
    first, other = random_numbers(ids), random_numbers(ids[codes])
    np.testing.assert_array_equal(other.codes, first.codes[codes])
    assert first.fingerprint == random_numbers(ids).fingerprint != random_numbers(ids, seed=1).fingerprint


def test_random_numbers_do_not_give_the_next_item_away():
    # 200 users with 6 new items each, numbered as they come: the largest + 1 is always the last item.
    rows = pl.DataFrame({"user": np.repeat(np.arange(200), 6), "item": np.arange(1200)})
    dataset = Dataset.from_frames(rows, name="leaky")
    published = dataset.item_ids.astype(np.int64)
    assert audit_ids.next_id_hits(dataset, published).all()
    ids = random_numbers(dataset.item_ids)
    numbers = np.array([int(ids.text(item)) for item in range(dataset.n_items)])
    # By chance one user in 1,200 or so.
    assert audit_ids.next_id_hits(dataset, numbers).sum() <= 2
    assert not audit_ids.above(int(audit_ids.next_id_hits(dataset, numbers).sum()), 0.2)


def test_digits_out_of_range_are_refused():
    for bad in (0, 5):
        with pytest.raises(ConfigError, match=f"digits={bad} must lie in 1..4"):
            random_numbers(names(3), digits=bad)
