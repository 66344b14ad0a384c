"""Columns and times: map a user's columns to ours by name, and any clock to Unix seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from frugalrec.data.dataset import FOLD, ITEM, TIME, TITLE, USER, VALUE
from frugalrec.data.readers.tables import blank_to_null
from frugalrec.errors import ConfigError, DataError

TimeUnit = Literal["s", "ms", "auto"]
Frames = tuple[pl.DataFrame, pl.DataFrame | None]
"""What a format function returns: interactions, and items where there are any."""

DAY = 86_400
COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    USER: ("user", "userid", "uid", "reviewerid", "memberid", "customerid", "visitorid", "sessionid"),
    ITEM: (
        "item", "itemid", "iid", "movieid", "parentasin", "productid", "asin", "videoid", "bookid",
        "isbn", "articleid", "newsid", "gameid", "trackid",
    ),
    VALUE: ("value", "rating", "stars", "overall", "score", "bookrating"),
    TIME: ("time", "timestamp", "ts", "unixreviewtime", "datetime", "date", "createdat"),
    FOLD: ("fold", "split"),
    TITLE: ("title", "name", "movietitle", "itemname", "itemtitle", "productname", "producttitle"),
}  # fmt: skip
"""Column names guessed for each role: lower case, letters and digits only, best first."""

FOLD_NAMES = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the caller of `read` said about the files."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Role (user, item, value, time, fold) -> column name; the others are guessed."""
    items: Path | None = None
    """File with the items' texts, where it is not beside the interactions."""
    item_columns: Mapping[str, str] = field(default_factory=dict)
    """Role (item, title) -> column name in the items file."""
    time_unit: TimeUnit = "auto"
    encoding: str = "utf-8"
    """Encoding of CSV and plain text files."""
    name: str = "data"
    """Name for error messages."""


def assign(names: Sequence[str], given: Mapping[str, str], roles: Sequence[str], what: str) -> dict[str, str]:
    """Find a column for each role: the given one, else the best common name; absent roles are left out.

    Raises:
        ConfigError: If `given` names an unknown role.
        DataError: If `given` names a column that is not there.
    """
    if unknown := [role for role in given if role not in roles]:
        raise ConfigError(f"unknown column role {unknown[0]!r}; choose among {', '.join(roles)}.")
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    found: dict[str, str] = {}
    for role in roles:
        if role in given:
            if given[role] not in names:
                raise DataError(
                    f"{what}: no column {given[role]!r} for the {role}; the columns are {', '.join(names)}."
                )
            found[role] = given[role]
            continue
        free = (plain[common] for common in COMMON_NAMES[role] if common in plain)
        guess = next((name for name in free if name not in given.values()), None)
        if guess is not None:
            found[role] = guess
    return found


def interactions(frame: pl.DataFrame, options: ReadOptions) -> pl.DataFrame:
    """Return the frame with our column names, ids without blanks, and times in Unix seconds."""
    roles = assign(frame.columns, options.columns, (USER, ITEM, VALUE, TIME, FOLD), options.name)
    for role in (USER, ITEM):
        if role not in roles:
            raise DataError(
                f"{options.name}: cannot tell which column is the {role} among {', '.join(frame.columns)}. "
                f"Map it, for example --column {role}={frame.columns[0]}."
            )
    frame = frame.select(pl.col(column).alias(role) for role, column in roles.items())
    frame = blank_to_null(_plain(frame, options.name)).with_columns(
        _identifier(frame[USER]), _identifier(frame[ITEM])
    )
    if VALUE in roles and frame[VALUE].dtype == pl.String:
        frame = frame.with_columns(pl.col(VALUE).str.strip_chars())
    if FOLD in roles:
        frame = frame.with_columns(_folds(frame[FOLD], options.name))
    if TIME not in roles or frame.height == 0:
        return frame.drop(TIME, strict=False)
    seconds, exact = to_seconds(frame[TIME], options.time_unit, options.name)
    return _in_exact_order(frame.with_columns(seconds.alias(TIME)), exact)


def item_texts(frame: pl.DataFrame, options: ReadOptions, *, what: str) -> pl.DataFrame:
    """Return an items frame with our names for the id and the title; other columns stay as they are."""
    given = dict(options.item_columns)
    plain_item = options.columns.get(ITEM)
    if ITEM not in given and plain_item in frame.columns and plain_item is not None:
        given[ITEM] = plain_item
    roles = assign(frame.columns, given, (ITEM, TITLE), what)
    if ITEM not in roles:
        raise DataError(
            f"{what}: cannot tell which column is the item id among {', '.join(frame.columns)}. "
            f"Map it, for example --item-column item={frame.columns[0]}."
        )
    names = {column: role for role, column in roles.items()}
    clashes = {c: f"{c}_given" for c in frame.columns if c in (ITEM, TITLE) and c not in names}
    frame = blank_to_null(frame.rename(clashes).rename(names))
    if TITLE in roles:
        frame = frame.with_columns(pl.col(TITLE).cast(pl.String))
    return frame.with_columns(_identifier(blank_to_null(frame)[ITEM]))


def _plain(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the frame with categories as text; refuse lists and structs."""
    for column, dtype in frame.schema.items():
        if dtype.is_nested():
            raise DataError(f"{name}: the {column} column holds {dtype}; give one plain value a row.")
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def to_seconds(column: pl.Series, unit: TimeUnit, name: str) -> tuple[pl.Series, pl.Series]:
    """Turn numbers, ISO dates or datetimes into Unix seconds.

    Args:
        column: Numbers, numbers or dates as text, dates, or datetimes (without a zone: UTC).
        unit: Unit of numbers; `auto` takes seconds unless every value is too large for them.
        name: Name of the data set, for messages.

    Returns:
        Seconds (int64) and the exact values, whose order tells apart events of the same second.

    Raises:
        DataError: If a value is neither a number nor a date, or lies later than tomorrow.
    """
    if unit not in ("s", "ms", "auto"):
        raise ConfigError(f"unknown time unit {unit!r}; choose s, ms or auto.")
    if column.dtype.is_temporal():
        exact, factor = _microseconds(column), 1_000_000
    else:
        exact = _numbers(column)
        dated = exact.null_count() == exact.len() and column.dtype == pl.String
        exact, factor = (_parsed_dates(column), 1_000_000) if dated else (exact, _factor(exact, unit))
    if exact.null_count():
        row = int(exact.is_null().arg_max() or 0)
        raise DataError(
            f"{name}: the time {column[row]!r} in data row {row + 1} is neither a number nor an ISO date "
            f"such as 2024-05-31 or 2024-05-31T12:00:00Z. Correct {exact.null_count()} such row(s)."
        )
    seconds = (exact // factor).cast(pl.Int64)
    _refuse_future(seconds, column, name)
    return seconds, exact


def _numbers(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    whole = column.cast(pl.Int64, strict=False)
    if whole.null_count() == column.null_count() and not column.dtype.is_float():
        return whole
    numbers = column.cast(pl.Float64, strict=False)
    countable = numbers.is_finite() & (numbers.abs() < 9e18)
    return pl.select(pl.when(countable).then(numbers)).to_series()


def _factor(exact: pl.Series, unit: TimeUnit) -> int:
    if unit != "auto":
        return 1000 if unit == "ms" else 1
    least = float(exact.min() or 0)  # type: ignore[arg-type]
    # 1e11 seconds is the year 5138, 1e11 milliseconds is 1973: no real clock is ambiguous.
    return next((f for limit, f in ((1e17, 10**9), (1e14, 10**6), (1e11, 1000)) if least >= limit), 1)


def _microseconds(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if column.dtype not in (pl.Date, pl.Datetime):
        return pl.Series([None] * column.len(), dtype=pl.Int64)
    return column.cast(pl.Datetime("us")).dt.epoch("us")


def _parsed_dates(column: pl.Series) -> pl.Series:
    text = pl.Series("t", column.str.strip_chars())
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d)T", "${1} ").str.replace(r"(?:Z| UTC)$", "+00:00")
    text = text.str.replace(r"^(\d{4}[-/]\d\d[-/]\d\d)$", "${1} 00:00:00")
    parsed = (_microseconds(text.str.to_datetime(f, strict=False, time_unit="us")) for f in DATE_FORMATS)
    return pl.select(pl.coalesce(*parsed)).to_series()


def _refuse_future(seconds: pl.Series, column: pl.Series, name: str) -> None:
    limit = int(time.time()) + DAY
    row = int(seconds.arg_max() or 0)
    latest = int(seconds[row])
    if latest <= limit:
        return
    remedy = "Correct the row, or leave the time column out."
    if latest // 1000 <= limit and latest >= 10**11:
        remedy = "It looks like milliseconds: use --time-unit ms, and one unit in all rows."
    raise DataError(
        f"{name}: the time {column[row]!r} in data row {row + 1} means {day(latest)}, "
        f"which lies in the future. {remedy}"
    )


def day(seconds: int) -> str:
    """Return the UTC date of a Unix time; beyond the year 9999, the year alone."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"the year {1970 + int(seconds / 31_556_952)}"


def _in_exact_order(frame: pl.DataFrame, exact: pl.Series) -> pl.DataFrame:
    """Sort by the exact time, so that events within one second keep their order.

    Frames with a bad cell stay unsorted: the error about it names a row of the file.
    """
    bad = frame[USER].null_count() + frame[ITEM].null_count()
    if VALUE in frame.columns:
        bad += frame[VALUE].cast(pl.Float32, strict=False).null_count()
    if bad or (exact == frame[TIME]).all():
        return frame
    return frame.with_columns(exact.alias("_exact")).sort("_exact", maintain_order=True).drop("_exact")


def _identifier(column: pl.Series) -> pl.Series:
    """Return ids without the `.0` that a column with gaps gets elsewhere; blanks become null."""
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == column.null_count() and (whole == column).all():
            return whole
    if column.dtype == pl.String:
        return pl.select(pl.when(column != "").then(column).alias(column.name)).to_series()
    return column


def _folds(column: pl.Series, name: str) -> pl.Series:
    codes = column.cast(pl.String).str.to_lowercase().replace(FOLD_NAMES).cast(pl.Float64, strict=False)
    bad = ~codes.is_in([0.0, 1.0, 2.0]).fill_null(False)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"{name}: the fold {column[row]!r} in data row {row + 1} is not 0, 1, 2, train, valid or test."
        )
    return codes.cast(pl.Int8)
