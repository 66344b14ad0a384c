import numpy as np
import polars as pl

from frugalrec.data.dataset import Dataset


def dataset(rows, n_users, n_items):
    """A data set with user and item codes as given: rows of (user, item)."""
    rows = sorted(rows)
    counts = np.bincount([u for u, _ in rows], minlength=n_users)
    return Dataset(
        name="hand",
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=np.array([i for _, i in rows], dtype=np.int32),
        values=None,
        times=None,
        folds=None,
        user_ids=np.arange(n_users).astype(np.str_),
        item_ids=np.arange(n_items).astype(np.str_),
        item_text=pl.DataFrame({"title": [f"t{i}" for i in range(n_items)]}),
    )
