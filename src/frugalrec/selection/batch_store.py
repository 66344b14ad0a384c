"""Finished batches on disk: an interrupted scoring goes on after the last one that was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from frugalrec.errors import StorageError
from frugalrec.runs import storage_errors
from frugalrec.types import FloatArray


class StoredBatches(MutableMapping[int, FloatArray]):
    """Finished batches in an SQLite file; each is written whole or not at all."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, norms BLOB)")

    def __getitem__(self, number: int) -> FloatArray:
        row = self.connection.execute("SELECT norms FROM batches WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return np.frombuffer(row[0], dtype="<f4")

    def __setitem__(self, number: int, norms: FloatArray) -> None:
        with self.connection:
            row = (number, norms.astype("<f4").tobytes())
            self.connection.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", row)

    def __delitem__(self, number: int) -> None:
        with self.connection:
            self.connection.execute("DELETE FROM batches WHERE number = ?", (number,))

    def __iter__(self) -> Iterator[int]:
        return (row[0] for row in self.connection.execute("SELECT number FROM batches ORDER BY number"))

    def __len__(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM batches").fetchone()[0])


@contextmanager
def stored(path: Path) -> Iterator[StoredBatches]:
    """Open a file of finished batches for the while; it is made where there is none.

    Raises:
        StorageError: If the file is damaged or cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path)
        try:
            yield StoredBatches(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"the cache {path} cannot be used: {error}. Free the disk if it is full, or delete the file; "
            "its batches will be computed again."
        ) from error
