"""Toy data sets for tests and examples: small, seeded, with a known structure."""

from __future__ import annotations

import numpy as np
import polars as pl

from frugalrec.data.dataset import Dataset


def cycle_dataset(
    n_users: int = 60, n_items: int = 20, length: int = 12, *, seed: int = 0, noise: float = 0.1
) -> Dataset:
    """Return users who walk round a ring of items: the next item is nearly always item + 1.

    A sequence model or a Markov chain should solve it; popularity cannot. Times rise by one day a
    step with users interleaved, values are 1 to 5 (4 or more on even items).
    """
    rng = np.random.default_rng(seed)
    start = rng.integers(n_items, size=n_users)[:, None]
    items = (start + np.arange(length)[None, :]) % n_items
    jump = rng.random((n_users, length)) < noise
    items = np.where(jump, rng.integers(n_items, size=items.shape), items)
    users = np.repeat(np.arange(n_users), length)
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in users],
            "item": [f"i{i}" for i in items.ravel()],
            "value": np.where(items.ravel() % 2 == 0, 4.0, 2.0) + rng.integers(0, 2, items.size),
            "time": 1_000_000 + np.tile(np.arange(length) * 86_400, n_users) + users,
        }
    )
    texts = pl.DataFrame(
        {"item": [f"i{i}" for i in range(n_items)], "title": [f"Film {i}" for i in range(n_items)]}
    )
    return Dataset.from_frames(frame, texts, name="cycle", seed=seed)
