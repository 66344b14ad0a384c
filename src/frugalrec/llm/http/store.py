"""The answers that a file remembers: by the hash of their question, for as long as they are trusted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from frugalrec.llm.http.journal import Journal


def known(journal: Journal, keys: Iterable[str], *, now: float, ttl_s: float | None = None) -> dict[str, str]:
    """Return key -> text for those of `keys` that were answered, within the last `ttl_s` seconds if given."""
    since = float("-inf") if ttl_s is None else now - ttl_s
    wanted = list(keys)

    def read(connection: sqlite3.Connection) -> dict[str, str]:
        found = {}
        query = "SELECT text FROM chat_answers WHERE key = ? AND created >= ?"
        for key in wanted:
            row = connection.execute(query, (key, since)).fetchone()
            if row is not None:
                found[key] = str(row[0])
        return found

    return journal.run(read)


def remember(connection: sqlite3.Connection, answers: Mapping[str, str], now: float) -> None:
    """Store answers; within an operation of the journal."""
    rows = [(key, text, now) for key, text in answers.items()]
    connection.executemany("INSERT OR REPLACE INTO chat_answers VALUES (?, ?, ?)", rows)
