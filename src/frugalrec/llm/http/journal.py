"""One SQLite file for answers and spending; what is written is on the disk before anyone goes on."""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from frugalrec.errors import FrugalrecError, StorageError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
"""Reads or writes within a transaction that it must not end; raises before it writes, or not at all."""

TABLES = (
    # Answers by the hash of their question. No user, no prompt.
    """CREATE TABLE IF NOT EXISTS chat_answers (
        key TEXT PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL)""",
    # One row an attempt. Amounts are what counts against a cap: the bound until the attempt is settled.
    """CREATE TABLE IF NOT EXISTS chat_attempts (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, started REAL NOT NULL, outcome TEXT NOT NULL,
        calls INTEGER NOT NULL, tokens INTEGER NOT NULL, nanoseconds INTEGER NOT NULL, nanomoney INTEGER,
        estimated_in INTEGER NOT NULL, estimated_out INTEGER NOT NULL,
        reported_in INTEGER, reported_out INTEGER, reported_cached INTEGER)""",
    "CREATE INDEX IF NOT EXISTS chat_attempts_of_key ON chat_attempts (key)",
    "CREATE TABLE IF NOT EXISTS chat_totals (unit TEXT PRIMARY KEY, amount INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS chat_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # Hashes of the lines of batch files whose cost is on record: a file may be imported again.
    "CREATE TABLE IF NOT EXISTS chat_batch_lines (line TEXT PRIMARY KEY)",
)
GROUP = 256
"""Operations that may share one transaction, and so one wait for the disk."""
PATIENCE_S = 60.0
"""How long another process may hold the file."""


class Journal:
    """The file, written by one thread that commits what has gathered while it waited for the disk."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        """None keeps everything in memory, until the end of the with block."""
        self._queue: queue.SimpleQueue[tuple[Operation[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Open the file, or create it."""
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(opened,), daemon=True)
        self._thread.start()
        try:
            opened.result()
        except (OSError, sqlite3.Error, ValueError) as error:  # ValueError: no path can be like that
            self._thread = None
            raise self._trouble(error) from None
        except BaseException:
            self._thread = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is queued and close the file."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def run(self, operation: Operation[T]) -> T:
        """Do it, and wait until it is on the disk."""
        return self._submit(operation).result()

    async def write(self, operation: Operation[T]) -> T:
        """Do it, and let others work until it is on the disk."""
        return await asyncio.wrap_future(self._submit(operation))

    def _submit(self, operation: Operation[T]) -> Future[T]:
        if self._thread is None:
            raise StorageError(f"the journal {self.path} is not open; use it in a with block.")
        future: Future[T] = Future()
        self._queue.put((operation, future))
        return future

    def _work(self, opened: Future[None]) -> None:
        try:
            connection = self._open()
        except BaseException as error:  # carried over to the thread that waits
            opened.set_exception(error)
            return
        opened.set_result(None)
        with closing(connection):
            going = True
            while going:
                jobs = [self._queue.get()]
                with suppress(queue.Empty):
                    while len(jobs) < GROUP:
                        jobs.append(self._queue.get_nowait())
                going = None not in jobs
                self._commit(connection, [job for job in jobs if job is not None])

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Answers may be personal: nobody else needs to read them.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=PATIENCE_S)
        try:
            if self.path is not None:
                _use_log(connection)
            connection.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                connection.execute(table)
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _commit(self, connection: sqlite3.Connection, jobs: list[tuple[Operation[Any], Future[Any]]]) -> None:
        """Do some operations in one transaction, then tell those who wait for them."""
        jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
        if not jobs:
            return
        results: list[tuple[Any, FrugalrecError | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for operation, _ in jobs:
                try:
                    results.append((operation(connection), None))
                except FrugalrecError as error:
                    results.append((None, error))
            connection.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must hear of it
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            told = self._trouble(error) if isinstance(error, sqlite3.Error) else error
            for _, future in jobs:
                future.set_exception(told)
            return
        for (_, future), (result, trouble) in zip(jobs, results, strict=True):
            if trouble is None:
                future.set_result(result)
            else:
                future.set_exception(trouble)

    def _trouble(self, error: Exception) -> StorageError:
        return StorageError(
            f"the file of answers and spending {self.path} cannot be used ({error}). Check the disk and "
            f"the path. Deleting the file forgets what was spent, and asks every question again."
        )


def _use_log(connection: sqlite3.Connection) -> None:
    """Write ahead, and wait for the disk at each commit: neither a kill nor a power cut undoes one."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # The switch does not wait for other processes that open the file just now.
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.05)
    connection.execute("PRAGMA synchronous = FULL")
