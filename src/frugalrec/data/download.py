"""Download: fetch a public data set once, checked and unpacked in one step."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from frugalrec.errors import ConfigError, DownloadError, StorageError

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes fetched so far and the total, None where the server does not say."""

RECORD = "source.json"
"""Written beside the files: where they came from, and the checksums they had."""

CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a data set."""

    url: str
    save_as: str | None = None
    """File name to keep it under; None unpacks a zip archive instead."""
    md5: str | None = None
    """The publisher's checksum; None where there is none, or the file changes with each release."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set."""

    files: tuple[RemoteFile, ...]
    page: str
    """Where its terms of use are stated."""


def _movielens(archive: str, md5: str | None) -> Source:
    url = f"https://files.grouplens.org/datasets/movielens/{archive}.zip"
    return Source(files=(RemoteFile(url=url, md5=md5),), page="https://grouplens.org/datasets/movielens/")


def _amazon(category: str) -> Source:
    root = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
    ratings = f"{root}/benchmark/5core/rating_only/{category}.csv.gz"
    texts = f"{root}/raw/meta_categories/meta_{category}.jsonl.gz"
    return Source(
        files=(
            RemoteFile(url=ratings, save_as=f"{category}.csv.gz"),
            RemoteFile(url=texts, save_as=f"meta_{category}.jsonl.gz"),
        ),
        page="https://amazon-reviews-2023.github.io/",
    )


_MICROLENS = "https://recsys.westlake.edu.cn/MicroLens-50k-Dataset"
SOURCES: Mapping[str, Source] = {
    "movielens-100k": _movielens("ml-100k", "0e33842e24a9c977be4e0107933c0723"),
    "movielens-1m": _movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
    "movielens-10m": _movielens("ml-10m", "ce571fd55effeba0271552578f2648bd"),
    "movielens-20m": _movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3"),
    "movielens-25m": _movielens("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "movielens-latest-small": _movielens("ml-latest-small", None),
    "amazon-games": _amazon("Video_Games"),
    "amazon-beauty": _amazon("Beauty_and_Personal_Care"),
    "amazon-toys": _amazon("Toys_and_Games"),
    "microlens-50k": Source(
        files=(
            RemoteFile(url=f"{_MICROLENS}/MicroLens-50k_pairs.csv", save_as="interactions.csv"),
            RemoteFile(url=f"{_MICROLENS}/MicroLens-50k_titles.csv", save_as="items.csv"),
        ),
        page="https://github.com/westlake-repl/MicroLens",
    ),
}
"""The data sets that `get` knows; the Amazon ones are the 5-core ratings of Amazon Reviews 2023."""


def get(
    name: str,
    destination: Path | str,
    *,
    progress: Progress | None = None,
    client: httpx.Client | None = None,
) -> Path:
    """Download a data set to a folder of its name below `destination`; return that folder.

    A folder that is complete already is returned as it is; it appears whole or not at all.

    Args:
        name: A name in `SOURCES`.
        destination: The folder to write below.
        progress: Called with (bytes so far, total or None) for each file.
        client: HTTP client; by default one with a timeout of 30 seconds per read.

    Raises:
        ConfigError: If the name is unknown.
        DownloadError: If a file cannot be fetched, has another checksum or is not a safe archive.
        StorageError: If the folder holds something else, or cannot be written.
    """
    if name not in SOURCES:
        raise ConfigError(f"unknown data set {name!r}; there are {', '.join(SOURCES)}.")
    folder = Path(destination) / name
    if (folder / RECORD).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            f"{folder} holds files that this command did not write; read them as they are, or remove them."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
        try:
            (temporary / "files").mkdir()
            _fill(temporary, SOURCES[name], folder, progress, client)
            (temporary / "files").replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}).") from None
    return folder


def _fill(
    temporary: Path, source: Source, folder: Path, progress: Progress | None, client: httpx.Client | None
) -> None:
    records = []
    transport = client or httpx.Client(timeout=30.0, follow_redirects=True)
    try:
        for file in source.files:
            path = temporary / "files" / file.save_as if file.save_as else temporary / "archive.zip"
            records.append(_fetch(transport, file, path, folder, progress))
            if file.save_as is None:
                unzip(path, temporary / "files")
    finally:
        if client is None:
            transport.close()
    record = {"page": source.page, "files": records}
    (temporary / "files" / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _fetch(
    client: httpx.Client, file: RemoteFile, path: Path, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    md5, sha256, done = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    try:
        with client.stream("GET", file.url) as response, path.open("wb") as stream:
            response.raise_for_status()
            size = response.headers.get("content-length", "")
            total = int(size) if size.isdigit() and "content-encoding" not in response.headers else None
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                md5.update(chunk)
                sha256.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        how = "unpack it to" if file.save_as is None else f"save it as {file.save_as} in"
        raise DownloadError(
            f"cannot download {file.url} ({reason}). Without a network here, fetch that address on another "
            f"machine and {how} {folder}; then read that folder."
        ) from None
    if file.md5 is not None and md5.hexdigest() != file.md5:
        raise DownloadError(
            f"{file.url} has MD5 {md5.hexdigest()}, not {file.md5}: the download is damaged or the "
            f"publisher changed the file. Try again; nothing was kept."
        )
    if file.md5 is None:
        log.warning("%s has no published checksum; it came with SHA-256 %s", file.url, sha256.hexdigest())
    return {"url": file.url, "bytes": done, "md5": md5.hexdigest(), "sha256": sha256.hexdigest()}


def unzip(archive: Path, folder: Path) -> None:
    """Unpack an archive to a folder, without the one top folder that all members may share.

    Raises:
        DownloadError: If it is no zip archive, or a member would land outside the folder.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [m for m in bundle.infolist() if not m.is_dir() and "__MACOSX" not in m.filename]
            paths = [_safe(member) for member in members]
            if not paths:
                raise zipfile.BadZipFile("it holds no files")
            shared = len({path.parts[0] for path in paths}) == 1 and all(len(p.parts) > 1 for p in paths)
            _require_room(sum(member.file_size for member in members), folder)
            for member, path in zip(members, paths, strict=True):
                target = folder.joinpath(*path.parts[1:] if shared else path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"not a readable zip archive ({error}); nothing was kept.") from None


def _safe(member: zipfile.ZipInfo) -> PurePosixPath:
    name = member.filename.replace("\\", "/")
    path = PurePosixPath(name)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or link or not path.parts:
        raise DownloadError(
            f"the archive holds {member.filename!r}, which would be written outside its folder or is a link. "
            f"Nothing was kept; do not trust this archive."
        )
    return path


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: unpacking needs {needed:,} bytes and the disk has {free:,}; free some."
        )
