"""The answer cache: what the LLM has said of a prompt is never asked again, not even after a kill."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from frugalrec.errors import StorageError
from frugalrec.ledger import Usage


class AnswerCache:
    """Log-odds by prompt, in one SQLite file; each `put` is durable when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        """Open the file, or create it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path)
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, odds REAL)")
            self._connection.execute("CREATE TABLE IF NOT EXISTS spent (usage TEXT)")
            self._connection.commit()
        except (OSError, sqlite3.Error) as error:
            self.__exit__(None, None, None)
            raise self._trouble(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        """Return the known answers among `keys`."""
        try:
            found = {}
            for key in keys:
                row = self._open.execute("SELECT odds FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = float(row[0])
            return found
        except sqlite3.Error as error:
            raise self._trouble(error) from None

    def put(self, answers: Mapping[bytes, float], usage: Usage) -> None:
        """Store answers and what they cost, in one transaction."""
        try:
            with self._open as connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())
                connection.execute("INSERT INTO spent VALUES (?)", (json.dumps(usage.to_dict()),))
        except sqlite3.Error as error:
            raise self._trouble(error) from None

    def spent(self) -> Usage:
        """Return what all stored answers cost together, those of earlier calls included."""
        try:
            rows = self._open.execute("SELECT usage FROM spent").fetchall()
            return sum((Usage.from_dict(json.loads(row[0])) for row in rows), Usage())
        except sqlite3.Error as error:
            raise self._trouble(error) from None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"the answer cache {self.path} is not open; use it in a with block.")
        return self._connection

    def _trouble(self, error: Exception) -> StorageError:
        return StorageError(
            f"the answer cache {self.path} cannot be used ({error}). "
            f"Check the disk and that no other run uses the file, or delete it; "
            f"the answers will then be asked again."
        )


def answer_key(fingerprint: str, prompt: str, answers: tuple[str, str]) -> bytes:
    """Return the cache key: it changes with the model, its adapter, the prompt and the answers."""
    digest = hashlib.sha256()
    for part in (fingerprint, prompt, *answers):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()
