"""Formats: one function a file format, from files to an interactions frame and an items frame."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from frugalrec.data.dataset import FOLD, ITEM, TIME, TITLE, USER, VALUE
from frugalrec.data.readers import tables
from frugalrec.data.readers.columns import Frames, ReadOptions, assign, interactions, item_texts
from frugalrec.errors import DataError

MANIFEST = "dataset.json"
"""Written by `frugalrec.data.convert`: name and column types, so that reading back changes nothing."""

PLAIN_TYPES = frozenset(
    ("String", "Boolean", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    + ("Float32", "Float64")
)
"""Types of item columns that survive a text format."""

AMAZON_ITEM_COLUMNS = ("title", "main_category", "store", "categories")
"""Columns kept of Amazon's item files; average ratings and counts look into the test period."""


def read_csv(path: Path, options: ReadOptions) -> Frames:
    """Read a CSV or TSV file, or a folder with `interactions.csv` and `items.csv`."""
    return _read_table(path, options, "csv")


def read_parquet(path: Path, options: ReadOptions) -> Frames:
    """Read a parquet file, or a folder with `interactions.parquet` and `items.parquet`."""
    return _read_table(path, options, "parquet")


def read_jsonl(path: Path, options: ReadOptions) -> Frames:
    """Read a file of one JSON object a line, or a folder with `interactions.jsonl` and `items.jsonl`."""
    return _read_table(path, options, "jsonl")


def read_sequence(path: Path, options: ReadOptions) -> Frames:
    """Read `user item item ...` lines, oldest first, and `items.jsonl` beside them where it exists."""
    file = path if path.is_file() else only(path, "*.txt", "sequence file")
    frame = sequences(file, options.encoding)
    return frame, items_table(options, beside(file.parent))


def sequences(path: Path, encoding: str = "utf-8") -> pl.DataFrame:
    """Return (user, item) rows of a sequence file; a line with a user alone gives no row."""
    lines = pl.DataFrame({"line": tables.text_lines(path, encoding)}, schema={"line": pl.String})
    tokens = pl.col("line").str.replace_all(r"\s+", " ").str.strip_chars().str.split(" ")
    rows = lines.select(tokens.alias("tokens")).filter(pl.col("tokens").list.first() != "")
    return (
        rows.select(pl.col("tokens").list.first().alias(USER), pl.col("tokens").list.slice(1).alias(ITEM))
        .filter(pl.col(ITEM).list.len() > 0)
        .explode(ITEM)
    )


def read_recbole(path: Path, options: ReadOptions) -> Frames:
    """Read RecBole atomic files: `.inter` and, beside it, `.item`; headers are `name:type`."""
    inter = path if path.is_file() else only(path, "*.inter", "interaction file")
    frame = interactions(_atomic(inter, options.encoding), options)
    if options.items is not None:
        return frame, items_table(options, None)
    item = inter.with_suffix(".item")
    if not item.exists():
        return frame, None
    return frame, _typed(item_texts(_atomic(item, options.encoding), options, what=str(item)), inter.parent)


def read_amazon(path: Path, options: ReadOptions) -> Frames:
    """Read Amazon Reviews 2023: reviews (JSONL, or the rating-only CSV) and `meta_*.jsonl` for titles."""
    folder = path if path.is_dir() else path.parent
    reviews = path if path.is_file() else _amazon_reviews(path)
    frame = interactions(_load(reviews, options, (USER, ITEM, VALUE, TIME), tables.kind(reviews)), options)
    meta = options.items or next(iter(sorted(folder.glob("meta_*.jsonl*"))), None)
    if meta is None:
        return frame, None

    def wanted(names: list[str]) -> list[str]:
        return [name for name in names if name in ("parent_asin", *AMAZON_ITEM_COLUMNS)]

    items = tables.load_jsonl(meta, wanted)
    if "categories" in items.columns and items["categories"].dtype == pl.List(pl.String):
        items = items.with_columns(pl.col("categories").list.join("|"))
    items = item_texts(items, options, what=str(meta))
    # The item file covers the whole category; the rating files are often a filtered part of it.
    rated = frame[ITEM].cast(pl.String)
    return frame, items.filter(pl.col(ITEM).cast(pl.String).is_in(rated.unique().implode()))


def items_table(options: ReadOptions, default: Path | None) -> pl.DataFrame | None:
    """Load the items table that was asked for, else the default one, else None."""
    path = options.items or default
    if path is None:
        return None
    if not path.is_file():
        raise DataError(f"{path}: no such items file; give a CSV, parquet or JSONL file.")
    frame = item_texts(tables.load(path, encoding=options.encoding), options, what=str(path))
    return _typed(frame, path.parent)


def beside(folder: Path) -> Path | None:
    """Return `items.jsonl`, `items.csv` or `items.parquet` of a folder, or None."""
    names = ("items.jsonl", "items.csv", "items.parquet")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def only(folder: Path, pattern: str, what: str) -> Path:
    """Return the one file of a folder that matches, or say what is there."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"{folder}: expected one {what} ({pattern}), found {names}. Name the file itself.")
    return found[0]


def manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a converted data set, or an empty dictionary."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}). Delete it; the tables are read without it.") from None
    return content if isinstance(content, dict) and isinstance(content.get("item_types"), dict) else {}


def _read_table(path: Path, options: ReadOptions, kind: str) -> Frames:
    file = path if path.is_file() else _main_table(path, kind)
    frame = _load(file, options, (USER, ITEM, VALUE, TIME, FOLD), kind)
    # A lone file is read alone, except the one we name ourselves; items then come by --items.
    together = path.is_dir() or file.name.startswith("interactions.")
    return interactions(frame, options), items_table(options, beside(file.parent) if together else None)


def _load(file: Path, options: ReadOptions, roles: Sequence[str], kind: str | None) -> pl.DataFrame:
    if kind == "csv":  # a format that was asked for counts for more than the file's name
        return tables.load_csv(file, encoding=options.encoding)
    if kind == "parquet":
        return tables.load_parquet(file)

    def wanted(names: list[str]) -> list[str]:
        return list(assign(names, options.columns, roles, options.name).values()) or names

    return tables.load_jsonl(file, wanted)


def _main_table(folder: Path, kind: str) -> Path:
    files = [file for file in sorted(folder.iterdir()) if tables.kind(file) == kind]
    named = [file for file in files if file.name.split(".")[0] in ("interactions", "ratings")]
    others = [file for file in files if not file.name.startswith(("items.", "meta_"))]
    found = named or others
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"{folder}: expected interactions.{kind} or one {kind} file, found {names}. Name the file itself."
        )
    return found[0]


def _amazon_reviews(folder: Path) -> Path:
    files = [
        file
        for file in sorted(folder.iterdir())
        if tables.kind(file) in ("jsonl", "csv") and not file.name.startswith(("meta_", "items."))
    ]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{folder}: expected one review file beside meta_*.jsonl, found {names}.")
    return files[0]


def _atomic(path: Path, encoding: str) -> pl.DataFrame:
    text = tables.decode(tables.read_bytes(path), path, encoding).removeprefix("\ufeff")
    if '"' in text:  # a quote opens a quoted field only at a field's start, as csv (and pandas) read it
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row]
        except csv.Error as error:
            raise DataError(f"{path}: not a readable table ({error}); check quotes and tabs.") from None
        _same_width(path, rows)
        frame = pl.DataFrame(rows[1:], schema=dict.fromkeys(rows[0], pl.String), orient="row")
    else:
        frame = tables.load_csv(path, encoding=encoding, separator="\t")
    if not all(":" in column for column in frame.columns):
        raise DataError(
            f"{path}: an atomic file's header has typed columns such as user_id:token, not {frame.columns}."
        )
    return tables.blank_to_null(frame).rename(lambda column: column.rpartition(":")[0])


def _same_width(path: Path, rows: list[list[str]]) -> None:
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: data row {number} has {len(row)} fields, the header has {len(rows[0])}; "
                f"separate fields by tabs."
            )


def _typed(frame: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Give item columns back the types that the manifest records."""
    types = manifest(folder).get("item_types", {})
    for column in frame.columns:
        kind = types.get(column)
        if column in (ITEM, TITLE) or not isinstance(kind, str) or kind not in PLAIN_TYPES - {"String"}:
            continue
        if kind == "Boolean" and frame[column].dtype == pl.String:
            frame = frame.with_columns(pl.col(column) == "true")
        else:
            frame = frame.with_columns(pl.col(column).cast(getattr(pl, kind), strict=False))
    return frame
