"""MovieLens: the 100K, 1M/10M and later releases, with the year parsed from the title."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from frugalrec.data.dataset import ITEM, TIME, TITLE, USER, VALUE
from frugalrec.data.readers import tables
from frugalrec.data.readers.columns import Frames, ReadOptions, interactions, item_texts
from frugalrec.data.readers.formats import items_table
from frugalrec.errors import DataError

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The 19 genre flags of `u.item`, in file order."""

NO_GENRE = "(no genres listed)"


def read_100k(path: Path, options: ReadOptions) -> Frames:
    """Read MovieLens 100K: a folder with `u.data` and `u.item`, or `u.data` itself."""
    folder = path if path.is_dir() else path.parent
    frame = _rows(_file(folder, "u.data"), "\t", (USER, ITEM, VALUE, TIME), options.encoding)
    if options.items is not None or not (folder / "u.item").exists():
        return interactions(frame, options), items_table(options, None)
    lines = _fields(folder / "u.item", "|", 5 + len(GENRES))
    genres = [[g for g, flag in zip(GENRES, line[5:], strict=True) if flag == "1"] for line in lines]
    items = {ITEM: [line[0] for line in lines], TITLE: [line[1] for line in lines]}
    texts = pl.DataFrame({**items, "genres": ["|".join(names) for names in genres]})
    return interactions(frame, options), _with_year(texts)


def read_1m(path: Path, options: ReadOptions) -> Frames:
    """Read MovieLens 1M or 10M: a folder with `ratings.dat` and `movies.dat`, fields split by `::`."""
    folder = path if path.is_dir() else path.parent
    frame = _rows(_file(folder, "ratings.dat"), "::", (USER, ITEM, VALUE, TIME), options.encoding)
    if options.items is not None or not (folder / "movies.dat").exists():
        return interactions(frame, options), items_table(options, None)
    lines = _fields(folder / "movies.dat", "::", 3)
    texts = pl.DataFrame(
        {ITEM: [x[0] for x in lines], TITLE: [x[1] for x in lines], "genres": [x[2] for x in lines]}
    )
    return interactions(frame, options), _with_year(texts)


def read_latest(path: Path, options: ReadOptions) -> Frames:
    """Read a later MovieLens release: a folder with `ratings.csv` and `movies.csv`."""
    folder = path if path.is_dir() else path.parent
    frame = tables.load(_file(folder, "ratings.csv"), encoding=options.encoding)
    if options.items is not None or not (folder / "movies.csv").exists():
        return interactions(frame, options), items_table(options, None)
    movies = tables.load(folder / "movies.csv", encoding=options.encoding)
    texts = item_texts(movies, options, what="movies.csv")
    if missing := [column for column in (TITLE, "genres") if column not in texts.columns]:
        raise DataError(
            f"{folder / 'movies.csv'}: no column {missing[0]!r} among {', '.join(movies.columns)}."
        )
    return interactions(frame, options), _with_year(texts)


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{folder}: no file {name}; unpack the whole MovieLens archive there.")
    return path


def _text(path: Path) -> str:
    """Decode as UTF-8 first: the 10M release is UTF-8, the older ones Latin-1; both names end in .dat."""
    data = tables.read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n")


def _rows(path: Path, separator: str, names: tuple[str, ...], encoding: str) -> pl.DataFrame:
    data = tables.read_bytes(path)
    if not data.strip():
        raise DataError(f"{path}: the file is empty; unpack the archive again.")
    try:
        tabbed = io.BytesIO(data.replace(separator.encode(), b"\t"))
        frame = pl.read_csv(tabbed, separator="\t", has_header=False, infer_schema=False, quote_char=None)
    except pl.exceptions.PolarsError:
        frame = pl.DataFrame()
    if frame.width == len(names) and not frame.select(pl.last().has_nulls()).item():
        return frame.rename(dict(zip(frame.columns, names, strict=True)))
    return _rows_by_line(path, tables.decode(data, path, encoding), separator, names)


def _rows_by_line(path: Path, text: str, separator: str, names: tuple[str, ...]) -> pl.DataFrame:
    """Split line by line, to name the line at fault."""
    text = text.replace("\r\n", "\n").rstrip("\n")
    fields = pl.Series("line", text.split("\n")).str.split(separator)
    short = fields.list.len() != len(names)
    if short.any():
        row = int(short.arg_max() or 0)
        raise DataError(
            f"{path}: line {row + 1} has {len(fields[row])} fields, not {len(names)}, "
            f"split by {separator!r}: {separator.join(fields[row])[:60]!r}."
        )
    return pl.DataFrame({name: fields.list.get(i) for i, name in enumerate(names)})


def _fields(path: Path, separator: str, width: int) -> list[list[str]]:
    lines = [line.split(separator) for line in _text(path).split("\n") if line]
    if not lines:
        raise DataError(f"{path}: the file is empty; unpack the archive again.")
    for number, line in enumerate(lines, start=1):
        if len(line) != width:
            raise DataError(f"{path}: line {number} has {len(line)} fields, not {width}: {line[:2]}.")
    return lines


def _with_year(texts: pl.DataFrame) -> pl.DataFrame:
    """Add `year` from the title's last parenthesis; a film of unlisted genre has a null genre."""
    year = pl.col(TITLE).str.extract(r"\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$").cast(pl.Int32)
    listed = (pl.col("genres") != NO_GENRE) & (pl.col("genres") != "")
    return texts.with_columns(year.alias("year"), pl.when(listed).then(pl.col("genres")).alias("genres"))
