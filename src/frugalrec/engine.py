"""Maps a function over batches; what is finished lies on disk, so that a killed call goes on from there.

This is the one place where the batches of a registered scorer meet a machine. Here one process computes
them one after the other; another engine has to keep only what `map_batches` promises.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np

from frugalrec.errors import StorageError
from frugalrec.runs import storage_errors
from frugalrec.types import FloatArray

Batch = TypeVar("Batch")


def map_batches(
    function: Callable[[Batch], FloatArray],
    batches: Iterable[Batch],
    *,
    rows: int,
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Batch, FloatArray]]:
    """Yield every batch with its result, in the order of the batches.

    Args:
        function: Returns one float32 per row of a batch; it sees nothing but the batch.
        batches: The batches, the same ones in the same order whenever `store` is the same.
        rows: Rows in all batches together.
        store: A file of finished results; a batch whose result is there is not computed again. Its name
            must hold a hash of everything that decides the results. Default: nothing is kept.
        progress: Is told of (rows done, rows in all) after each batch, once its result is kept.

    Raises:
        StorageError: If the store is damaged or cannot be written.
    """
    done = 0
    with nullcontext() if store is None else _opened(store) as finished:
        for number, batch in enumerate(batches):
            result = None if finished is None else finished.get(number)
            if result is None:
                result = function(batch)
                if finished is not None:
                    finished.put(number, result)
            done += result.size
            if progress is not None:
                progress(done, rows)
            yield batch, result


class _Results:
    """Results by number of the batch, in an SQLite file; each is written whole or not at all."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, result BLOB)")

    def get(self, number: int) -> FloatArray | None:
        row = self.connection.execute("SELECT result FROM batches WHERE number = ?", (number,)).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype="<f4")

    def put(self, number: int, result: FloatArray) -> None:
        with self.connection:
            self.connection.execute(
                "INSERT INTO batches VALUES (?, ?)", (number, result.astype("<f4").tobytes())
            )


@contextmanager
def _opened(path: Path) -> Iterator[_Results]:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path)
        try:
            yield _Results(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"the cache {path} cannot be used: {error}. Free the disk if it is full, or delete the file; "
            "its batches will be computed again."
        ) from error
