"""Results by segment: activity deciles of users, cold and warm items; rows ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.compare import interval
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import Ranks
from frugalrec.types import BoolArray, DoubleArray, Evaluation, LongArray

Row = dict[str, Any]


def activity_groups(lengths: NDArray[Any], groups: int = 10) -> LongArray:
    """Cut users into `groups` of about equal size by history length, 0 the least active, (n,).

    Users with the same length stay together (nothing else is known that could part them), so groups
    differ in size where lengths repeat, and some may be empty.
    """
    if groups < 1:
        raise ConfigError(f"groups must be at least 1, not {groups}.")
    lengths = np.asarray(lengths)
    ordered = np.sort(lengths)
    middle = np.searchsorted(ordered, lengths, "left") + np.searchsorted(ordered, lengths, "right")
    return np.asarray(middle * groups // max(2 * lengths.size, 1), dtype=np.int64).clip(max=groups - 1)


def by_decile(
    evaluation: Evaluation,
    lengths: NDArray[Any],
    metric: str,
    *,
    groups: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Return a metric by activity decile of the evaluated users, least active first.

    Args:
        evaluation: One arm.
        lengths: History length of every user code, (n_users,), for example ``train.lengths``: known
            before treatment, unlike a group made of a noisy result.
        metric: A metric of `evaluation`.
        groups: Number of groups.
        level: Coverage of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed.
    """
    own = np.asarray(lengths)[evaluation.users]
    group = activity_groups(own, groups)
    values = _values(evaluation, metric)
    rows = []
    for number in np.unique(group).tolist():
        inside = group == number
        rows.append(
            _row(
                f"{number + 1} of {groups}",
                values[inside],
                {"shortest": int(own[inside].min()), "longest": int(own[inside].max())},
                level=level,
                resamples=resamples,
                seed=seed,
            )
        )
    return rows


def by_group(
    evaluation: Evaluation,
    masks: Mapping[str, BoolArray],
    metric: str,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Return a metric for named groups of users.

    Args:
        evaluation: One arm.
        masks: Name -> True for every user code in the group, (n_users,); groups may overlap.
        metric: A metric of `evaluation`.
        level: Coverage of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed.
    """
    values = _values(evaluation, metric)
    return [
        _row(
            name,
            values[np.asarray(mask)[evaluation.users]],
            {},
            level=level,
            resamples=resamples,
            seed=seed,
        )
        for name, mask in masks.items()
    ]


def by_warmth(
    ranks: Ranks,
    item_counts: NDArray[Any],
    metric: str,
    *,
    cold_at_most: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Return a metric over all, cold and warm held-out items.

    Places are those in the full list; only the targets are restricted, and a user without a target
    of the kind is left out of its row.

    Args:
        ranks: Ranks of one arm.
        item_counts: Interactions of each item in training, (n_items,).
        metric: A metric name.
        cold_at_most: The most training interactions that a cold item has.
        level: Coverage of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed.
    """
    chosen = parse_metric(metric)
    cold = np.asarray(item_counts)[ranks.items] <= cold_at_most
    rows = []
    for name, mask in (("all", np.ones_like(cold)), ("cold", cold), ("warm", ~cold)):
        part = ranks.where(mask)
        figures = {"n_targets": int(mask.sum())}
        rows.append(_row(name, chosen(part), figures, level=level, resamples=resamples, seed=seed))
    return rows


def _values(evaluation: Evaluation, metric: str) -> DoubleArray:
    if metric not in evaluation.values:
        raise DataError(f"arm {evaluation.arm!r} has no {metric!r}; it has {', '.join(evaluation.values)}.")
    return evaluation.values[metric]


def _row(name: str, values: DoubleArray, figures: Row, *, level: float, resamples: int, seed: int) -> Row:
    found = interval(values, level=level, resamples=resamples, seed=seed)
    return {"segment": name, **figures, "n_users": found.n, **_numbers(found.mean, found.low, found.high)}


def _numbers(mean: float, low: float, high: float) -> Row:
    # JSON has no NaN: a segment without defined users says null.
    return {
        name: None if np.isnan(value) else value
        for name, value in (("mean", mean), ("low", low), ("high", high))
    }
