"""Runs on disk: stages keyed by a hash, written aside and renamed, so that a killed run resumes.

    runs/<name>/<stage>/...        finished artefacts (npz, parquet, safetensors, JSON; never pickle)
    runs/<name>/<stage>/stage.json the key, its hash and what the stage spent
    runs/<name>/.work/...          unfinished stages: checkpoints and caches survive a kill here

A stage is reused when the hash of its key (configuration and the hashes of its inputs) is the same;
a changed option re-runs only what depends on it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.ledger import Ledger, Meter, Usage, measure

STAGE_FILE = "stage.json"
ATTEMPT_FILE = "attempt.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One finished stage on disk."""

    name: str
    path: Path
    hash: str
    """Hash of the key; enters the keys of the stages that read this one."""
    usage: Usage
    reused: bool
    """True if the stage was found finished, and nothing was computed."""


def key_hash(key: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON-ready key, independent of the order of its fields."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path.parent)).encode() + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a `StorageError` that says what is safe."""
    try:
        yield
    except OSError as error:
        # Libraries that write through C++ (safetensors, parquet) report a full disk without errno.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full and error.errno not in (errno.EROFS, errno.EACCES):
            raise
        reason = "the disk is full" if full else error.strerror
        raise StorageError(
            f"cannot write to {path}: {reason}. Finished stages are intact; "
            f"make room (or choose another --out) and give the same command again to go on."
        ) from error


class Observer:
    """Is told how a run goes on; this one keeps silent. The command line shows progress bars."""

    def started(self, name: str) -> None:
        """A stage begins to compute."""

    def progressed(self, name: str, done: int, total: int) -> None:
        """A stage has done `done` of `total` steps (users, epochs, batches)."""

    def finished(self, stage: Stage) -> None:
        """A stage is finished, computed or reused."""


class Run:
    """A run folder. Use it as a context manager: one process at a time may write to it."""

    def __init__(self, folder: Path, observer: Observer | None = None, *, read_only: bool = False) -> None:
        """Store the settings.

        Args:
            folder: Where the run is, or will be.
            observer: Is told of progress.
            read_only: Only find finished stages; a stage that would have to be built is an error.
        """
        self.folder = folder
        self.read_only = read_only
        self.observer = observer or Observer()
        self.ledger = Ledger()
        self.stages: list[Stage] = []
        self._lock: int | None = None

    def __enter__(self) -> Run:
        """Create the folder and take its lock."""
        with storage_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise StorageError(f"{self.folder} is a file, not a run folder; choose another --out.")
            (self.folder / ".work").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StorageError(
                f"another process is writing to {self.folder}; wait for it or choose another --out."
            ) from None
        shutil.rmtree(self.folder / ".trash", ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stage(self, name: str, key: Mapping[str, Any], build: Callable[[Path, Meter], None]) -> Stage:
        """Return the finished stage `name`, building it only if its key changed or it is missing.

        Args:
            name: Folder name below the run; may contain ``/``.
            key: JSON-ready description of everything that the result depends on.
            build: Writes the artefacts into the folder it is given. The folder survives a kill, so a
                long stage can leave checkpoints there and find them again.
        """
        digest = key_hash(key)
        final = self.folder / name
        work = self.folder / ".work" / f"{name.replace('/', '--')}-{digest[:16]}"
        with storage_errors(self.folder):
            found = self._finished(name, final, digest)
            if found is None and self.read_only:
                raise StorageError(
                    f"the stage {name} of the run in {self.folder} is missing, or was made from other data, "
                    f"options or versions. Give the run's command again, then go on."
                )
            if found is None and self._finished(name, work, digest) is None:
                self.observer.started(name)
                work.mkdir(parents=True, exist_ok=True)
                self._build(work, key, digest, build)
            if found is None:
                self._publish(work, final)
        stage = found or self._finished(name, final, digest, reused=False)
        if stage is None:  # pragma: no cover - only if another program removes files under us
            raise StorageError(f"stage {name} vanished from {final} while it was being written.")
        self.stages.append(stage)
        self.ledger.record(name, stage.usage)
        self.observer.finished(stage)
        return stage

    def _build(
        self, work: Path, key: Mapping[str, Any], digest: str, build: Callable[[Path, Meter], None]
    ) -> None:
        earlier_s = _earlier_attempts(work)
        with measure() as meter:
            try:
                build(work, meter)
            except (ConfigError, DataError):  # the same key can never succeed
                shutil.rmtree(work, ignore_errors=True)
                raise
        (work / ATTEMPT_FILE).unlink()
        usage = meter.usage + Usage(wall_s=earlier_s)
        content = {"hash": digest, "key": dict(key), "usage": usage.to_dict()}
        write_text(work / STAGE_FILE, json.dumps(content, indent=1, default=str))

    def _finished(self, name: str, path: Path, digest: str, reused: bool = True) -> Stage | None:
        try:
            content = json.loads((path / STAGE_FILE).read_text())
            usage = Usage.from_dict(content["usage"])
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError):
            return None
        if content.get("hash") != digest:
            return None
        return Stage(name=name, path=path, hash=digest, usage=usage, reused=reused)

    def _publish(self, work: Path, final: Path) -> None:
        # A kill between the two renames leaves the finished stage in .work, where it is found again.
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            trash = self.folder / ".trash"
            trash.mkdir(exist_ok=True)
            os.replace(final, trash / f"{final.name}-{os.getpid()}-{len(self.stages)}")
        os.replace(work, final)
        shutil.rmtree(self.folder / ".trash", ignore_errors=True)


def _earlier_attempts(work: Path) -> float:
    """Return the seconds that killed attempts at a stage spent, and note that a new one begins.

    An attempt's last sign of life is the newest file it wrote; what came after is not known.
    """
    earlier_s = 0.0
    note = work / ATTEMPT_FILE
    try:
        last = json.loads(note.read_text())
        newest = max(path.stat().st_mtime for path in work.rglob("*"))
        earlier_s = float(last["earlier_s"]) + max(0.0, newest - float(last["began"]))
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        pass  # the first attempt, or one that was killed while it wrote the note
    write_text(note, json.dumps({"began": time.time(), "earlier_s": earlier_s}))
    return earlier_s
