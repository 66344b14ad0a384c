"""P5 and POD folders: numbered sequences, their maps to real ids, fixed negatives and explanations.

A folder holds `sequential.txt` (user, then items, oldest first, all as numbers), and may hold `datamaps.json`
(number -> id), `negative.txt` (user, then items never met, for ranking 1 of 100) and `explanation.json`
(a sentence of a review for some pairs of user and item, in a split of its own). The published folders number
items by first appearance, held-out ones included, and draw the split of explanations without regard to the
sequences; the audit refuses the first, and `read_explanations` mends the second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.dataset import ITEM, NUMBER, TITLE, USER, Dataset
from frugalrec.data.readers import tables
from frugalrec.data.readers.columns import Frames, ReadOptions
from frugalrec.data.readers.formats import beside, items_table, sequences
from frugalrec.data.splits import Split
from frugalrec.errors import DataError
from frugalrec.types import PAD, IntArray, LongArray

SEQUENCES = ("sequential.txt", "sequential_data.txt")
"""Names of the sequence file in POD's and in P5's folders; any other single text file will do too."""
NEGATIVES = ("negative.txt", "negative_samples.txt")
EXPLANATIONS, MAPS = "explanation.json", "datamaps.json"
ExplanationFold = Literal["train", "valid", "test"]
FOLDS: Mapping[ExplanationFold, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("val", "valid"),
    "test": ("test",),
}
"""Our name of a fold of explanations -> its names in the file."""


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """Sentences that say why a user liked or disliked an item: one fold of `explanation.json`."""

    users: IntArray
    """User code of each record, (n,)."""
    items: IntArray
    """Item code of each record, (n,)."""
    texts: tuple[str, ...]
    """The sentences."""
    features: tuple[str, ...]
    """What each sentence is about, empty where the file does not say."""
    dropped: int
    """Records left out, because their pair is held out in the sequences for later than this fold."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.texts)


def read_dataset(path: Path, options: ReadOptions) -> Frames:
    """Read the sequences, and titles of an items file where there is one.

    With `datamaps.json` ids are those it gives, the catalogue is all items it lists, and the numbers of the
    sequences stay as an item column, for the audit. An items file may name items either way.
    """
    file = _sequences_file(path)
    maps, frame = _maps(file.parent), sequences(file, options.encoding)
    texts = items_table(options, beside(file.parent))
    if maps is None:
        return frame, texts
    users, items = maps
    catalogue = pl.DataFrame({ITEM: list(items.values()), NUMBER: list(items)}, schema_overrides=_TEXT)
    frame = frame.with_columns(_named(frame[USER], users, file), _named(frame[ITEM], items, file))
    return frame, catalogue if texts is None else _with_texts(catalogue, texts)


def read_negatives(path: Path | str, dataset: Dataset) -> IntArray:
    """Read each user's fixed negatives, as item codes, (n_users, longest), padded with -1.

    Args:
        path: The folder, or its file of negatives.
        dataset: The whole data set of that folder, held-out interactions included.

    Raises:
        DataError: If there is no such file, it names a user or item that the data do not have, or lists an
            item that its user did interact with.
    """
    file = _negatives_file(Path(path))
    frame, maps = sequences(file), _maps(file.parent)
    users, items = (
        _codes(_named(frame[column], None if maps is None else maps[at], file), ids, file)
        for at, (column, ids) in enumerate(((USER, dataset.user_ids), (ITEM, dataset.item_ids)))
    )
    known = np.isin(_pairs(users, items, dataset), _pairs(dataset.rows, dataset.items, dataset))
    if known.any():
        row = int(known.argmax())
        raise DataError(
            f"{file}: {int(known.sum()):,} negatives are items of their user's own sequence, the first "
            f"user {frame[USER][row]}, item {frame[ITEM][row]}. The file belongs to other sequences; draw "
            f"negatives anew, or rank the whole catalogue."
        )
    counts = np.bincount(users, minlength=dataset.n_users)
    found = np.full((dataset.n_users, int(counts.max(initial=0))), PAD, dtype=np.int32)
    order = np.argsort(users, kind="stable")
    found[np.arange(found.shape[1]) < counts[:, None]] = items[order]
    return found


def read_explanations(path: Path | str, split: Split) -> dict[ExplanationFold, Explanations]:
    """Read the explanations of each fold, without those that would give a held-out pair away.

    The published folds of explanations are drawn apart from the sequences, so that training sentences tell
    of pairs that the sequences hold out. A record is dropped, and counted, where its pair is held out for
    later than its fold: from train those of validation and test pairs, from valid those of test pairs.

    Args:
        path: The folder, or its file of explanations.
        split: The split of the sequences of that folder.

    Raises:
        DataError: If there is no such file, it has another layout, or names an unknown user or item.
    """
    path = Path(path)
    file = path / EXPLANATIONS if path.is_dir() else path
    content, maps = _json(file), _maps(file.parent)
    later = {
        "train": [split.valid, split.test],
        "valid": [split.test],
        "test": [],
    }
    found: dict[ExplanationFold, Explanations] = {}
    for fold, names in FOLDS.items():
        records = next((content[name] for name in names if name in content), None)
        if not isinstance(records, list):
            raise DataError(f"{file}: no list of {names[0]!r} records; expected train, val and test.")
        held_out = [_pairs(part.rows, part.items, part) for part in later[fold]]
        found[fold] = _fold(records, f"{file}, {names[0]}", maps, split.train, held_out)
    return found


_TEXT = {ITEM: pl.String, NUMBER: pl.String}
_Maps = tuple[dict[str, str], dict[str, str]]


def _fold(
    records: list[Any], where: str, maps: _Maps | None, data: Dataset, held_out: list[LongArray]
) -> Explanations:
    for number, record in enumerate(records, start=1):
        fits = isinstance(record, dict) and isinstance(record.get("explanation"), str)
        if not fits or not all(isinstance(record.get(key), int | str) for key in (USER, ITEM)):
            raise DataError(
                f"{where} record {number}: expected user, item and explanation, not {record!r:.80}."
            )
    users, items = (
        _codes(
            _named(
                pl.Series(key, [str(record[key]) for record in records], dtype=pl.String),
                None if maps is None else maps[at],
                where,
            ),
            ids,
            where,
        )
        for at, (key, ids) in enumerate(((USER, data.user_ids), (ITEM, data.item_ids)))
    )
    leaks = np.isin(_pairs(users, items, data), np.concatenate([np.zeros(0, dtype=np.int64), *held_out]))
    kept = np.flatnonzero(~leaks)
    return Explanations(
        users=users[kept],
        items=items[kept],
        texts=tuple(records[row]["explanation"] for row in kept),
        features=tuple(str(records[row].get("feature") or "") for row in kept),
        dropped=int(leaks.sum()),
    )


def _sequences_file(path: Path) -> Path:
    if path.is_file():
        return path
    texts = sorted(file for file in path.glob("*.txt") if file.name not in NEGATIVES)
    named = [file for file in texts if file.name in SEQUENCES]
    if len(named or texts) != 1:
        found = ", ".join(file.name for file in named or texts) or "none"
        raise DataError(f"{path}: expected one {SEQUENCES[0]}, found {found}. Name the file itself.")
    return (named or texts)[0]


def _negatives_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = next((path / name for name in NEGATIVES if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path}: no {NEGATIVES[0]}; draw negatives yourself, or rank the whole catalogue.")
    return found


def _maps(folder: Path) -> _Maps | None:
    """Return (number -> user id, number -> item id), or None where the folder has no maps."""
    file = folder / MAPS
    if not file.is_file():
        return None
    content = _json(file)
    return _map(content, "id2user", file), _map(content, "id2item", file)


def _map(content: dict[str, Any], key: str, file: Path) -> dict[str, str]:
    table = content.get(key)
    if not isinstance(table, dict) or not all(isinstance(name, str | int) for name in table.values()):
        raise DataError(f"{file}: expected {key!r}, an object from numbers to ids.")
    found = {number: str(name) for number, name in table.items()}
    if len(set(found.values())) < len(found) or "" in found.values():
        raise DataError(f"{file}: {key!r} gives two numbers the same id, or an empty one; correct it.")
    return found


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        pickled = file.with_suffix(".pickle").is_file()
        hint = " A pickle is not read, for it can run code; convert it to JSON." if pickled else ""
        raise DataError(f"{file}: no such file.{hint}")
    try:
        content = json.loads(tables.decode(tables.read_bytes(file), file, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); fetch the file again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, not {type(content).__name__}.")
    return content


def _named(numbers: pl.Series, names: Mapping[str, str] | None, where: Path | str) -> pl.Series:
    """Return the ids that numbers stand for; without a map, the numbers."""
    if names is None:
        return numbers
    table = pl.DataFrame({"number": list(names), "name": list(names.values())}, schema_overrides=_NAMES)
    joined = numbers.to_frame("number").join(table, on="number", how="left", maintain_order="left")["name"]
    if joined.null_count():
        row = int(joined.is_null().arg_max() or 0)
        raise DataError(
            f"{where}: {numbers.name} {numbers[row]!r} is not among the {len(names):,} of {MAPS}; "
            f"{joined.null_count():,} such entries. The files do not belong together."
        )
    return joined.alias(numbers.name)


_NAMES = {"number": pl.String, "name": pl.String}


def _codes(names: pl.Series, ids: NDArray[np.str_], where: Path | str) -> IntArray:
    table = pl.DataFrame({"name": ids, "code": np.arange(ids.size, dtype=np.int32)})
    codes = names.to_frame("name").join(table, on="name", how="left", maintain_order="left")["code"]
    if codes.null_count():
        row = int(codes.is_null().arg_max() or 0)
        raise DataError(f"{where}: the data have no {names.name} {names[row]!r}. The files differ in ids.")
    return codes.to_numpy().astype(np.int32)


def _pairs(users: IntArray, items: IntArray, data: Dataset) -> LongArray:
    return users.astype(np.int64) * data.n_items + items


def _with_texts(catalogue: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """Join item texts by id or by number, whichever finds more of the catalogue."""
    texts = texts.with_columns(pl.col(ITEM).cast(pl.String))
    if NUMBER in texts.columns:
        texts = texts.drop(NUMBER)
    if TITLE not in texts.columns:
        texts = texts.with_columns(pl.lit(None, dtype=pl.String).alias(TITLE))
    if texts[ITEM].is_duplicated().any():
        twice = texts.filter(pl.col(ITEM).is_duplicated())[ITEM][0]
        raise DataError(f"the items table lists item {twice!r} more than once; keep one row per item.")
    by = max((ITEM, NUMBER), key=lambda key: catalogue[key].is_in(texts[ITEM].implode()).sum())
    return catalogue.join(texts.rename({ITEM: by}), on=by, how="left", maintain_order="left")
