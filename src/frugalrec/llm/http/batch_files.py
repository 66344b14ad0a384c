"""Batch files: questions out as JSON lines, answers back into the store; cheaper, with a day to wait.

The format is OpenAI's, which ``vllm run-batch`` and several hosts take as well: one request a line,
found again by its `custom_id`, the hash of the question.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import store
from frugalrec.llm.http.chat import HttpChat, request_size
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.profiles import CHAT, chat_body, encoded
from frugalrec.llm.http.replies import Reply, reply_from
from frugalrec.llm.http.spending import Size

MAX_REQUESTS = 50_000
MAX_BYTES = 100_000_000
"""What hosts take in one file."""
LONGEST_LINE = 8 << 20
ROWS = 500
"""Answers stored at a time."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_batch` wrote."""

    files: tuple[Path, ...]
    requests: int
    """Lines in all files."""
    left_out: int
    """Requests that are answered already, or equal to another."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What `import_batch` found. Every line and every request is counted once."""

    stored: int = 0
    """Answers that are new in the store."""
    known: int = 0
    """Lines whose question was answered before."""
    failed: int = 0
    """Lines that say that the request failed."""
    malformed: int = 0
    """Lines whose reply has no words."""
    broken: int = 0
    """Lines that are not JSON, not UTF-8, too long, or have no custom_id."""
    unknown: int = 0
    """Lines of questions that nobody asked."""
    duplicate: int = 0
    """Lines that repeat a custom_id; the first one counts."""
    missing: int = 0
    """Requests that have no answer, neither here nor from before."""


def export_batch(
    model: HttpChat,
    requests: Sequence[ChatRequest],
    path: Path,
    *,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> Exported:
    """Write the requests that have no answer yet to one or more files.

    Args:
        model: Whose bodies and whose store it is.
        requests: The questions.
        path: The first file; further ones get ``-2``, ``-3``... before the suffix.
        max_requests: Lines a file.
        max_bytes: Bytes a file.

    Raises:
        ConfigError: If a file is there already, or one request is larger than a file may be.
        StorageError: If a file cannot be written.
    """
    with Journal(model.client.file) as journal:
        missing = model.look_up(requests, journal).missing
    wanted = [(key, requests[number]) for key, number in missing.items()]
    lines = (_line(model, key, request) for key, request in wanted)
    files: list[Path] = []
    try:
        for part in _parts(lines, max_requests, max_bytes):
            file = path if not files else path.with_stem(f"{path.stem}-{len(files) + 1}")
            _write(file, part)
            files.append(file)
    except OSError as error:
        raise StorageError(
            f"the batch file cannot be written ({error}). Check the disk and the path."
        ) from None
    return Exported(files=tuple(files), requests=len(wanted), left_out=len(requests) - len(wanted))


def import_batch(model: HttpChat, paths: Path | Sequence[Path], requests: Sequence[ChatRequest]) -> Imported:
    """Read answers back into the store, where `HttpChat.chat` finds them. No line is fatal.

    Args:
        model: Whose store it is; it must have a file.
        paths: The answer files, in any order; importing one again changes nothing.
        requests: The questions that were exported.

    Raises:
        ConfigError: If the model has no file.
        DataError: If a file cannot be read.
    """
    if model.client.file is None:
        raise ConfigError("answers of a batch need a store; give the HttpChat a file.")
    model.client.spending.check()
    with Journal(model.client.file) as journal:
        found = model.look_up(requests, journal)
        sizes = {
            key: request_size(requests[number], model.client.endpoint) for key, number in found.first.items()
        }
        reader = _Reader(model, journal, sizes, found.known)
        for path in [paths] if isinstance(paths, Path) else paths:
            try:
                with path.open("rb") as stream:
                    reader.read(stream)
            except OSError as error:
                raise DataError(f"the batch file {path} cannot be read ({error}). Check the path.") from None
        return reader.result()


class _Reader:
    """Counts lines and stores what they say."""

    def __init__(
        self, model: HttpChat, journal: Journal, sizes: Mapping[str, Size], known: Mapping[str, str]
    ) -> None:
        self.model = model
        self.journal = journal
        self.sizes = sizes
        self.known = known
        self.seen: set[str] = set()
        self.answered: set[str] = set(known)
        self.counts = dict.fromkeys(("stored", "known", "failed", "malformed", "broken", "unknown"), 0)
        self.counts["duplicate"] = 0
        self.waiting: dict[str, Reply] = {}

    def read(self, stream: Any) -> None:
        """Read one file to its end."""
        for line in _lines(stream):
            if line is None or line.strip():
                self.counts[self._take(line)] += 1
            if len(self.waiting) >= ROWS:
                self._store()
        self._store()

    def result(self) -> Imported:
        """Return the counts."""
        return Imported(**self.counts, missing=len(set(self.sizes) - self.answered))

    def _take(self, line: bytes | None) -> str:
        """Return what a line is counted as."""
        try:
            row = json.loads((line or b"").decode("utf-8"))
        except (ValueError, RecursionError):
            return "broken"
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str):
            return "broken"
        if key not in self.sizes:
            return "unknown"
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        if key in self.known:
            return "known"
        response = row.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        if row.get("error") or not isinstance(body, dict) or response.get("status_code", 200) != 200:
            return "failed"
        reply = reply_from(body)
        self.waiting[key] = reply
        if reply.text is None:
            return "malformed"
        self.answered.add(key)
        return "stored"

    def _store(self) -> None:
        rows, self.waiting = self.waiting, {}
        now, spending = self.model.client.clock.time(), self.model.client.spending

        def write(connection: sqlite3.Connection) -> None:
            for key, reply in rows.items():
                # A reply without words was billed as well, but once: the file may be imported again.
                query = "SELECT 1 FROM chat_attempts WHERE key = ? AND outcome LIKE 'batch%'"
                if connection.execute(query, (key,)).fetchone() is None:
                    outcome = "batch" if reply.text is not None else f"batch: {reply.problem}"
                    spending.record(
                        connection, key=key, size=self.sizes[key], reply=reply, outcome=outcome, now=now
                    )
            texts = {key: reply.text for key, reply in rows.items() if reply.text is not None}
            store.remember(connection, texts, now)

        if rows:
            self.journal.run(write)


def _line(model: HttpChat, key: str, request: ChatRequest) -> bytes:
    body = chat_body(request, model.client.endpoint)
    return encoded({"custom_id": key, "method": "POST", "url": f"/v1{CHAT}", "body": body}) + b"\n"


def _parts(lines: Iterable[bytes], max_requests: int, max_bytes: int) -> Iterator[list[bytes]]:
    """Group lines into files."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if len(line) > max_bytes:
            raise ConfigError(
                f"one request takes {len(line)} bytes, more than a file of {max_bytes} may hold."
            )
        if part and (len(part) >= max_requests or size + len(line) > max_bytes):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


def _write(file: Path, lines: Sequence[bytes]) -> None:
    """Write a file whole or not at all."""
    if file.exists():
        raise ConfigError(
            f"{file} is there already, and may be on its way. Import its answers, or delete it to "
            f"export anew."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".part")
    with unfinished.open("wb") as stream:
        stream.writelines(lines)
    os.replace(unfinished, file)


def _lines(stream: Any) -> Iterator[bytes | None]:
    """Yield lines; None for one that is too long to be an answer."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass
        yield None
