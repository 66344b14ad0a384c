"""What `convert` writes, `read` reads back to the same data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.convert import FORMATS, convert
from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import detect, read
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.testing.toys import cycle_dataset

# NumPy drops zero bytes at the end of a text; surrogates are no text at all.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
ratings = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.integers(-(2**31), 2**31 - 1)


@st.composite
def data_sets(draw) -> Dataset:
    """Small data sets with awkward ids and texts, each optional column present or not."""
    n = draw(st.integers(1, 12))

    def column(values, size=n):
        return draw(st.lists(values, min_size=size, max_size=size))

    catalogue = draw(st.lists(words, min_size=1, max_size=6, unique=True))
    frame = {"user": column(words), "item": column(st.sampled_from(catalogue))}
    if draw(st.booleans()):
        frame["value"] = pl.Series(column(ratings), dtype=pl.Float32)
    if draw(st.booleans()):
        frame["time"] = column(st.integers(-(10**9), 1_700_000_000))
    if draw(st.booleans()):
        frame["fold"] = column(st.integers(0, 2))
    texts = {"item": catalogue}
    size = len(catalogue)
    if draw(st.booleans()):
        texts["year"] = pl.Series(column(st.none() | numbers, size), dtype=pl.Int32)
        texts["kind"] = pl.Series(column(st.none() | words, size), dtype=pl.String)
    texts["title"] = pl.Series(column(st.none() | words, size), dtype=pl.String)
    if draw(st.booleans()):
        texts["price"] = pl.Series(column(st.none() | ratings, size), dtype=pl.Float64)
        texts["sold"] = pl.Series(column(st.none() | st.booleans(), size), dtype=pl.Boolean)
    return Dataset.from_frames(pl.DataFrame(frame), pl.DataFrame(texts), name=draw(words), seed=3)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(dataset=data_sets(), format=st.sampled_from(FORMATS))
def test_reading_back_changes_nothing(tmp_path_factory, dataset, format):
    folder = convert(dataset, tmp_path_factory.mktemp("out") / "new", format)
    back = read(folder, seed=3)
    assert back.name == dataset.name
    assert back.to_frames()[0].equals(dataset.to_frames()[0])
    assert back.item_text.rows() == dataset.item_text.rows()
    assert back.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_detected_and_the_main_file_reads_alone(tmp_path, format):
    dataset = cycle_dataset()
    folder = convert(dataset, tmp_path / "deep" / "cycle", format)
    assert detect(folder) == format
    main = folder / ("cycle.inter" if format == "recbole" else f"interactions.{format}")
    assert read(main).fingerprint == read(folder).fingerprint == dataset.fingerprint
    assert read(folder, seed=1).fingerprint != dataset.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["cycle"]  # nothing temporary stays


@pytest.mark.parametrize("format", FORMATS)
def test_the_tables_read_without_the_manifest(tmp_path, format):
    dataset = cycle_dataset()
    folder = convert(dataset, tmp_path / "cycle", format)
    (folder / "dataset.json").unlink()
    assert np.array_equal(read(folder).items, dataset.items)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json: damaged .* Delete it"):
        read(folder)
    (folder / "dataset.json").write_text(json.dumps({"other": "tool"}))
    assert read(folder).name == "cycle"


@pytest.mark.parametrize("format", ["csv", "recbole"])
def test_lists_need_a_format_that_has_them(tmp_path, format):
    items = pl.DataFrame({"item": ["a"], "title": ["A"], "tags": [["x", "y"]]})
    dataset = Dataset.from_frames(pl.DataFrame({"user": ["u"], "item": ["a"]}), items, name="x")
    with pytest.raises(DataError, match=r"item column 'tags' holds List\(String\).*use parquet or jsonl"):
        convert(dataset, tmp_path / "a", format)
    assert not list(tmp_path.iterdir())
    for other in ("parquet", "jsonl"):
        assert read(convert(dataset, tmp_path / other, other)).fingerprint == dataset.fingerprint


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, monkeypatch):
    dataset = cycle_dataset()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(StorageError, match="exists and is not empty"):
        convert(dataset, tmp_path / "full", "csv")
    with pytest.raises(StorageError, match="exists and is not empty"):
        convert(dataset, tmp_path / "full" / "mine.txt", "csv")
    with pytest.raises(ConfigError, match="cannot write format 'excel'; choose csv, parquet"):
        convert(dataset, tmp_path / "x", "excel")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        convert(dataset, tmp_path / "new", "parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert read(convert(cycle_dataset(), tmp_path / "empty", "csv")).n == cycle_dataset().n
