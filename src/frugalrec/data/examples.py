"""Examples: (history window, target) rows in CSR form. One row is one "sample" in DEALRec's sense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.types import FloatArray, IntArray, LongArray


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows (user, history window, target, label?)."""

    users: IntArray
    """User code of each row, (m,)."""
    indptr: LongArray
    """Row pointers into `items`, (m + 1,)."""
    items: IntArray
    """History item codes of all rows, oldest first inside a row."""
    values: FloatArray | None
    """Values of the history items, or None."""
    targets: IntArray
    """Target item of each row, (m,)."""
    labels: FloatArray | None
    """Value of the target interaction, (m,), or None for implicit feedback."""
    times: LongArray | None = None
    """Time of the target interaction, (m,), Unix seconds, or None where only the order is known."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.users.size)

    def history(self, row: int) -> IntArray:
        """Return the history window of one row, oldest first."""
        return self.items[self.indptr[row] : self.indptr[row + 1]]

    def take(self, rows: NDArray[Any]) -> Examples:
        """Return the given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(self.indptr[rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return replace(
            self,
            users=self.users[rows],
            indptr=indptr,
            items=self.items[positions],
            values=None if self.values is None else self.values[positions],
            targets=self.targets[rows],
            labels=None if self.labels is None else self.labels[rows],
            times=None if self.times is None else self.times[rows],
        )


def examples(
    dataset: Dataset,
    *,
    window: int = 10,
    min_history: int = 1,
    per_user: Literal["last", "all"] = "last",
) -> Examples:
    """Cut a data set into examples: history of at most `window` items, then the target.

    Args:
        dataset: Usually the train fold.
        window: The longest history kept; older items fall away.
        min_history: The fewest history items a row must have.
        per_user: `last` gives one row per user, its last interaction as target (DEALRec, 1.7 of
            arXiv 2401.17197); `all` slides over every interaction.
    """
    if window < 1 or min_history < 0:
        raise ConfigError(f"window must be >= 1 and min_history >= 0, not {window} and {min_history}.")
    start = np.repeat(dataset.indptr[:-1], dataset.lengths)
    position = np.arange(dataset.n)
    keep = position - start >= min_history
    if per_user == "last":
        keep &= position == np.repeat(dataset.indptr[1:], dataset.lengths) - 1
    target = np.flatnonzero(keep)
    lengths = np.minimum(target - start[target], window)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    positions = np.repeat(target - lengths - indptr[:-1], lengths) + np.arange(indptr[-1])
    return Examples(
        users=dataset.rows[target],
        indptr=indptr,
        items=dataset.items[positions],
        values=None if dataset.values is None else dataset.values[positions],
        targets=dataset.items[target],
        labels=None if dataset.values is None else dataset.values[target],
        times=None if dataset.times is None else dataset.times[target],
    )
