"""Scores made comparable and summed, so that a weight means the same on every data set.

DEALRec adds influence and ``lambda`` times effort (Equation 13 of arXiv 2401.17197) on raw values, its
code after min-max scaling. Either way one outlier, or one long tail, decides what lambda means: on
Amazon Games the effort supplies 73 % of the variance of the published sum at lambda 0.3. Ranks do not
have that problem, and are the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from scipy.stats import rankdata

from frugalrec.errors import ConfigError, DataError
from frugalrec.types import DoubleArray, FloatArray

Normalisation = Literal["rank", "zscore", "minmax", "none"]


def normalise(scores: FloatArray, how: Normalisation = "rank") -> DoubleArray:
    """Return scores on a common scale, (n,); undefined (NaN) rows stay undefined.

    Args:
        scores: One score per row, (n,).
        how: `rank` maps to (0, 1] by mid-rank, `zscore` to mean 0 and deviation 1, `minmax` to [0, 1],
            `none` leaves the values.

    Raises:
        ConfigError: If there is no such way.
        DataError: If a score is infinite, no row has a score, or all scores are equal.

    >>> normalise(np.array([3.0, np.nan, 1.0, 1.0])).tolist()
    [1.0, nan, 0.5, 0.5]
    """
    if how not in get_args(Normalisation):
        raise ConfigError(
            f"unknown normalisation {how!r}; choose one of {', '.join(get_args(Normalisation))}."
        )
    values = np.asarray(scores, dtype=np.float64)
    defined = checked(values)
    if how == "none":
        return values
    found = np.full(values.shape, np.nan)
    known = values[defined]
    if known.min() == known.max():
        raise DataError(
            f"all {known.size} scores are {known[0]:g}: they order nothing. Look at what made them (a model "
            f"that never trained?), or choose at random."
        )
    if how == "rank":
        found[defined] = rankdata(known) / known.size
    elif how == "zscore":
        found[defined] = (known - known.mean()) / known.std()
    else:
        found[defined] = (known - known.min()) / (known.max() - known.min())
    return found


def combine(
    scores: Mapping[str, FloatArray], weights: Mapping[str, float], how: Normalisation = "rank"
) -> DoubleArray:
    """Return the weighted sum of normalised scores, (n,); undefined where any part is.

    Args:
        scores: Name of a part -> one score per row, (n,).
        weights: Name of a part -> its weight; each part has one.
        how: As in `normalise`.

    Raises:
        ConfigError: If parts and weights differ.
        DataError: If the parts have different lengths, or one cannot be normalised.
    """
    if set(scores) != set(weights) or not scores:
        raise ConfigError(
            f"every part needs one weight; got parts {sorted(scores)}, weights {sorted(weights)}."
        )
    sizes = {name: np.shape(part) for name, part in scores.items()}
    if len(set(sizes.values())) != 1:
        raise DataError(f"the parts score different numbers of rows: {sizes}.")
    parts: list[DoubleArray] = []
    for name, part in scores.items():
        try:
            parts.append(weights[name] * normalise(part, how))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    total: DoubleArray = np.sum(parts, axis=0)
    return total


def checked(scores: DoubleArray) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which rows have a score.

    Raises:
        DataError: If scores are not one finite (or NaN) value a row, or none is defined.
    """
    if scores.ndim != 1 or scores.size == 0:
        raise DataError(f"scores must be one value per row and at least one row; got shape {scores.shape}.")
    if np.isinf(scores).any():
        raise DataError(
            f"the score of row {int(np.flatnonzero(np.isinf(scores))[0])} is infinite "
            f"({int(np.isinf(scores).sum())} of {scores.size} are); mark undefined scores NaN."
        )
    defined: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = ~np.isnan(scores)
    if not defined.any():
        raise DataError(
            f"none of the {scores.size} rows has a score; lower min_history or take another scorer."
        )
    return defined
