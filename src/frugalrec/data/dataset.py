"""The data set: interactions in CSR arrays by user and time, two vocabularies, item texts.

External ids (whatever the user's files hold) become dense codes once, here, by a *seeded random
permutation*: order of first appearance leaks the test item in several published data sets (rule
"max(history) + 1"), so no code of ours ever carries it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.errors import DataError
from frugalrec.rng import generator
from frugalrec.types import FloatArray, IntArray, LongArray

USER, ITEM, VALUE, TIME, FOLD, TITLE = "user", "item", "value", "time", "fold", "title"
"""Column names of the frames that readers hand to `Dataset.from_frames`; defined once, here."""
NUMBER = "published_number"
"""Item column with the number that published files give an item beside its id; the audit looks at it."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Interactions sorted by user, and inside a user by time; frozen.

    Build one with `Dataset.from_frames` or a reader in `frugalrec.data.readers`.
    """

    name: str
    indptr: LongArray
    """Row pointers, (n_users + 1,): user u owns positions ``indptr[u]:indptr[u + 1]``."""
    items: IntArray
    """Item codes, (n,), oldest first inside a user."""
    values: FloatArray | None
    """Ratings or other values, (n,), or None for implicit feedback."""
    times: LongArray | None
    """Unix seconds, (n,), or None where only the order is known."""
    folds: NDArray[np.int8] | None
    """0 train, 1 valid, 2 test, (n,), where the publisher gave the split; else None."""
    user_ids: NDArray[np.str_]
    """External user id of each code, (n_users,)."""
    item_ids: NDArray[np.str_]
    """External item id of each code, (n_items,)."""
    item_text: pl.DataFrame
    """One row per item code: `item` (external id), `title`, and whatever else was given."""

    @property
    def n_users(self) -> int:
        """Number of user codes, users without interactions included."""
        return int(self.user_ids.size)

    @property
    def n_items(self) -> int:
        """Number of item codes, items without interactions included."""
        return int(self.item_ids.size)

    @property
    def n(self) -> int:
        """Number of interactions."""
        return int(self.items.size)

    @cached_property
    def lengths(self) -> LongArray:
        """Interactions per user, (n_users,)."""
        return np.diff(self.indptr)

    @cached_property
    def rows(self) -> IntArray:
        """User code of each interaction, (n,)."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), self.lengths)

    @cached_property
    def item_counts(self) -> LongArray:
        """Interactions per item, (n_items,)."""
        return np.bincount(self.items, minlength=self.n_items).astype(np.int64)

    @cached_property
    def titles(self) -> list[str]:
        """Title of each item code; an item without a title shows its external id."""
        titles = self.item_text[TITLE].to_list()
        return [t if t else f"item {i}" for t, i in zip(titles, self.item_ids.tolist(), strict=True)]

    def history(self, user: int) -> IntArray:
        """Return the user's item codes, oldest first."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def matrix(self) -> sp.csr_array:
        """Return the binary user-item matrix, (n_users, n_items), float32; repeats count once."""
        ones = np.ones(self.n, dtype=np.float32)
        # A copy, for sum_duplicates works in place and would rewrite this data set's row pointers.
        matrix = sp.csr_array((ones, self.items, self.indptr), shape=(self.n_users, self.n_items), copy=True)
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def where(self, mask: NDArray[np.bool_], name: str | None = None) -> Dataset:
        """Return the interactions for which `mask` (n,) is true, same vocabularies."""
        counts = np.bincount(self.rows[mask], minlength=self.n_users)
        return replace(
            self,
            name=name or self.name,
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            items=self.items[mask],
            values=None if self.values is None else self.values[mask],
            times=None if self.times is None else self.times[mask],
            folds=None if self.folds is None else self.folds[mask],
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over interactions, vocabularies and texts; the same data gives the same value."""
        digest = hashlib.sha256()
        for array in (self.indptr, self.items, self.values, self.times, self.folds):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        for ids in (self.user_ids, self.item_ids):
            digest.update("\x1f".join(ids.tolist()).encode())
        digest.update(self.item_text.write_ndjson().encode())
        return digest.hexdigest()

    @classmethod
    def from_frames(
        cls,
        interactions: pl.DataFrame,
        items: pl.DataFrame | None = None,
        *,
        name: str,
        seed: int = 0,
    ) -> Dataset:
        """Build a data set from an interactions frame and an optional item frame.

        Args:
            interactions: Columns `user` and `item`; optional `value` (float), `time` (Unix seconds)
                and `fold` (0, 1, 2). Without `time`, row order is the order of events.
            items: Columns `item`, `title` and any others; items that never occur are kept.
            name: A short name for reports.
            seed: Seed of the permutations that turn external ids into codes.

        Raises:
            DataError: On a missing column, an empty table, a null id, a duplicated item row, or
                values and times that are not finite numbers.
        """
        frame = _checked(interactions, name)
        texts = _checked_items(items, frame)
        user_ids = _vocabulary(frame[USER].unique(), seed, "users")
        item_ids = _vocabulary(texts[ITEM], seed, "items")
        frame = frame.with_columns(
            _encode(frame[USER], user_ids).alias("_u"), _encode(frame[ITEM], item_ids).alias("_i")
        )
        keys = ["_u", TIME] if TIME in frame.columns else ["_u"]
        frame = frame.sort(keys, maintain_order=True)
        counts = np.bincount(frame["_u"].to_numpy(), minlength=user_ids.size)
        order = pl.DataFrame({ITEM: item_ids})
        return cls(
            name=name,
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            items=frame["_i"].to_numpy().astype(np.int32),
            values=frame[VALUE].to_numpy().astype(np.float32) if VALUE in frame.columns else None,
            times=frame[TIME].to_numpy().astype(np.int64) if TIME in frame.columns else None,
            folds=frame[FOLD].to_numpy().astype(np.int8) if FOLD in frame.columns else None,
            user_ids=user_ids,
            item_ids=item_ids,
            item_text=order.join(texts, on=ITEM, how="left", maintain_order="left"),
        )

    def to_frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return (interactions, items) with external ids: the inverse of `from_frames`."""
        columns: dict[str, Any] = {USER: self.user_ids[self.rows], ITEM: self.item_ids[self.items]}
        for column, array in ((VALUE, self.values), (TIME, self.times), (FOLD, self.folds)):
            if array is not None:
                columns[column] = array
        return pl.DataFrame(columns), self.item_text

    def save(self, folder: Path) -> None:
        """Write `arrays.npz` and `items.parquet` to `folder` (no pickle)."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {
            "name": np.array(self.name),
            "indptr": self.indptr,
            "items": self.items,
            "user_ids": self.user_ids,
            "item_ids": self.item_ids,
        }
        for key in ("values", "times", "folds"):
            if (array := getattr(self, key)) is not None:
                arrays[key] = array
        np.savez_compressed(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        self.item_text.write_parquet(folder / "items.parquet")

    @classmethod
    def load(cls, folder: Path) -> Dataset:
        """Read what `save` wrote."""
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            loaded: dict[str, Any] = {key: arrays[key] for key in arrays.files}
        for key in ("values", "times", "folds"):
            loaded.setdefault(key, None)
        loaded["name"] = str(loaded["name"])
        return cls(**loaded, item_text=pl.read_parquet(folder / "items.parquet"))


def concatenate(first: Dataset, second: Dataset, name: str | None = None) -> Dataset:
    """Append each user's interactions in `second` to those in `first`; same vocabularies."""
    if first.item_ids is not second.item_ids and not np.array_equal(first.item_ids, second.item_ids):
        raise DataError("cannot concatenate data sets with different vocabularies")
    rows = np.concatenate([first.rows, second.rows])
    order = np.argsort(rows, kind="stable")

    def both(a: NDArray[Any] | None, b: NDArray[Any] | None) -> Any:
        return None if a is None or b is None else np.concatenate([a, b])[order]

    counts = first.lengths + second.lengths
    return replace(
        first,
        name=name or first.name,
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=both(first.items, second.items),
        values=both(first.values, second.values),
        times=both(first.times, second.times),
        folds=both(first.folds, second.folds),
    )


def _checked(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    missing = [column for column in (USER, ITEM) if column not in frame.columns]
    if missing:
        raise DataError(
            f"{name}: no column {' and '.join(map(repr, missing))} among {frame.columns}. "
            f"Map your columns, for example --column user=customer --column item=sku."
        )
    if frame.height == 0:
        raise DataError(f"{name}: the interactions table is empty; give at least one interaction.")
    for column in (USER, ITEM):
        nulls = frame[column].null_count()
        if nulls:
            row = int(frame[column].is_null().arg_max() or 0)
            raise DataError(
                f"{name}: {nulls} interaction(s) have no {column} id, the first in data row {row + 1}. "
                f"Drop or fill those rows."
            )
    keep = [c for c in (USER, ITEM, VALUE, TIME, FOLD) if c in frame.columns]
    frame = frame.select(keep).with_columns(pl.col(USER).cast(pl.String), pl.col(ITEM).cast(pl.String))
    for column, dtype in ((VALUE, pl.Float32), (TIME, pl.Int64), (FOLD, pl.Int8)):
        if column in frame.columns:
            frame = frame.with_columns(_numeric(frame[column], dtype, name).alias(column))
    return frame


def _numeric(column: pl.Series, dtype: Any, name: str) -> pl.Series:
    cast = column.cast(dtype, strict=False)
    bad = cast.is_null()
    if dtype == pl.Float32:
        bad = bad | ~cast.is_finite().fill_null(False)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"{name}: column {column.name!r} holds {column[row]!r} in data row {row + 1}, "
            f"which is not a number. Correct {int(bad.sum())} such row(s) or leave the column out."
        )
    return cast


def _checked_items(items: pl.DataFrame | None, frame: pl.DataFrame) -> pl.DataFrame:
    seen = frame.select(ITEM).unique(maintain_order=True)
    if items is None:
        return seen.with_columns(pl.lit(None, dtype=pl.String).alias(TITLE))
    if ITEM not in items.columns:
        raise DataError(f"the items table has no column 'item' among {items.columns}; map it.")
    texts = items.with_columns(pl.col(ITEM).cast(pl.String))
    if TITLE not in texts.columns:
        texts = texts.with_columns(pl.lit(None, dtype=pl.String).alias(TITLE))
    if texts[ITEM].null_count():
        raise DataError("the items table has rows without an item id; drop them.")
    duplicated = texts.filter(pl.col(ITEM).is_duplicated())
    if duplicated.height:
        raise DataError(
            f"the items table lists item {duplicated[ITEM][0]!r} more than once "
            f"({duplicated.height} rows in all share an id); keep one row per item."
        )
    missing = seen.join(texts, on=ITEM, how="anti")
    return pl.concat([texts, missing], how="diagonal")


def _vocabulary(ids: pl.Series, seed: int, stream: str) -> NDArray[np.str_]:
    # Sorting first makes the permutation independent of the order of rows in the file.
    ordered = np.sort(ids.to_numpy().astype(np.str_))
    return ordered[generator(seed, "codes", stream).permutation(ordered.size)]


def _encode(column: pl.Series, ids: NDArray[np.str_]) -> pl.Series:
    table = pl.DataFrame({"id": ids, "code": np.arange(ids.size, dtype=np.int32)})
    return pl.DataFrame({"id": column}).join(table, on="id", how="left", maintain_order="left")["code"]
