"""TALLRec's prompt files: read them, score them by counting, and rebuild the published movie split.

A row asks whether a user who liked some titles and disliked others will like a target title
(arXiv 2305.00447). The share of liked titles in the prompt's own history needs no training and no
LLM, and is the bar that a tuned model has to clear.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.dataset import FOLD, ITEM, TITLE, USER, VALUE
from frugalrec.data.readers import tables
from frugalrec.data.readers.columns import Frames, ReadOptions
from frugalrec.data.splits import TEST, TRAIN
from frugalrec.errors import DataError
from frugalrec.types import BoolArray, DoubleArray, IntArray, LongArray

T = TypeVar("T")

LIKED, DISLIKED = "User Preference: ", "User Unpreference: "
QUESTION = re.compile(r'Whether the user will like the target \w+ "(?P<target>.*)"\?\s*', re.DOTALL)
AUTHOR = '" written by '
LABELS = {"yes": True, "no": False}

MOVIE_INSTRUCTION = (
    "Given the user's preference and unpreference, identify whether the user will like the "
    'target movie by answering "Yes." or "No.".'
)
WINDOW, KEPT, LIKED_ABOVE = 10, 10_000, 3
"""The published preparation: history length, rows kept from the end of the list, rating threshold."""


@dataclass(frozen=True, kw_only=True)
class PointwiseRows:
    """Yes/no rows: titles liked and disliked before, a target title, and whether it was liked."""

    liked: tuple[tuple[str, ...], ...]
    """Liked titles of each row, oldest first."""
    disliked: tuple[tuple[str, ...], ...]
    """Disliked titles of each row, oldest first."""
    targets: tuple[str, ...]
    """Target title of each row; books read ``"Title" written by Author``."""
    labels: BoolArray
    """True where the target was liked, (n,)."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.targets)

    def take(self, rows: NDArray[Any]) -> PointwiseRows:
        """Return some rows, in the given order."""
        numbers = [int(row) for row in rows]
        return PointwiseRows(
            liked=tuple(self.liked[row] for row in numbers),
            disliked=tuple(self.disliked[row] for row in numbers),
            targets=tuple(self.targets[row] for row in numbers),
            labels=self.labels[numbers],
        )

    @cached_property
    def n_liked(self) -> LongArray:
        """Number of liked titles of each row, (n,)."""
        return np.fromiter(map(len, self.liked), dtype=np.int64, count=len(self))

    @cached_property
    def n_disliked(self) -> LongArray:
        """Number of disliked titles of each row, (n,)."""
        return np.fromiter(map(len, self.disliked), dtype=np.int64, count=len(self))


def read_prompts(path: Path | str) -> PointwiseRows:
    """Read a prompt file: a JSON array of objects with `instruction`, `input` and `output`.

    Raises:
        DataError: If the file is not such an array, or a row does not follow the published pattern.
    """
    path = Path(path)
    text = tables.decode(tables.read_bytes(path), path, "utf-8")
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); fetch the file again.") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a non-empty JSON array of prompt rows.")
    return parse_prompts(rows, name=str(path))


def read_dataset(path: Path, options: ReadOptions) -> Frames:
    """Read prompts as interactions: a row is a user, a title an item, Yes is 1 and No is 0.

    History is train and the target is test. Within a row the published text keeps the order of the
    liked and of the disliked titles, but not between them: liked ones come first here.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    files = [file for file in files if file.name != "dataset.json"]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{path}: expected one prompt file (.json), found {found}; name one of them.")
    rows = read_prompts(files[0])
    columns: dict[str, list[Any]] = {USER: [], ITEM: [], VALUE: [], FOLD: []}
    for number, (liked, disliked) in enumerate(zip(rows.liked, rows.disliked, strict=True)):
        events = [(title, 1.0, TRAIN) for title in liked] + [(title, 0.0, TRAIN) for title in disliked]
        events.append((rows.targets[number], float(rows.labels[number]), TEST))
        for title, value, fold in events:
            for column, cell in zip(columns, (f"row-{number + 1}", title, value, fold), strict=True):
                columns[column].append(cell)
    interactions = pl.DataFrame(columns)
    titles = interactions.select(ITEM).unique(maintain_order=True)
    return interactions, titles.with_columns(pl.col(ITEM).alias(TITLE))


def parse_prompts(rows: Sequence[Any], *, name: str = "prompts") -> PointwiseRows:
    r"""Parse rows of `instruction`, `input` and `output`.

    >>> row = {"input": 'User Preference: "A"\nUser Unpreference: \nWhether the user will like '
    ...                 'the target movie "B"?', "output": "Yes."}
    >>> parse_prompts([row]).liked
    (('A',),)
    """
    parsed = [_parse(row, f"{name}, row {number}") for number, row in enumerate(rows, start=1)]
    return PointwiseRows(
        liked=tuple(row[0] for row in parsed),
        disliked=tuple(row[1] for row in parsed),
        targets=tuple(row[2] for row in parsed),
        labels=np.array([row[3] for row in parsed], dtype=np.bool_),
    )


def history_like_rate(rows: PointwiseRows, *, smoothing: float = 0.0) -> DoubleArray:
    """Return the share of liked titles in each row's own history, (n,), between 0 and 1.

    Args:
        rows: The rows; their labels are not looked at.
        smoothing: Pseudo-count of likes and of dislikes. A row without history scores 0.5.
    """
    likes = rows.n_liked + smoothing
    total = rows.n_liked + rows.n_disliked + 2 * smoothing
    rate: DoubleArray = np.divide(likes, total, out=np.full(len(rows), 0.5), where=total > 0)
    return rate


def rebuild_movie_split(ml100k: Path | str) -> dict[str, bytes]:
    """Rebuild TALLRec's three movie files from MovieLens 100K, byte for byte.

    The published train file cannot be had, yet follows from the data: the steps, flaws included,
    are theirs. The last 10,000 rows of a list in order of users' first appearance are cut 8:1:1 by
    position, so this is nearly a split by user, with 16 users in test, and not one by time.

    Args:
        ml100k: Folder with `u.data` and `u.item`.

    Returns:
        The content of `train.json`, `valid.json` and `test.json`, by fold name.
    """
    lines = (line.split("|", 2) for line in tables.text_lines(Path(ml100k) / "u.item", "latin-1"))
    titles = {line[0]: line[1] for line in lines}
    windows = _movie_windows(Path(ml100k))
    rows = [_movie_row([(titles[item], like) for item, like, _ in events]) for _, events in windows]
    return {fold: json.dumps(part, indent=4).encode() for fold, part in _cut(rows).items()}


def movie_users(ml100k: Path | str) -> dict[str, IntArray]:
    """Return the MovieLens user of each row of `rebuild_movie_split`, by fold name.

    The files themselves do not say whose a row is; AUC within users, and intervals over users, need it.
    """
    users = [int(user) for user, _ in _movie_windows(Path(ml100k))]
    return {fold: np.array(part, dtype=np.int32) for fold, part in _cut(users).items()}


def _movie_windows(folder: Path) -> list[tuple[str, list[tuple[str, bool, str]]]]:
    """Return (user, ten events and the one that follows) of each published row."""
    users: dict[str, list[tuple[str, bool, str]]] = {}
    for line in tables.text_lines(folder / "u.data"):
        user, item, rating, timestamp = line.split("\t")
        users.setdefault(user, []).append((item, int(rating) > LIKED_ABOVE, timestamp))
    windows = []
    for user, events in users.items():
        events.sort(key=lambda event: event[2])
        windows += [(user, events[at - WINDOW : at + 1]) for at in range(WINDOW, len(events))]
    return windows[-KEPT:]


def _cut(rows: list[T]) -> dict[str, list[T]]:
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    return {"train": rows[:first], "valid": rows[first:second], "test": rows[second:]}


def git_blob_sha1(content: bytes) -> str:
    """Return the SHA-1 under which git stores a file of this content.

    >>> git_blob_sha1(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


def _movie_row(events: list[tuple[str, bool]]) -> dict[str, str]:
    def listed(wanted: bool) -> str:
        return ", ".join(f'"{title}"' for title, like in events[:-1] if like is wanted)

    target, label = events[-1]
    return {
        "instruction": MOVIE_INSTRUCTION,
        "input": f"{LIKED}{listed(True)}\n{DISLIKED}{listed(False)}\n"
        f'Whether the user will like the target movie "{target}"?',
        "output": "Yes." if label else "No.",
    }


def _parse(row: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...], str, bool]:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("input", "output")):
        raise DataError(f"{where}: expected an object with texts 'input' and 'output', not {row!r:.80}.")
    label = LABELS.get(row["output"].strip().rstrip(".").lower())
    if label is None:
        raise DataError(f"{where}: the output is {row['output']!r:.40}, not 'Yes.' or 'No.'.")
    body = row["input"].removeprefix(LIKED)
    liked, found, rest = body.partition(f"\n{DISLIKED}")
    # Titles may hold newlines, so the question is the last line that looks like one.
    at = rest.rfind("\nWhether the user will like the target ")
    question = QUESTION.fullmatch(rest[at + 1 :]) if at >= 0 else None
    if body == row["input"] or not found or question is None:
        raise DataError(
            f"{where}: the input does not read '{LIKED}...', '{DISLIKED}...' and 'Whether the user will "
            f'like the target ... "..."?\' on lines of their own: {row["input"][:80]!r}.'
        )
    target = question["target"]
    if AUTHOR in target:
        target = target if target.startswith('"') else f'"{target}'
    return _titles(liked), _titles(rest[:at]), target, label


def _titles(text: str) -> tuple[str, ...]:
    """Split `"A", "B"` or `"A" written by X, "B" written by Y`; titles may hold quotes and commas."""
    text = text.strip()
    if not text:
        return ()
    pieces = text.split(', "')
    if AUTHOR in text:
        return tuple(_with_authors(pieces))
    return tuple(piece.removesuffix('"') for piece in [pieces[0].removeprefix('"'), *pieces[1:]])


def _with_authors(pieces: list[str]) -> list[str]:
    """Join pieces until each names an author: `, "` inside a title does not end the book."""
    books: list[str] = []
    pending = pieces[0]
    for piece in pieces[1:]:
        if AUTHOR in pending:
            books.append(pending)
            pending = f'"{piece}'
        else:
            pending = f'{pending}, "{piece}'
    if AUTHOR in pending or not books:
        return [*books, pending]
    books[-1] = f"{books[-1]}, {pending}"  # the tail of the last author's name
    return books
