"""What a selection looks like: where its rows lie on the scores, and how stable it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from frugalrec.errors import DataError
from frugalrec.types import DoubleArray, FloatArray, LongArray


def quantile_histogram(scores: FloatArray | DoubleArray, kept: LongArray, bins: int = 10) -> DoubleArray:
    """Return the share of kept rows in each quantile of the scores, lowest first, (bins,).

    A random choice gives ``1 / bins`` everywhere. Equal scores share their mid-rank; rows without a
    score count in no quantile.

    >>> quantile_histogram(np.arange(8.0), np.array([6, 7, 5, 0]), bins=2).tolist()
    [0.25, 0.75]
    """
    scores = np.asarray(scores, dtype=np.float64)
    defined = ~np.isnan(scores)
    place = np.full(scores.size, np.nan)
    place[defined] = (rankdata(scores[defined]) - 0.5) / max(int(defined.sum()), 1)
    chosen = place[kept]
    chosen = chosen[~np.isnan(chosen)]
    if chosen.size == 0:
        raise DataError("no kept row has a score, so there is nothing to count.")
    counts = np.bincount(np.minimum((chosen * bins).astype(np.int64), bins - 1), minlength=bins)
    shares: DoubleArray = counts / chosen.size
    return shares


def overlap(first: LongArray, second: LongArray) -> float:
    """Return the share of the smaller selection that the other one holds too.

    >>> overlap(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6]))
    0.5
    """
    return float(np.intersect1d(first, second).size / max(min(first.size, second.size), 1))


def agreement(first: FloatArray | DoubleArray, second: FloatArray | DoubleArray) -> float:
    """Return the Spearman correlation of two scores over the rows that both define."""
    both = ~(np.isnan(first) | np.isnan(second))
    ranks = [rankdata(np.asarray(scores)[both]) for scores in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def describe(
    scores: FloatArray | DoubleArray,
    kept: LongArray,
    *,
    influence: FloatArray | None = None,
    others: Sequence[LongArray] = (),
) -> dict[str, Any]:
    """Return the diagnostics of a selection, ready for JSON.

    Args:
        scores: What was selected on, (n,).
        kept: Kept rows.
        influence: Influence scores, to count harmful rows.
        others: Selections of other seeds, to measure the overlap.
    """
    undefined = np.isnan(scores)
    about: dict[str, Any] = {
        "rows": int(np.size(scores)),
        "kept": int(kept.size),
        "undefined": int(undefined.sum()),
        "kept_undefined": int(undefined[kept].sum()),
    }
    if not undefined[kept].all():
        about["deciles"] = [round(float(share), 4) for share in quantile_histogram(scores, kept)]
    if influence is not None:
        about["negative_influence_kept"] = _negative(influence[kept])
        about["negative_influence_all"] = _negative(influence)
    if others:
        about["overlap"] = [round(overlap(kept, other), 4) for other in others]
    return about


def _negative(influence: FloatArray) -> float:
    known = influence[~np.isnan(influence)]
    return round(float((known < 0).mean()), 4) if known.size else float("nan")
