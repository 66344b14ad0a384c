"""The film club's catalogue: well-known films with year, genres and series, as facts."""

from __future__ import annotations

from importlib import resources

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.dataset import ITEM, TITLE
from frugalrec.types import FloatArray, IntArray

NO_FILM = -1
"""Predecessor of a film that opens its series or belongs to none."""


def films() -> pl.DataFrame:
    """Return the catalogue, one row per film, in order of year; parts of one series in order.

    Columns: `item` (an id made of title and year; it numbers nothing), `title` ("Heat (1995)"),
    `year`, `genres` (separated by "|"), `series` and `part` (place in the series, from 1), both
    null for films that stand alone.

    >>> films().filter(pl.col("title") == "Heat (1995)")["genres"].item()
    'Action|Crime|Thriller'
    """
    source = resources.files("frugalrec.data").joinpath("films.csv").read_bytes()
    table = pl.read_csv(source, schema_overrides={TITLE: pl.String, "series": pl.String})
    title = pl.format("{} ({})", TITLE, "year")
    slug = pl.col(TITLE).str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", "-").str.strip_chars("-")
    part = pl.when(pl.col("series").is_not_null()).then(pl.col("year").rank("ordinal").over("series"))
    return table.select(
        pl.format("{}-{}", slug, "year").alias(ITEM),
        title.alias(TITLE),
        "year",
        "genres",
        "series",
        part.cast(pl.Int64).alias("part"),
    )


def genre_matrix(catalogue: pl.DataFrame) -> tuple[list[str], FloatArray]:
    """Return the genre names and each film's genres as a row of length 1, (n_films, n_genres)."""
    lists = catalogue["genres"].str.split("|").to_list()
    names = sorted({genre for genres in lists for genre in genres})
    has = np.array([[genre in genres for genre in names] for genres in lists], dtype=np.float32)
    lengths: FloatArray = np.linalg.norm(has, axis=1, keepdims=True)
    return names, has / lengths


def predecessors(catalogue: pl.DataFrame) -> IntArray:
    """Return the row of the part before each film, (n_films,); -1 where there is none."""
    rows = catalogue.select("series", "part").with_row_index("row")
    before = rows.select(pl.col("row").alias("before"), "series", pl.col("part") + 1)
    joined = rows.join(before, on=["series", "part"], how="left", maintain_order="left")
    found: NDArray[np.int64] = joined["before"].cast(pl.Int64).fill_null(NO_FILM).to_numpy()
    return found.astype(np.int32)
