"""Describe: what a data set holds, as JSON-ready figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.data.readers.columns import day
from frugalrec.types import FloatArray, LongArray

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
FOLD_NAMES = ("train", "valid", "test")
MOST_VALUES = 20
"""With more distinct values than this, the histogram has equal-width bins."""


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return the sizes, density, lengths, time span, values, titles and folds of a data set.

    Users and items are counted twice: listed, and with at least one interaction.

    >>> from frugalrec.testing.toys import cycle_dataset
    >>> describe(cycle_dataset(n_users=10, n_items=5, length=4))["interactions"]
    40
    """
    active, rated = int((dataset.lengths > 0).sum()), int((dataset.item_counts > 0).sum())
    facts: dict[str, Any] = {
        "name": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n,
        "active_users": active,
        "items_with_interactions": rated,
        "density": dataset.n / (active * rated) if active and rated else 0.0,
        "interactions_per_user": _spread(dataset.lengths[dataset.lengths > 0]),
        "interactions_per_item": _spread(dataset.item_counts[dataset.item_counts > 0]),
        "share_of_items_with_title": _titled(dataset),
        "item_columns": [column for column in dataset.item_text.columns if column != "item"],
    }
    if dataset.times is not None and dataset.n:
        first, last = int(dataset.times.min()), int(dataset.times.max())
        facts["time"] = {"first": day(first), "last": day(last), "days": round((last - first) / 86_400, 3)}
    if dataset.values is not None and dataset.n:
        facts["values"] = _histogram(dataset.values)
    if dataset.folds is not None:
        facts["folds"] = _folds(dataset, dataset.folds)
    return facts


def _titled(dataset: Dataset) -> float:
    titles = dataset.item_text[TITLE].to_list()
    return sum(bool(title) for title in titles) / len(titles) if titles else 0.0


def _spread(counts: LongArray) -> dict[str, float]:
    if counts.size == 0:
        return {}
    figures = {"mean": float(counts.mean())}
    names = ["min" if q == 0 else "max" if q == 1 else f"p{round(q * 100)}" for q in QUANTILES]
    return figures | dict(zip(names, np.quantile(counts, QUANTILES).tolist(), strict=True))


def _histogram(values: FloatArray) -> dict[str, int]:
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= MOST_VALUES:
        return {f"{value:g}": count for value, count in zip(distinct.tolist(), counts.tolist(), strict=True)}
    counts, edges = np.histogram(values.astype(np.float64), bins=10)
    spans = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return {f"{low:g} to {high:g}": int(count) for (low, high), count in zip(spans, counts, strict=True)}


def _folds(dataset: Dataset, folds: NDArray[np.int8]) -> dict[str, dict[str, int]]:
    """Count each fold; cold ones are of items or users that train has never seen."""
    warm_items = np.zeros(dataset.n_items, dtype=np.bool_)
    warm_users = np.zeros(dataset.n_users, dtype=np.bool_)
    warm_items[dataset.items[folds == 0]] = True
    warm_users[dataset.rows[folds == 0]] = True
    facts = {}
    for fold, name in enumerate(FOLD_NAMES):
        mask = folds == fold
        facts[name] = {"interactions": int(mask.sum()), "users": int(np.unique(dataset.rows[mask]).size)}
        if fold:
            facts[name]["of_cold_items"] = int((~warm_items[dataset.items[mask]]).sum())
            facts[name]["of_cold_users"] = int((~warm_users[dataset.rows[mask]]).sum())
    return facts
