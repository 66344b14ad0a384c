"""Batch files: questions out as JSON lines, answers back into the store; cheaper, with a day to wait.

The format is OpenAI's, which ``vllm run-batch`` and several hosts take as well: one request a line,
found again by its `custom_id`, the hash of the question.
"""

from __future__ import annotations

import hashlib
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
    """Lines whose question was answered before; that answer stays, but the line was paid for as well."""
    failed: int = 0
    """Lines that say that the request failed."""
    malformed: int = 0
    """Lines whose reply has no words."""
    broken: int = 0
    """Lines that are not JSON, not UTF-8, too long, or have no custom_id."""
    unknown: int = 0
    """Lines of questions that nobody asked."""
    duplicate: int = 0
    """Lines that repeat the custom_id of an answer in these files; the first one counts."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A line that holds a reply, and so was paid for."""

    key: str
    digest: str
    """Hash of the line; tells it from another reply to the same question."""
    reply: Reply
    counted_as: str


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
        self.waiting: list[_Line] = []

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
        line = (line or b"").strip()
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return "broken"
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str):
            return "broken"
        if key not in self.sizes:
            return "unknown"
        response = row.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        if row.get("error") or not isinstance(body, dict) or response.get("status_code", 200) != 200:
            return self._repeated(key) or "failed"
        reply = reply_from(body)
        counted_as = self._repeated(key) or ("malformed" if reply.text is None else "stored")
        digest = hashlib.sha256(line).hexdigest()  # the host's ids of the reply are in it
        self.waiting.append(_Line(key=key, digest=digest, reply=reply, counted_as=counted_as))
        if counted_as == "stored":
            self.answered.add(key)
        return counted_as

    def _repeated(self, key: str) -> str | None:
        """Return what a line is counted as if its question has an answer; the first line uses up that."""
        if key not in self.answered:
            return None
        first = key in self.known and key not in self.seen
        self.seen.add(key)
        return "known" if first else "duplicate"

    def _store(self) -> None:
        lines, self.waiting = self.waiting, []
        now = self.model.client.clock.time()

        def write(connection: sqlite3.Connection) -> None:
            for line in lines:
                self._record(connection, line, now)
            texts = {line.key: line.reply.text or "" for line in lines if line.counted_as == "stored"}
            store.remember(connection, texts, now)

        if lines:
            self.journal.run(write)

    def _record(self, connection: sqlite3.Connection, line: _Line, now: float) -> None:
        """Book a line's cost once, also where its answer is of no use."""
        query = "INSERT OR IGNORE INTO chat_batch_lines VALUES (?)"
        if connection.execute(query, (line.digest,)).rowcount:
            problem = line.reply.problem or ("" if line.counted_as == "stored" else "answered already")
            outcome = f"batch: {problem}" if problem else "batch"
            self.model.client.spending.record(
                connection,
                key=line.key,
                size=self.sizes[line.key],
                reply=line.reply,
                outcome=outcome,
                now=now,
            )


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
    unfinished.unlink(missing_ok=True)
    # Histories are personal: nobody else needs to read them.
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.writelines(lines)
        stream.flush()
        os.fsync(stream.fileno())  # else a power cut could leave an empty file under the final name
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
