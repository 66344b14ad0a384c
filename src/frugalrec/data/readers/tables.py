"""Table files: load CSV, TSV, JSONL and parquet as frames, with errors that name the line.

Cells of CSV files stay text here, so that a message about a bad value shows what the file holds.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from frugalrec.errors import DataError

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""File name endings (a further `.gz` is allowed on text files) and the kind of table they hold."""

SEPARATORS = (",", "\t", ";", "|")
"""Separators tried on the header line of a CSV file; the most frequent one wins."""


def kind(path: Path) -> str | None:
    """Return ``"csv"``, ``"parquet"`` or ``"jsonl"`` by the file's name, or None."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def load(path: Path, *, encoding: str = "utf-8") -> pl.DataFrame:
    """Load a table by its file name.

    Args:
        path: A `.csv`, `.tsv`, `.parquet`, `.jsonl` or `.ndjson` file; text files may be gzipped.
        encoding: Encoding of CSV text; the other kinds define their own.

    Raises:
        DataError: If the file is missing, empty, damaged or of an unknown kind.
    """
    match kind(path):
        case "csv":
            return load_csv(path, encoding=encoding)
        case "parquet":
            return load_parquet(path)
        case "jsonl":
            return load_jsonl(path)
        case _:
            raise DataError(
                f"{path}: a table ends in {', '.join(SUFFIXES)}, not {path.suffix!r}; rename or convert it."
            )


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unzipped where its name ends in `.gz`."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def decode(data: bytes, path: Path, encoding: str) -> str:
    """Decode text, or say at which byte and line it stops being `encoding`."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}, line {line}) is not {encoding}. "
            f"Say which encoding the file has, for example --encoding latin-1, or re-save it as UTF-8."
        ) from None
    except LookupError:
        raise DataError(f"unknown encoding {encoding!r}; use utf-8, latin-1 or cp1252.") from None


def load_csv(path: Path, *, encoding: str = "utf-8", separator: str | None = None) -> pl.DataFrame:
    """Load a CSV or TSV file with a header line; every column is text, an empty cell is null."""
    data = read_bytes(path)
    if not data.strip():
        raise DataError(f"{path}: the file is empty; it needs a header line and rows.")
    if encoding.lower() not in ("utf-8", "utf8"):
        data = decode(data, path, encoding).encode()
    guessed = _separator(path, data)
    separator = separator or guessed
    try:
        frame = pl.read_csv(io.BytesIO(data), separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, ValueError) as error:
        text = decode(data, path, "utf-8")  # polars says that a text is not UTF-8, this says where
        raise DataError(f"{path}: {_csv_fault(text, separator, error)}") from None
    if all(_is_number(column) for column in frame.columns[1:]) and frame.width > 1:
        raise DataError(
            f"{path}: the first line {frame.columns} looks like data, not a header. "
            f"Add a header line such as user,item,value,time."
        )
    return blank_to_null(frame)


def load_parquet(path: Path) -> pl.DataFrame:
    """Load a parquet file."""
    try:
        return pl.read_parquet(io.BytesIO(read_bytes(path)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: not a readable parquet file ({_first_line(error)}); if it is cut short, write it again."
        ) from None


def load_jsonl(path: Path, columns: Callable[[list[str]], Sequence[str]] | None = None) -> pl.DataFrame:
    """Load a file with one JSON object a line.

    Args:
        path: The file.
        columns: Chooses, from the names in the file, those to load; None loads all. Review files
            carry texts many times the size of what is needed.
    """
    if path.exists() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; it needs one JSON object a line.")
    try:
        lazy = pl.scan_ndjson(path, infer_schema_length=None)
        names = lazy.collect_schema().names()
        return lazy.select(columns(names) if columns else names).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        return _load_jsonl_slowly(path, columns, error)


def blank_to_null(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn empty texts into nulls: no file format tells the two apart reliably."""
    texts = pl.col(pl.String)
    return frame.with_columns(pl.when(texts != "").then(texts))


def text_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a text file; only newlines end a line, whatever else the text holds."""
    text = decode(read_bytes(path), path, encoding).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


def _load_jsonl_slowly(
    path: Path, columns: Callable[[list[str]], Sequence[str]] | None, error: Exception
) -> pl.DataFrame:
    """Find the line at fault; where each line is fine by itself, mixed types become text."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise DataError(
                f"{path}: line {number} is not JSON ({fault}): {line[:60]!r}. Correct or remove that line."
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is not a JSON object: {line[:60]!r}.")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise DataError(f"{path}: no JSON objects in the file ({_first_line(error)}).")
    chosen = columns(names) if columns else names
    data = {name: [_as_text(row.get(name)) for row in rows] for name in chosen}
    return pl.DataFrame(data, schema=dict.fromkeys(chosen, pl.String))


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def _separator(path: Path, data: bytes) -> str:
    end = data.find(b"\n")
    header = decode(data[:end] if end >= 0 else data, path, "utf-8")  # polars decodes headers leniently
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return max(SEPARATORS, key=header.count)


def _csv_fault(text: str, separator: str, error: Exception) -> str:
    """Name the first line with too many fields; quoting faults keep the parser's words."""
    lines = text.split("\n")
    if '"' not in text:
        width = lines[0].count(separator)
        for number, line in enumerate(lines, start=1):
            if line.count(separator) > width:
                return (
                    f"line {number} has {line.count(separator) + 1} fields, the header has {width + 1}: "
                    f"{line[:60]!r}. Quote cells that hold {separator!r}."
                )
    return f"not a readable table ({_first_line(error)}); check quotes and separators."


def _is_number(text: str) -> bool:
    try:
        float(text.partition("_duplicated_")[0])
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
