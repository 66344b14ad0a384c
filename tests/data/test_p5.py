"""P5/POD folders: sequences, maps, fixed negatives and explanations without those of held-out pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.audit import audit
from frugalrec.data.dataset import NUMBER
from frugalrec.data.readers import detect, read
from frugalrec.data.readers.p5 import read_explanations, read_negatives
from frugalrec.data.splits import split
from frugalrec.errors import DataError, LeakError

SEQUENCES = {1: [1, 2, 3], 2: [4, 1, 5, 6], 3: [2, 6, 1]}
NEGATIVES = {1: [4, 6], 2: [2, 3, 7], 3: [3, 7]}
PAIRS = {
    # Held out by leave-last-out: (1, 2), (2, 5), (3, 6) for validation and (1, 3), (2, 6), (3, 1) for test.
    "train": [(1, 1), (1, 2), (1, 3), (2, 4), (3, 6)],
    "val": [(2, 1), (2, 5), (2, 6)],
    "test": [(3, 1), (3, 2)],
}


def lines(rows: dict[int, list[int]], users=str, items=str) -> str:
    return "".join(f"{users(user)} {' '.join(items(item) for item in row)}\n" for user, row in rows.items())


def folder(path: Path, *, maps: bool = True, user=lambda u: u, item=lambda i: i) -> Path:
    """A folder of the layout; `user` and `item` renumber it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "sequential.txt").write_text(lines(SEQUENCES, lambda u: str(user(u)), lambda i: str(item(i))))
    (path / "negative.txt").write_text(lines(NEGATIVES, lambda u: str(user(u)), lambda i: str(item(i))))
    records = {
        fold: [
            {"user": user(u), "item": item(i), "explanation": f"{fold} of {u} and {i}", "feature": "smell"}
            for u, i in pairs
        ]
        for fold, pairs in PAIRS.items()
    }
    (path / "explanation.json").write_text(json.dumps(records))
    if maps:
        table = {
            "id2user": {str(user(u)): f"R{u}X" for u in SEQUENCES},
            "id2item": {str(item(i)): f"B{i}Z" for i in range(1, 9)},
        }
        (path / "datamaps.json").write_text(json.dumps(table))
    return path


def events(dataset) -> list[tuple]:
    return dataset.to_frames()[0].sort("user", maintain_order=True).rows()


# ---- sequences and maps ---------------------------------------------------------------------------


def test_maps_give_the_ids_and_the_catalogue(tmp_path):
    path = folder(tmp_path / "p")
    assert detect(path) == "p5"
    dataset = read(path)
    assert events(dataset) == [(f"R{user}X", f"B{item}Z") for user, row in SEQUENCES.items() for item in row]
    assert sorted(dataset.item_ids) == [f"B{i}Z" for i in range(1, 9)]  # items 7 and 8 never occur
    numbers = dict(zip(dataset.item_ids, dataset.item_text[NUMBER], strict=True))
    assert numbers == {f"B{i}Z": str(i) for i in range(1, 9)}
    assert dataset.item_text["title"].null_count() == 8


def test_without_maps_numbers_are_the_ids(tmp_path):
    dataset = read(folder(tmp_path / "p", maps=False))
    assert events(dataset) == [(str(user), str(item)) for user, row in SEQUENCES.items() for item in row]
    assert NUMBER not in dataset.item_text.columns


@pytest.mark.parametrize("name", ["sequential_data.txt", "Beauty.txt"])
def test_sequences_under_other_names(tmp_path, name):
    path = folder(tmp_path / "p")
    expected = read(path, name="p")
    (path / "sequential.txt").rename(path / name)
    assert read(path, "p5", name="p").fingerprint == expected.fingerprint
    assert read(path / name, "p5", name="p").fingerprint == expected.fingerprint
    assert detect(path) == "p5"


@pytest.mark.parametrize("key", [lambda i: i, lambda i: f"B{i}Z"])
def test_titles_are_found_by_number_or_by_id(tmp_path, key):
    path = folder(tmp_path / "p")
    rows = [{"item_id": key(i), "title": f"Soap {i}", "price": i} for i in (1, 2, 5)]
    (path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read(path)
    found = {item: title for item, title in dataset.item_text.select("item", "title").iter_rows() if title}
    assert found == {"B1Z": "Soap 1", "B2Z": "Soap 2", "B5Z": "Soap 5"}
    assert dataset.item_text["price"].drop_nulls().sum() == 1 + 2 + 5


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = folder(tmp_path / "p")
    (path / "sequential.txt").write_text("1 1 2 99\n")
    with pytest.raises(DataError, match=r"item '99' is not among the 8 of datamaps.json; 1 such"):
        read(path)
    (path / "datamaps.json").write_text('{"id2user": {"1": "a"}, "id2item": {"1": "x", "2": "x"}}')
    with pytest.raises(DataError, match="'id2item' gives two numbers the same id"):
        read(path)
    (path / "datamaps.json").write_text('{"id2user": {"1": "a"}}')
    with pytest.raises(DataError, match="expected 'id2item'"):
        read(path)
    (path / "datamaps.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON object, not list"):
        read(path)
    (path / "datamaps.json").write_text('{"id')
    with pytest.raises(DataError, match="not JSON"):
        read(path)
    (path / "sequential.txt").unlink()
    with pytest.raises(DataError, match=r"expected one sequential.txt, found none"):
        read(path, "p5")


def test_an_items_file_that_lists_an_item_twice_is_refused(tmp_path):
    path = folder(tmp_path / "p")
    (path / "items.jsonl").write_text('{"item_id": 1, "title": "a"}\n{"item_id": 1, "title": "b"}\n')
    with pytest.raises(DataError, match="lists item '1' more than once"):
        read(path)


# ---- negatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("maps", [True, False])
def test_negatives_are_item_codes_by_user(tmp_path, maps):
    if not maps:  # an item that only negatives name must be in the data
        SEQ = {**SEQUENCES, 4: [7]}
        path = folder(tmp_path / "p", maps=False)
        (path / "sequential.txt").write_text(lines(SEQ))
    else:
        path = folder(tmp_path / "p")
    dataset = read(path)
    found = read_negatives(path, dataset)
    assert found.shape == (dataset.n_users, 3) and found.dtype == np.int32
    for user, negatives in NEGATIVES.items():
        row = found[dataset.user_ids.tolist().index(f"R{user}X" if maps else str(user))]
        ids = [dataset.item_ids[code] for code in row if code >= 0]
        assert ids == [f"B{i}Z" if maps else str(i) for i in negatives]
        assert (row[len(negatives) :] == -1).all()


def test_reading_negatives_twice_gives_the_same(tmp_path):
    path = folder(tmp_path / "p")
    dataset = read(path)
    first = read_negatives(path, dataset)
    kept = first.copy()
    first[:] = 0  # what a caller does to its array stays there
    np.testing.assert_array_equal(read_negatives(path / "negative.txt", dataset), kept)


def test_negatives_that_are_none_are_refused(tmp_path):
    path = folder(tmp_path / "p")
    dataset = read(path)
    (path / "negative.txt").write_text("1 4 3\n2 6 2\n")  # 3 and 6 are the users' own test items
    with pytest.raises(
        DataError, match="2 negatives are items of their user's own sequence, the first user 1"
    ):
        read_negatives(path, dataset)
    (path / "negative.txt").write_text("1 4 77\n")
    with pytest.raises(DataError, match="item '77' is not among"):
        read_negatives(path, dataset)
    (path / "datamaps.json").unlink()
    with pytest.raises(DataError, match="the data have no user '1'"):
        read_negatives(path, dataset)
    (path / "negative.txt").unlink()
    with pytest.raises(DataError, match="no negative.txt"):
        read_negatives(path, dataset)


# ---- explanations ---------------------------------------------------------------------------------


def told(rows, dataset) -> list[tuple[str, str, str]]:
    return [
        (dataset.user_ids[user], dataset.item_ids[item], text)
        for user, item, text in zip(rows.users, rows.items, rows.texts, strict=True)
    ]


def test_explanations_of_held_out_pairs_are_dropped_and_counted(tmp_path):
    path = folder(tmp_path / "p")
    dataset = read(path)
    found = read_explanations(path, split(dataset, "leave-last-out"))
    assert {fold: (len(rows), rows.dropped) for fold, rows in found.items()} == {
        "train": (2, 3),  # (1, 2) and (3, 6) are validation pairs, (1, 3) is a test pair
        "valid": (2, 1),  # (2, 6) is a test pair; (2, 5) is only held out for validation itself
        "test": (2, 0),
    }
    assert told(found["train"], dataset) == [
        ("R1X", "B1Z", "train of 1 and 1"),
        ("R2X", "B4Z", "train of 2 and 4"),
    ]
    assert [text for *_, text in told(found["valid"], dataset)] == ["val of 2 and 1", "val of 2 and 5"]
    assert found["train"].features == ("smell", "smell")


def test_damaged_explanations_are_refused(tmp_path):
    path = folder(tmp_path / "p")
    parts = split(read(path), "leave-last-out")
    file = path / "explanation.json"
    file.write_text('{"train": [], "val": []}')
    with pytest.raises(DataError, match="no list of 'test' records"):
        read_explanations(path, parts)
    file.write_text('{"train": [{"user": 1, "item": 1}], "val": [], "test": []}')
    with pytest.raises(DataError, match="train record 1: expected user, item and explanation"):
        read_explanations(path, parts)
    file.write_text('{"train": [{"user": 9, "item": 1, "explanation": ""}], "val": [], "test": []}')
    with pytest.raises(DataError, match="user '9' is not among the 3"):
        read_explanations(file, parts)
    file.rename(path / "explanation.pickle")
    with pytest.raises(DataError, match="A pickle is not read"):
        read_explanations(path, parts)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(1, 4)), st.permutations(range(1, 9)))
def test_renumbering_all_files_alike_changes_only_the_numbers(tmp_path_factory, users, items):
    root = tmp_path_factory.mktemp("numbers")
    plain = folder(root / "a")
    other = folder(root / "b", user=lambda u: users[u - 1], item=lambda i: items[i - 1])
    data, again = read(plain), read(other)
    for part in ("indptr", "items", "user_ids", "item_ids"):
        assert np.array_equal(getattr(data, part), getattr(again, part))
    np.testing.assert_array_equal(read_negatives(plain, data), read_negatives(other, again))
    first = read_explanations(plain, split(data, "leave-last-out"))
    second = read_explanations(other, split(again, "leave-last-out"))
    assert {f: told(rows, data) for f, rows in first.items()} == {
        f: told(rows, again) for f, rows in second.items()
    }


# ---- the audit ------------------------------------------------------------------------------------


def numbered_by_appearance(path: Path, order: np.ndarray, maps: bool) -> Path:
    """60 users with 6 new items each, items renumbered by `order`."""
    path.mkdir()
    rows = {u: [int(order[6 * u + i]) + 1 for i in range(6)] for u in range(60)}
    (path / "sequential.txt").write_text(lines(rows))
    if maps:
        names = np.random.default_rng(1).permutation(360)
        table = {
            "id2user": {str(u): f"R{u:x}X" for u in rows},
            "id2item": {str(order[i] + 1): f"B{names[i]:03x}Z" for i in range(360)},
        }
        (path / "datamaps.json").write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("maps", [True, False])
def test_the_audit_refuses_numbers_by_appearance_even_behind_maps(tmp_path, maps):
    leaky = read(numbered_by_appearance(tmp_path / "leaky", np.arange(360), maps))
    with pytest.raises(LeakError, match="--allow id-order") as error:
        audit(leaky, split(leaky, "leave-last-out")).enforce()
    assert f'"largest {"published item number" if maps else "item id"} in the history + 1"' in str(
        error.value
    )
    assert "of 60 of 60 users: HR@1 1.0000" in str(error.value)
    shuffled = np.random.default_rng(0).permutation(360)
    mended = read(numbered_by_appearance(tmp_path / "mended", shuffled, maps))
    assert audit(mended, split(mended, "leave-last-out")).errors() == ()
