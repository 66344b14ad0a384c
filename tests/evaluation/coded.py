"""Data sets whose codes are the numbers written in the test."""

from __future__ import annotations

import numpy as np
import polars as pl

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Split


def dataset(rows, n_items):
    """Return a data set in which user u took the items ``rows[u]``, in that order."""
    return Dataset(
        name="coded",
        indptr=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        values=None,
        times=None,
        folds=None,
        user_ids=np.array([f"u{u}" for u in range(len(rows))]),
        item_ids=np.array([f"i{i}" for i in range(n_items)]),
        item_text=pl.DataFrame({"item": [f"i{i}" for i in range(n_items)], "title": ["t"] * n_items}),
    )


def split(train, valid, test, n_items):
    """Return a split with the given rows in each fold."""
    parts = [dataset(rows, n_items) for rows in (train, valid, test)]
    return Split(method="given", train=parts[0], valid=parts[1], test=parts[2])
