"""Yes/no rows as arrays: title codes, like or dislike of each, and the target's code.

A row's text keeps the order of the liked titles and of the disliked ones, but not between the two lists.
They are spread evenly over the row: the i-th of m titles stands at (i - 1/2) / m, which is where a random
interleaving has it on average, and what a row becomes depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from frugalrec.data.readers.tallrec import PointwiseRows
from frugalrec.types import FloatArray, LongArray

UNKNOWN = 0
"""Code of every title that is not in the vocabulary."""
NEUTRAL = 0.5
"""Feedback where there is none: padding, and the unknown title that stands for an empty history."""


class TextEmbedder(Protocol):
    """Turns texts into vectors; `frugalrec.llm.encoders.SentenceEncoder` is one."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector a text, (n, width)."""


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Rows as arrays, padded at the end."""

    titles: LongArray
    """Title codes of the history, oldest first, (n, longest)."""
    feedback: FloatArray
    """1 where liked, 0 where disliked, 0.5 in a place that is padded, (n, longest)."""
    lengths: LongArray
    """Titles of each row, (n,); an empty history counts as one unknown title of neutral feedback."""
    targets: LongArray
    """Title code of the target, (n,)."""
    labels: FloatArray
    """1 where the target was liked, else 0, (n,)."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.targets.size)


def merged(liked: Iterable[str], disliked: Iterable[str]) -> list[tuple[str, bool]]:
    """Return titles and likes in one order, spread evenly; at equal places the liked one comes first.

    >>> merged(["a", "b", "c"], ["x"])
    [('a', True), ('b', True), ('x', False), ('c', True)]
    """
    lists = [(list(liked), True), (list(disliked), False)]
    placed = [
        ((2 * number + 1) / (2 * len(titles)), not like, number, title, like)
        for titles, like in lists
        for number, title in enumerate(titles)
    ]
    return [(title, like) for _, _, _, title, like in sorted(placed)]


def title_codes(rows: PointwiseRows) -> dict[str, int]:
    """Return a code from 1 on for each title of some rows, in alphabetical order."""
    titles = set(rows.targets).union(*rows.liked, *rows.disliked)
    return {title: code for code, title in enumerate(sorted(titles), start=UNKNOWN + 1)}


def encode(rows: PointwiseRows, codes: Mapping[str, int], max_length: int) -> EncodedRows:
    """Return rows as arrays.

    Args:
        rows: The rows.
        codes: Code of each known title, from 1 on.
        max_length: The most recent titles of a row that are kept.
    """
    histories = [
        merged(liked, disliked)[-max_length:]
        for liked, disliked in zip(rows.liked, rows.disliked, strict=True)
    ]
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(rows))
    longest = int(lengths.max(initial=1))
    titles = np.full((len(rows), longest), UNKNOWN, dtype=np.int64)
    feedback = np.full((len(rows), longest), NEUTRAL, dtype=np.float32)
    for row, history in enumerate(histories):
        for place, (title, like) in enumerate(history):
            titles[row, place] = codes.get(title, UNKNOWN)
            feedback[row, place] = like
    return EncodedRows(
        titles=titles,
        feedback=feedback,
        lengths=np.maximum(lengths, 1),
        targets=np.array([codes.get(title, UNKNOWN) for title in rows.targets], dtype=np.int64),
        labels=rows.labels.astype(np.float32),
    )
