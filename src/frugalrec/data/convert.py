"""Convert: write a data set in a common format, in one step, so that reading it back changes nothing."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from frugalrec.data.dataset import FOLD, ITEM, TIME, TITLE, USER, VALUE, Dataset
from frugalrec.data.readers.formats import MANIFEST, PLAIN_TYPES
from frugalrec.errors import ConfigError, DataError, StorageError

Format = Literal["csv", "parquet", "jsonl", "recbole"]
FORMATS: tuple[Format, ...] = ("csv", "parquet", "jsonl", "recbole")

RECBOLE_COLUMNS: Mapping[str, str] = {
    USER: "user_id:token",
    ITEM: "item_id:token",
    VALUE: "rating:float",
    TIME: "timestamp:float",
    FOLD: "fold:float",
    TITLE: "title:token_seq",
}
"""Our columns -> the typed headers of RecBole's atomic files."""


def convert(dataset: Dataset, destination: Path | str, format: Format) -> Path:
    """Write interactions and items to a new folder; `frugalrec.data.readers.read` reads it back.

    Reading back with the same seed gives the same fingerprint, except that empty texts become
    nulls and users without interactions are left out. The folder appears whole or not at all.

    Args:
        dataset: The data set.
        destination: A folder that does not exist yet, or is empty.
        format: `csv`, `parquet`, `jsonl` or `recbole`.

    Raises:
        ConfigError: If the format is unknown.
        DataError: If an item column cannot be written in a text format.
        StorageError: If the folder is not empty or cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"cannot write format {format!r}; choose {', '.join(FORMATS)}.")
    destination = Path(destination)
    interactions, items = dataset.to_frames()
    if format in ("csv", "recbole"):
        _require_plain(items, format)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise StorageError(f"{destination} exists and is not empty; choose another folder or remove it.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            _write(temporary, interactions, items, format, dataset.name)
            temporary.chmod(0o755)
            temporary.replace(destination)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"{destination}: cannot be written ({error.strerror or error}).") from None
    return destination


def _write(folder: Path, interactions: pl.DataFrame, items: pl.DataFrame, format: Format, name: str) -> None:
    types = {column: str(dtype) for column, dtype in items.schema.items()}
    manifest = {"name": name, "format": format, "item_types": types}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    match format:
        case "csv":
            interactions.write_csv(folder / "interactions.csv")
            items.write_csv(folder / "items.csv")
        case "parquet":
            interactions.write_parquet(folder / "interactions.parquet")
            items.write_parquet(folder / "items.parquet")
        case "jsonl":
            interactions.write_ndjson(folder / "interactions.jsonl")
            items.write_ndjson(folder / "items.jsonl")
        case "recbole":
            stem = re.sub(r"[^\w.-]+", "-", name) or "data"
            _atomic(interactions).write_csv(folder / f"{stem}.inter", separator="\t")
            _atomic(items).write_csv(folder / f"{stem}.item", separator="\t")


def _atomic(frame: pl.DataFrame) -> pl.DataFrame:
    def header(column: str) -> str:
        if column in RECBOLE_COLUMNS:
            return RECBOLE_COLUMNS[column]
        dtype = frame.schema[column]
        return f"{column}:{'float' if dtype.is_numeric() else 'token'}"

    return frame.rename({column: header(column) for column in frame.columns})


def _require_plain(items: pl.DataFrame, format: str) -> None:
    for column, dtype in items.schema.items():
        if str(dtype) not in PLAIN_TYPES and dtype != pl.Null:
            raise DataError(
                f"item column {column!r} holds {dtype}, which a {format} file cannot; use parquet or jsonl."
            )
