"""Damaged files of every format end in a data set or in an error of ours, never in a traceback."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.convert import FORMATS, convert
from frugalrec.data.readers import READERS, read
from frugalrec.errors import FrugalrecError
from frugalrec.testing.toys import cycle_dataset

FLAGS = "|0" * 19
SAMPLES: dict[str, dict[str, str]] = {
    "movielens-100k": {"u.data": "1\t2\t3\t100\n" * 5, "u.item": f"2|T (1990)|||x{FLAGS}\n"},
    "movielens-1m": {"ratings.dat": "1::2::3::100\n" * 5, "movies.dat": "2::T (1990)::Drama\n"},
    "movielens-latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "1,2,3,100\n" * 5,
        "movies.csv": 'movieId,title,genres\n2,"T, The (1990)",Drama\n',
    },
    "sequence": {"a.txt": "1 2 3\n2 3\n", "items.jsonl": '{"item_id": 2, "title": "T"}\n'},
    "dealrec": {f"sequential_{fold}.txt": "1 2 3\n2 3\n" for fold in ("train", "valid", "test")},
    "p5": {
        "sequential.txt": "1 2 3\n2 3\n",
        "datamaps.json": '{"id2user": {"1": "a", "2": "b"}, "id2item": {"2": "x", "3": "y"}}',
        "items.jsonl": '{"item_id": 2, "title": "T"}\n',
    },
    "amazon-2023": {
        "G.jsonl": '{"user_id": "u", "parent_asin": "p", "rating": 4, "timestamp": 1588687728923}\n' * 3,
        "meta_G.jsonl": '{"parent_asin": "p", "title": "T", "categories": ["a"]}\n',
    },
    "tallrec": {
        "test.json": '[{"instruction": "", "input": "User Preference: \\"A\\"\\nUser Unpreference: '
        '\\"B\\"\\nWhether the user will like the target movie \\"C\\"?", "output": "Yes."}]'
    },
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    folders = {format: root / format for format in READERS}
    for format, files in SAMPLES.items():
        folders[format].mkdir()
        for name, text in files.items():
            (folders[format] / name).write_text(text)
    folders["dealrec-npy"].mkdir()
    for name in ("training_dict", "validation_dict", "testing_dict"):
        content = np.array({0: [1, 2], 1: [2]}, dtype=object)
        np.save(folders["dealrec-npy"] / f"{name}.npy", content, allow_pickle=True)
    for format in FORMATS:
        convert(cycle_dataset(n_users=4, n_items=5, length=3), folders[format], format)
    return folders


edits = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["cut", "put", "drop", "twice"]), st.binary(min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=3,
)


def damaged(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for share, change, piece in changes:
        at = int(share * len(data))
        if change == "cut":
            data = data[:at]
        elif change == "put":
            data = data[:at] + piece + data[at:]
        elif change == "drop":
            data = data[:at] + data[at + len(piece) :]
        else:
            data = data[:at] + data[at - len(piece) : at] + data[at:]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("format", READERS)
@settings(max_examples=25, deadline=None)
@given(changes=edits, choice=st.integers(0, 99))
def test_damage_is_an_error_of_ours_or_none(samples, tmp_path_factory, format, changes, choice):
    folder = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(samples[format], folder)
    files = sorted(folder.iterdir())
    file = files[choice % len(files)]
    file.write_bytes(damaged(file.read_bytes(), changes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert read(folder, format).n > 0
        except FrugalrecError as error:
            assert len(str(error)) > 20


@pytest.mark.parametrize("content", [[], {"item_types": 7}, {"item_types": {"title": 3, "x": "Python"}}, 3])
def test_a_foreign_manifest_is_ignored(tmp_path, content):
    folder = convert(cycle_dataset(), tmp_path / "a", "csv")
    (folder / "dataset.json").write_text(json.dumps(content))
    assert read(folder, name="cycle").fingerprint == cycle_dataset().fingerprint
