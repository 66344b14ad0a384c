"""Item ids for models that write them: a few symbols an item, no two items alike, tied to a catalogue."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.errors import DataError, StorageError
from frugalrec.runs import storage_errors, write_text
from frugalrec.types import IntArray, LongArray

CODES_FILE, FACTS_FILE = "item_ids.npz", "item_ids.json"


@dataclass(frozen=True, kw_only=True)
class ItemIds:
    """One id an item: numbers of symbols, and the symbols as text.

    >>> ids = ItemIds(kind="toy", seed=0, codes=np.array([[0, 2], [1, -1]], dtype=np.int32),
    ...               symbols=("<a_0>", "<a_1>", "<b_0>"), collisions=0, catalogue=catalogue_hash(["x", "y"]))
    >>> ids.sequences(100), ids.text(0), ids.mean_length
    ([[100, 102], [101]], '<a_0><b_0>', 1.5)
    """

    kind: str
    """How the ids were made: `random-numbers`, `titles`, `collaborative`, `semantic`, `semantic-rqvae`."""
    seed: int
    codes: IntArray
    """Symbols of each item, (n_items, longest), padded at the end with -1."""
    symbols: tuple[str, ...]
    """Text of each symbol; a model needs as many vocabulary rows (ids of titles: the tokenizer's tokens)."""
    collisions: int
    """Items whose id another one shared, before one more symbol told them apart."""
    catalogue: str
    """`catalogue_hash` of the items, in the order of their codes."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Options and figures of the way the ids were made; JSON types."""

    def __post_init__(self) -> None:
        """Check that every item has an id of its own."""
        if self.codes.ndim != 2 or 0 in self.codes.shape:
            raise DataError(f"item ids need codes (n_items, longest), not {self.codes.shape}.")
        present = self.codes >= 0
        if not present[:, 0].all() or (present[:, 1:] > present[:, :-1]).any():
            row = int((~present[:, 0] | (present[:, 1:] > present[:, :-1]).any(axis=1)).argmax())
            raise DataError(f"the id of item {row} is empty or has a gap: {self.codes[row].tolist()}.")
        if int(self.codes.max()) >= len(self.symbols):
            raise DataError(f"symbol {int(self.codes.max())} is used, but there are {len(self.symbols)}.")
        shared = int(sharing(self.codes).sum())
        if shared:
            raise DataError(
                f"{shared} items share their id with another; tell them apart by one more symbol."
            )

    @property
    def n_items(self) -> int:
        """Number of items."""
        return int(self.codes.shape[0])

    @cached_property
    def lengths(self) -> LongArray:
        """Symbols of each id, (n_items,)."""
        lengths: LongArray = (self.codes >= 0).sum(axis=1)
        return lengths

    @property
    def mean_length(self) -> float:
        """Symbols of an id in the mean."""
        return float(self.lengths.mean())

    @property
    def max_length(self) -> int:
        """Symbols of the longest id."""
        return int(self.lengths.max())

    @property
    def used_symbols(self) -> int:
        """Symbols that occur in an id."""
        return int(np.unique(self.codes[self.codes >= 0]).size)

    @cached_property
    def prefix_free(self) -> bool:
        """Whether no id is the beginning of another, so that none needs an end."""
        ordered = self.codes[np.lexsort(self.codes.T[::-1])]  # padding sorts first: a beginning stands before
        here, following = ordered[:-1], ordered[1:]
        return not ((here == following) | (here < 0)).all(axis=1).any()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids and their symbols."""
        digest = hashlib.sha256(np.ascontiguousarray(self.codes, dtype="<i4").tobytes())
        digest.update(json.dumps([list(self.codes.shape), list(self.symbols)]).encode())
        return digest.hexdigest()

    def sequences(self, offset: int = 0) -> list[list[int]]:
        """Return the token ids of each item, where symbol s is token ``offset + s`` of a vocabulary."""
        return [
            [offset + code for code in row[:length]]
            for row, length in zip(self.codes.tolist(), self.lengths.tolist(), strict=True)
        ]

    def text(self, item: int) -> str:
        """Return an item's id as text."""
        return "".join(self.symbols[code] for code in self.codes[item, : self.lengths[item]])

    def save(self, folder: Path) -> None:
        """Write the ids to a folder (npz and JSON, no pickle)."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".{CODES_FILE}.{os.getpid()}"
            with part.open("wb") as file:
                np.savez_compressed(file, codes=self.codes)
            os.replace(part, folder / CODES_FILE)
            facts = {
                "kind": self.kind,
                "seed": self.seed,
                "collisions": self.collisions,
                "catalogue": self.catalogue,
                "fingerprint": self.fingerprint,
                "evidence": dict(self.evidence),
                "symbols": list(self.symbols),
            }
            write_text(folder / FACTS_FILE, json.dumps(facts, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path, *, catalogue: str) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The folder.
            catalogue: `catalogue_hash` of the items that the ids are wanted for.

        Raises:
            StorageError: If a file is missing or damaged.
            DataError: If the ids belong to another catalogue.
        """
        try:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            stored = {name: facts[name] for name in ("kind", "seed", "collisions", "catalogue", "evidence")}
            expected, symbols = facts["fingerprint"], tuple(facts["symbols"])
            with (folder / CODES_FILE).open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                codes: IntArray = file["codes"].astype(np.int32)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise StorageError(f"{folder} holds no complete item ids ({error}); make them again.") from None
        if stored["catalogue"] != catalogue:
            raise DataError(
                f"the item ids in {folder} were made for another catalogue (hash {stored['catalogue'][:12]}, "
                f"wanted {catalogue[:12]}): other items, or the same under other codes. Read the data with "
                f"the same seed, or make ids for these items."
            )
        found = cls(codes=codes, symbols=symbols, **stored)
        if found.fingerprint != expected:
            raise StorageError(f"the item ids in {folder} are damaged (their hash differs); make them again.")
        return found


def catalogue_hash(item_ids: NDArray[np.str_] | Sequence[str]) -> str:
    """Return the SHA-256 of a catalogue: of the external id of each item code, in order."""
    digest = hashlib.sha256()
    for name in np.asarray(item_ids).tolist():
        encoded = str(name).encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def figures(kinds: Sequence[ItemIds]) -> pl.DataFrame:
    """Return one row a kind: items, symbols used, lengths, collisions, and whether ids need an end."""
    rows = [
        {
            "kind": ids.kind,
            "items": ids.n_items,
            "symbols": ids.used_symbols,
            "mean_length": ids.mean_length,
            "max_length": ids.max_length,
            "collisions": ids.collisions,
            "collision_share": ids.collisions / ids.n_items,
            "prefix_free": ids.prefix_free,
        }
        for ids in kinds
    ]
    return pl.DataFrame(rows)


def sharing(codes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether another row is the same, (n,)."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    shared: NDArray[np.bool_] = counts[inverse.reshape(-1)] > 1  # numpy 2.0 gives it another shape
    return shared
