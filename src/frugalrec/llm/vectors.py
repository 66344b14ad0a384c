"""Vectors of texts: the seam of everything that embeds, and a cache of vectors on disk.

A cache file belongs to one embedder (its fingerprint) and one set of texts. It is written aside and
renamed, so a reader sees the whole of it or nothing; a damaged one is computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from frugalrec.errors import DataError
from frugalrec.runs import storage_errors
from frugalrec.types import FloatArray

log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Turns texts into vectors; the same text always into the same one, whatever stands beside it."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides a vector; enters cache keys."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector a text, (n, width) float32."""


def embedded(
    texts: Sequence[str],
    compute: Callable[[list[str]], FloatArray],
    *,
    width: int,
    fingerprint: Callable[[], str],
    cache: Path | None,
) -> FloatArray:
    """Return one vector a text, (n, width); each distinct text is computed once, or never.

    Args:
        texts: Any texts.
        compute: Distinct texts -> vectors, (m, width) float32.
        width: Numbers in a vector.
        fingerprint: Returns a hash of all that decides a vector; asked for only if there is a cache.
        cache: Folder of vectors from earlier calls, or None.
    """
    if isinstance(texts, str):
        raise DataError("embed takes a list of texts, not one text; put it into a list.")
    distinct = sorted(set(texts))
    place = {text: number for number, text in enumerate(distinct)}
    rows = np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts))
    if cache is None or not distinct:
        return compute(distinct)[rows]
    path = cache / f"{_key([fingerprint(), *distinct])}.npz"
    vectors = _read(path, (len(distinct), width))
    if vectors is None:
        vectors = compute(distinct)
        _write(path, vectors)
    return vectors[rows]


def _key(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> FloatArray | None:
    """Return the vectors of a cache file; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            vectors: FloatArray = file["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); its vectors are computed again", path, error)
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _write(path: Path, vectors: FloatArray) -> None:
    """Write a cache file; a reader sees the whole of it or nothing."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as file:
            np.savez(file, vectors=vectors)
        os.replace(part, path)
