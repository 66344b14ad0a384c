"""DEALRec folders: the published three-way split, as text files or as `.npy` dictionaries.

Both hold the same interactions; ids are those of the text files, which count from 1
(arXiv 2401.17197).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from frugalrec.data.dataset import FOLD, ITEM, TITLE, USER
from frugalrec.data.readers.columns import Frames, ReadOptions
from frugalrec.data.readers.formats import beside, items_table, sequences
from frugalrec.data.readers.npy_dicts import load_lists, load_object
from frugalrec.data.readers.tables import blank_to_null
from frugalrec.errors import DataError

TEXT_FILES = ("sequential_train.txt", "sequential_valid.txt", "sequential_test.txt")
NPY_FILES = ("training_dict.npy", "validation_dict.npy", "testing_dict.npy")


def read_text(path: Path, options: ReadOptions) -> Frames:
    """Read `sequential_{train,valid,test}.txt` as folds 0, 1, 2, and `items.jsonl` where it exists.

    A user without training items keeps the validation and test items.
    """
    folder = _folder(path, TEXT_FILES)
    folds = [sequences(folder / name, options.encoding) for name in TEXT_FILES]
    return _joined(folds), items_table(options, beside(folder))


def read_npy(path: Path, options: ReadOptions) -> Frames:
    """Read `{training,validation,testing}_dict.npy` as folds 0, 1, 2, and titles of `title_maps.npy`."""
    folder = _folder(path, NPY_FILES)
    folds = []
    for name in NPY_FILES:
        lists = load_lists(folder / name)
        users = [str(user + 1) for user, row in lists.items() for _ in row]
        items = [str(item + 1) for row in lists.values() for item in row]
        folds.append(pl.DataFrame({USER: users, ITEM: items}, schema={USER: pl.String, ITEM: pl.String}))
    if options.items is not None or not (folder / "title_maps.npy").is_file():
        return _joined(folds), items_table(options, beside(folder))
    return _joined(folds), _titles(folder / "title_maps.npy")


def _folder(path: Path, names: tuple[str, ...]) -> Path:
    folder = path if path.is_dir() else path.parent
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: no {' and '.join(missing)}; all of {', '.join(names)} are needed.")
    return folder


def _joined(folds: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(
        frame.with_columns(pl.lit(fold, dtype=pl.Int8).alias(FOLD)) for fold, frame in enumerate(folds)
    )


def _titles(path: Path) -> pl.DataFrame:
    maps = load_object(path)
    titles = maps.get("seqid2title") if isinstance(maps, dict) else None
    if not isinstance(titles, dict) or not all(isinstance(title, str) for title in titles.values()):
        raise DataError(f"{path}: expected a dictionary with 'seqid2title', a title for each item number.")
    columns = {ITEM: [str(item) for item in titles], TITLE: list(titles.values())}
    return blank_to_null(pl.DataFrame(columns, schema={ITEM: pl.String, TITLE: pl.String}))
