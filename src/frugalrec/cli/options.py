"""Options that several commands share, declared once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.errors import ConfigError

Source = Annotated[
    str, typer.Argument(metavar="DATA", help="A file, a folder, or film-club (simulated, built in).")
]
Format = Annotated[str, typer.Option("--format", help="Reader; auto recognises most formats.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="Map user, item, value or time to a column."),
]
Items = Annotated[Path | None, typer.Option("--items", help="A table of item texts (CSV, Parquet, JSONL).")]
ItemColumns = Annotated[
    list[str] | None,
    typer.Option("--item-column", metavar="NAME=COLUMN", help="Map item or title to a column of --items."),
]
Encoding = Annotated[str, typer.Option("--encoding", help="Text encoding of CSV files.")]
TimeUnit = Annotated[str, typer.Option("--time-unit", help="Unit of the time column: auto, s or ms.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random stream.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NAME", help="Go on in spite of this audit finding, knowingly."),
]
SplitName = Annotated[str, typer.Option("--split", help="auto, time, user-time, leave-last-out or given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]


def mapping(pairs: list[str] | None, option: str) -> dict[str, str]:
    """Turn ``["user=uid"]`` into ``{"user": "uid"}``.

    Raises:
        ConfigError: If a pair has no ``=``.
    """
    result: dict[str, str] = {}
    for pair in pairs or []:
        name, separator, column = pair.partition("=")
        if not separator or not name or not column:
            raise ConfigError(f"{option} {pair!r} is not NAME=COLUMN, such as {option} user=customer_id.")
        result[name] = column
    return result


def show_json(content: Any) -> None:
    """Print a JSON document on standard output."""
    typer.echo(json.dumps(content, indent=2, default=str, ensure_ascii=False))
