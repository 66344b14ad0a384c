"""Readers: one table of formats, `detect`, and `read`, which turns files into a `Dataset`.

A new format is a function `(path, options) -> (interactions, items or None)` and one line in
`READERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from frugalrec.data.dataset import ITEM, USER, Dataset
from frugalrec.data.readers import tables
from frugalrec.data.readers.columns import Frames, ReadOptions, TimeUnit
from frugalrec.data.readers.formats import manifest
from frugalrec.errors import ConfigError, DataError

READERS: Mapping[str, str] = {
    "csv": "frugalrec.data.readers.formats:read_csv",
    "parquet": "frugalrec.data.readers.formats:read_parquet",
    "jsonl": "frugalrec.data.readers.formats:read_jsonl",
    "movielens-100k": "frugalrec.data.readers.movielens:read_100k",
    "movielens-1m": "frugalrec.data.readers.movielens:read_1m",
    "movielens-latest": "frugalrec.data.readers.movielens:read_latest",
    "sequence": "frugalrec.data.readers.formats:read_sequence",
    "dealrec": "frugalrec.data.readers.dealrec:read_text",
    "dealrec-npy": "frugalrec.data.readers.dealrec:read_npy",
    "recbole": "frugalrec.data.readers.formats:read_recbole",
    "amazon-2023": "frugalrec.data.readers.formats:read_amazon",
    "p5": "frugalrec.data.readers.p5:read_dataset",
    "tallrec": "frugalrec.data.readers.tallrec:read_dataset",
}
"""Format name -> the function that reads it, resolved on use."""

FOLDERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("movielens-100k", ("u.data",)),
    ("movielens-1m", ("ratings.dat",)),
    ("movielens-latest", ("ratings.csv", "movies.csv")),
    ("dealrec", ("sequential_train.txt",)),
    ("dealrec-npy", ("training_dict.npy",)),
    ("p5", ("sequential.txt",)),
    ("p5", ("sequential_data.txt",)),
    ("p5", ("datamaps.json", "*.txt")),
    ("recbole", ("*.inter",)),
    ("amazon-2023", ("meta_*.jsonl*",)),
    ("csv", ("interactions.csv",)),
    ("parquet", ("interactions.parquet",)),
    ("jsonl", ("interactions.jsonl",)),
    ("csv", ("interactions.csv.gz",)),
    ("csv", ("*.csv",)),
    ("parquet", ("*.parquet",)),
)
"""File patterns that give a folder's format away, tried in this order."""


def read(
    path: Path | str,
    format: str = "auto",
    *,
    columns: Mapping[str, str] | None = None,
    items: Path | str | None = None,
    item_columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    encoding: str = "utf-8",
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        path: A file, or a folder in one of the formats of `READERS`.
        format: Name of the format, or `auto`.
        columns: Role (`user`, `item`, `value`, `time`, `fold`) -> column name; roles left out are
            guessed by common names such as `userId`, `movieId`, `rating`, `timestamp`.
        items: CSV, parquet or JSONL file with one row per item.
        item_columns: Role (`item`, `title`) -> column name in `items`.
        time_unit: Unit of numeric times; dates as text are recognised anyhow.
        encoding: Encoding of CSV and plain text files.
        seed: Seed of the permutations that turn external ids into codes.
        name: Name for reports; by default the file's or folder's.

    Raises:
        DataError: If the files cannot be used as given; the message names the value and a remedy.
        ConfigError: If the format is unknown.
    """
    path = _unpacked(Path(path))
    known = manifest(path if path.is_dir() else path.parent)
    stem = path.resolve().name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0]
    options = ReadOptions(
        columns=columns or {},
        items=None if items is None else Path(items),
        item_columns=item_columns or {},
        time_unit=time_unit,
        encoding=encoding,
        name=name or str(known.get("name") or stem or path),
    )
    interactions, texts = _reader(detect(path) if format == "auto" else format)(path, options)
    for frame in (interactions, texts):
        if frame is not None:
            _refuse_zero_bytes(frame, options.name)
    return Dataset.from_frames(interactions, texts, name=options.name, seed=seed)


def detect(path: Path | str) -> str:
    """Return the format of a file or folder, by names and, for text files, by the first line.

    Raises:
        DataError: If no format fits.
    """
    path = _unpacked(Path(path))
    found = _detect_folder(path) if path.is_dir() else _detect_file(path)
    if found is None:
        inside = ""
        if path.is_dir():
            names = sorted(file.name for file in path.iterdir())
            inside = f" (it holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''})"
        raise DataError(
            f"{path}: cannot tell the format{inside}. Say it with --format; there are {', '.join(READERS)}."
        )
    return found


def _detect_folder(folder: Path) -> str | None:
    for name, patterns in FOLDERS:
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return name
    if any(tables.kind(file) == "jsonl" and not file.name.startswith("items.") for file in folder.iterdir()):
        return "jsonl"
    texts = list(folder.glob("*.txt"))
    return "sequence" if len(texts) == 1 and _is_sequence(texts[0]) else None


def _detect_file(file: Path) -> str | None:
    by_name = {"u.data": "movielens-100k", "ratings.dat": "movielens-1m"}
    if file.name in by_name:
        return by_name[file.name]
    if file.name == "ratings.csv" and (file.parent / "movies.csv").is_file():
        return "movielens-latest"
    if file.suffix == ".inter":
        return "recbole"
    if file.suffix == ".txt":
        return "sequence" if _is_sequence(file) else None
    return tables.kind(file)


def _is_sequence(file: Path) -> bool:
    with file.open("rb") as stream:
        tokens = stream.readline(1 << 20).split()
    return bool(tokens) and all(token.isdigit() for token in tokens)


def _unpacked(path: Path) -> Path:
    """Return the path, or the one folder in it: archives unpacked by hand bring their own."""
    if path.is_dir():
        inside = [file for file in path.iterdir() if not file.name.startswith((".", "__MACOSX"))]
        return _unpacked(inside[0]) if len(inside) == 1 and inside[0].is_dir() else path
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Check the path, or fetch a public data set with: "
            f"frugalrec data get movielens-latest-small"
        )
    return path


def _refuse_zero_bytes(frame: pl.DataFrame, name: str) -> None:
    """Refuse ids that arrays of text cannot hold apart: NumPy drops zero bytes at the end."""
    for column in (USER, ITEM):
        if column in frame.columns and frame[column].dtype == pl.String:
            bad = frame[column].str.contains("\0", literal=True).fill_null(False)
            if bad.any():
                raise DataError(
                    f"{name}: the {column} id {frame[column][int(bad.arg_max() or 0)]!r} holds a zero byte; "
                    f"the file is damaged or not a text file."
                )


def _reader(format: str) -> Callable[[Path, ReadOptions], Frames]:
    if format not in READERS:
        raise ConfigError(f"unknown format {format!r}; choose auto or one of {', '.join(READERS)}.")
    module, _, function = READERS[format].partition(":")
    reader: Callable[[Path, ReadOptions], Frames] = getattr(importlib.import_module(module), function)
    return reader
