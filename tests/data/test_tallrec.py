"""TALLRec's prompts: parsing, the counting baseline, and the rebuilt movie split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.readers import read
from frugalrec.data.readers.tallrec import (
    git_blob_sha1,
    history_like_rate,
    parse_prompts,
    read_prompts,
    rebuild_movie_split,
)
from frugalrec.errors import DataError


def prompt(
    liked: list[str], disliked: list[str], target: str, output: str = "Yes.", noun: str = "movie"
) -> dict:
    """A row in the published pattern; the titles come with whatever quotes they have."""
    text = (
        f"User Preference: {', '.join(liked)}\nUser Unpreference: {', '.join(disliked)}\n"
        f'Whether the user will like the target {noun} "{target}"?'
    )
    return {"instruction": "Given ...", "input": text, "output": output}


def quoted(*titles: str) -> list[str]:
    return [f'"{title}"' for title in titles]


def test_a_movie_row():
    row = prompt(
        quoted("Silence of the Lambs, The (1991)", "Titanic (1997)"), quoted("Evita"), "Scream", "No."
    )
    rows = parse_prompts([row])
    assert rows.liked == (("Silence of the Lambs, The (1991)", "Titanic (1997)"),)
    assert rows.disliked == (("Evita",),)
    assert rows.targets == ("Scream",)
    assert rows.labels.tolist() == [False]
    assert (len(rows), rows.n_liked.tolist(), rows.n_disliked.tolist()) == (1, [2], [1])


def test_empty_sides_and_odd_titles():
    rows = parse_prompts(
        [
            prompt([], quoted("A"), 'The "?" Motorist'),
            prompt(quoted('Say "Yes"', "Line\nbreak"), [], "Who?", "no"),
        ]
    )
    assert rows.liked == ((), ('Say "Yes"', "Line\nbreak"))
    assert rows.disliked == (("A",), ())
    assert rows.targets == ('The "?" Motorist', "Who?")
    assert rows.labels.tolist() == [True, False]


def test_book_rows_keep_their_authors():
    books = ['"Friday" written by Robert Heinlein', '"Foo, "Bar" and Baz" written by A, B']
    rows = parse_prompts([prompt(books, [], '"The Colonel" written by P. Davis', noun="book")])
    assert rows.liked == (tuple(books),)
    assert rows.targets == ('"The Colonel" written by P. Davis',)


def test_an_author_with_the_separator_stays_whole():
    rows = parse_prompts([prompt(['"A" written by X', '"B" written by Y, "Jr"'], [], "T")])
    assert rows.liked == (('"A" written by X', '"B" written by Y, "Jr"'),)


titles = st.lists(st.text(min_size=1, max_size=8).filter(lambda t: '"' not in t), max_size=5)


@settings(deadline=None)
@given(liked=titles, disliked=titles, target=st.text(max_size=8).filter(lambda t: '"' not in t))
def test_what_is_written_is_parsed(liked, disliked, target):
    row = prompt(quoted(*liked), quoted(*disliked), target)
    rows = parse_prompts([row])
    assert rows.liked == (tuple(liked),)
    assert rows.disliked == (tuple(disliked),)
    assert rows.targets == (target,)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.integers(0, 2))
def test_the_like_rate_against_a_loop(counts, smoothing):
    rows = parse_prompts([prompt(quoted(*"a" * up), quoted(*"b" * down), "t") for up, down in counts])
    naive = [
        (up + smoothing) / (up + down + 2 * smoothing) if up + down + 2 * smoothing else 0.5
        for up, down in counts
    ]
    np.testing.assert_allclose(history_like_rate(rows, smoothing=smoothing), naive, rtol=1e-15)
    shuffled = parse_prompts(
        [prompt(quoted(*"a" * up), quoted(*"b" * down), "t") for up, down in counts[::-1]]
    )
    np.testing.assert_array_equal(history_like_rate(shuffled), history_like_rate(rows)[::-1])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (7, "row 2: expected an object with texts 'input' and 'output', not 7"),
        ({"input": "x"}, "expected an object with texts"),
        (prompt([], [], "T", output="Maybe"), "row 2: the output is 'Maybe', not 'Yes.' or 'No.'"),
        ({"input": "I like films", "output": "Yes."}, "row 2: the input does not read.*'I like films'"),
        ({"input": 'User Preference: "A"\nWhether ...', "output": "Yes."}, "the input does not read"),
    ],
)
def test_rows_out_of_pattern_are_named(row, says):
    with pytest.raises(DataError, match=says):
        parse_prompts([prompt([], [], "T"), row])


def test_prompt_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([prompt(quoted("A"), [], "T")]))
    assert read_prompts(path).targets == ("T",)
    for text, says in (("[", "not JSON"), ("[]", "non-empty JSON array"), ("{}", "non-empty JSON array")):
        path.write_text(text)
        with pytest.raises(DataError, match=says):
            read_prompts(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.json")


def test_git_blob_hash():
    # printf 'hello\n' | git hash-object --stdin
    assert git_blob_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_split_is_cut_by_position(tmp_path):
    # Two users with 12 and 18 events give 2 and 8 rows; 8:1:1 of ten rows is 8, 1, 1.
    events = [("7", i, 5 if i % 2 else 3, 900 - i) for i in range(12)]
    events += [("3", i, 4, 200 + i) for i in range(18)]
    (tmp_path / "u.data").write_text("".join("\t".join(map(str, event)) + "\n" for event in events))
    films = "".join(f"{i}|Caf\u00e9 {i}|01-Jan-1995||url|0\n" for i in range(18))
    (tmp_path / "u.item").write_bytes(films.encode("latin-1"))
    folds = {fold: parse_prompts(json.loads(text)) for fold, text in rebuild_movie_split(tmp_path).items()}
    assert {fold: len(rows) for fold, rows in folds.items()} == {"train": 8, "valid": 1, "test": 1}
    first = folds["train"]
    # User 7 comes first in the file; its events by time are 11, 10, ..., 0: the eleventh is event 1.
    assert first.targets[:2] == ("Caf\u00e9 1", "Caf\u00e9 0")
    assert first.liked[0] == tuple(f"Caf\u00e9 {i}" for i in (11, 9, 7, 5, 3))
    assert first.disliked[0] == tuple(f"Caf\u00e9 {i}" for i in (10, 8, 6, 4, 2))
    assert first.labels[:2].tolist() == [True, False]
    assert folds["test"].targets == ("Caf\u00e9 17",)


PUBLISHED = {
    "train": "2bbe93bffecd30423606a6d8e78d22c9a6c5f64f",
    "valid": "d26599315557a9587cd74d83c1c565670361d215",
    "test": "ee8bb62c56a82d6f176b07d094cc39e8a13878bc",
}


@pytest.mark.slow
def test_the_movie_split_is_rebuilt_byte_for_byte(real_data):
    folds = rebuild_movie_split(real_data / "ml-100k")
    assert {fold: git_blob_sha1(content) for fold, content in folds.items()} == PUBLISHED
    for fold in ("valid", "test"):
        assert folds[fold] == (real_data / "tallrec-movie" / f"{fold}.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "n", "likes", "empty", "distinct"),
    [
        ("tallrec-movie/valid", 1000, 658, (1, 128), 535),
        ("tallrec-movie/test", 1000, 528, (60, 62), 542),
        ("tallrec-book/valid", 2427, 1011, (289, 175), 2332),
        ("tallrec-book/test", 2427, 1054, (298, 155), 2357),
    ],
)
def test_the_published_files_have_their_known_counts(real_data, file, n, likes, empty, distinct):
    rows = read_prompts(real_data / f"{file}.json")
    assert (len(rows), int(rows.labels.sum())) == (n, likes)
    assert (int((rows.n_liked == 0).sum()), int((rows.n_disliked == 0).sum())) == empty
    assert len(set(rows.targets)) == distinct
    lengths = rows.n_liked + rows.n_disliked
    low = 10 if "movie" in file else 3
    assert (lengths.min(), lengths.max()) == (low, 10)
    if "book" in file:
        assert all('" written by ' in title for title in rows.targets)
        assert all(
            t.count('" written by ') == 1 for side in (rows.liked, rows.disliked) for r in side for t in r
        )


def test_prompts_become_a_data_set_with_the_target_in_test(tmp_path):
    rows = [
        {
            "instruction": "",
            "input": 'User Preference: "A", "B"\nUser Unpreference: "C"\nWhether the user will like the target movie "D"?',
            "output": "No.",
        },
        {
            "instruction": "",
            "input": 'User Preference: \nUser Unpreference: "A"\nWhether the user will like the target movie "B"?',
            "output": "Yes.",
        },
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    dataset = read(tmp_path / "test.json", "tallrec")
    found = dataset.to_frames()[0].sort("user", "fold", "item").rows()
    assert found == [
        ("row-1", "A", 1.0, 0), ("row-1", "B", 1.0, 0), ("row-1", "C", 0.0, 0), ("row-1", "D", 0.0, 2),
        ("row-2", "A", 0.0, 0), ("row-2", "B", 1.0, 2),
    ]  # fmt: skip
    assert sorted(dataset.titles) == ["A", "B", "C", "D"]
