"""Evaluate one arm: scores of the full catalogue, or finished lists, into per-user metric values.

Arms are comparable when they share the users, the held-out items and what is masked. So both ways
take the same fold and the same `seen` rule. An arm that only re-ranks the first places of a cheap
model's list is evaluated from its whole list, tail included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Fold, Split
from frugalrec.errors import ConfigError
from frugalrec.evaluation import catalogue
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import Ranks, Score, ranks_from_ranking, target_ranks
from frugalrec.types import Evaluation, IntArray, Ranking

Seen = Literal["exclude", "include"]


def evaluate(
    arm: str,
    score: Score,
    split: Split,
    fold: Fold,
    metrics: Sequence[str],
    *,
    users: NDArray[Any] | None = None,
    seen: Seen = "exclude",
    lists: int = 10,
    batch_size: int | None = None,
    threads: int = 1,
) -> Evaluation:
    """Evaluate a model by the ranks of held-out items in its full ranking.

    Args:
        arm: Name of the arm.
        score: User codes (b,) -> scores of all items (b, n_items), for example
            ``lambda users: model.score(users, split.history(fold))``.
        split: The folds.
        fold: `valid` to choose, `test` to report, once.
        metrics: Names such as ``"ndcg@10"``; see `frugalrec.evaluation.metrics.METRICS`.
        users: User codes; default: all who have held-out items and a history.
        seen: `exclude` masks what the user's history before the fold holds.
        lists: Length of the lists that coverage, novelty and Gini are computed on; 0 leaves them out.
        batch_size: Users scored at once; default: as many as fit in a few megabytes.
        threads: Batches worked on at the same time; `score` must then be thread-safe.

    Returns:
        Per-user values; `details` also tells ``score_s``, the seconds spent inside `score`.
    """
    clock = _Clock(score)
    ranks = fold_ranks(
        clock, split, fold, users=users, seen=seen, lists=lists, batch_size=batch_size, threads=threads
    )
    details = {"split": split.method, "fold": fold, "seen": seen, "score_s": clock.seconds}
    return evaluate_ranks(arm, ranks, metrics, history=split.history(fold), details=details)


def fold_ranks(
    score: Score,
    split: Split,
    fold: Fold,
    *,
    users: NDArray[Any] | None = None,
    seen: Seen = "exclude",
    lists: int = 0,
    batch_size: int | None = None,
    threads: int = 1,
) -> Ranks:
    """Return the ranks under `evaluate`, for more than one use; arguments as there."""
    return target_ranks(
        score,
        split.users(fold) if users is None else users,
        split.targets(fold),
        seen=_masked(split, fold, seen),
        lists=min(lists, split.train.n_items),
        batch_size=batch_size,
        threads=threads,
    )


def evaluate_ranking(
    arm: str,
    ranking: Ranking,
    targets: Dataset,
    metrics: Sequence[str],
    *,
    seen: Dataset | None,
    history: Dataset | None = None,
    lists: int = 10,
) -> Evaluation:
    """Evaluate finished lists; a held-out item that is not listed is missed.

    Args:
        arm: Name of the arm.
        ranking: The whole lists as shown; its users are those evaluated.
        targets: The held-out interactions, ``split.targets(fold)``.
        metrics: Names such as ``"ndcg@10"``, with a list length of at most `ranking.k`; not ``auc``.
        seen: Held-out items among these are no targets. Pass ``split.history(fold)`` beside arms
            evaluated with ``seen="exclude"``, None beside ``"include"``: there is no default, since
            arms compare only under one rule.
        history: What was known before, for the novelty of the lists; default: `seen`.
        lists: Places of each list that coverage, novelty and Gini look at.
    """
    for metric in map(parse_metric, metrics):
        if metric.k is not None and metric.k > ranking.k:
            raise ConfigError(
                f"{metric.name} needs lists of {metric.k} items, and those of {arm!r} have {ranking.k}. "
                f"Make longer lists, or ask for at most @{ranking.k}."
            )
    ranks = ranks_from_ranking(ranking, targets, seen=seen)
    ranks = replace(ranks, lists=ranking.items[:, :lists])
    details = {"seen": "include" if seen is None else "exclude", "ranked": ranking.k}
    return evaluate_ranks(arm, ranks, metrics, history=history or seen, details=details)


def evaluate_ranks(
    arm: str,
    ranks: Ranks,
    metrics: Sequence[str],
    *,
    history: Dataset | None = None,
    details: dict[str, Any] | None = None,
) -> Evaluation:
    """Turn ranks into an `Evaluation`.

    Args:
        arm: Name of the arm.
        ranks: Ranks from `target_ranks` or `ranks_from_ranking`.
        metrics: Names such as ``"ndcg@10"``.
        history: What was known before, for the novelty of the lists; None leaves novelty out.
        details: More figures to keep.
    """
    chosen = [parse_metric(name) for name in metrics]
    if not chosen:
        raise ConfigError("give at least one metric, for example ndcg@10.")
    figures: dict[str, Any] = {
        **(details or {}),
        "dialects": {metric.name: metric.dialect for metric in chosen},
        "n_users": int(ranks.users.size),
        "n_users_without_targets": int((ranks.n_relevant == 0).sum()),
        "n_targets": int(ranks.items.size),
        "n_targets_already_seen": ranks.n_repeats,
        "n_targets_missed": int(np.isinf(ranks.better).sum()),
        "n_targets_tied": int((ranks.tied > 0).sum()),
        "n_candidates": float(ranks.n_candidates.mean()) if ranks.users.size else float("nan"),
    }
    if ranks.lists is not None and ranks.lists.size:
        figures |= _list_figures(ranks.lists, ranks.n_items, history)
    values = {metric.name: metric(ranks) for metric in chosen}
    return Evaluation(arm=arm, users=ranks.users, values=values, details=figures)


class _Clock:
    """A score function that adds up its own seconds."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._spent: list[float] = []  # appending is atomic: several threads may score at once

    @property
    def seconds(self) -> float:
        return sum(self._spent)

    def __call__(self, users: IntArray) -> NDArray[Any]:
        start = time.perf_counter()
        scores = self._score(users)
        self._spent.append(time.perf_counter() - start)
        return scores


def _masked(split: Split, fold: Fold, seen: Seen) -> Dataset | None:
    if fold not in ("valid", "test"):
        raise ConfigError(f"unknown fold {fold!r}; choose valid or test.")
    if seen not in ("exclude", "include"):
        raise ConfigError(f"unknown seen={seen!r}; choose exclude or include.")
    return split.history(fold) if seen == "exclude" else None


def _list_figures(lists: NDArray[np.int32], n_items: int, history: Dataset | None) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "list_length": int(lists.shape[1]),
        "coverage": catalogue.coverage(lists, n_items),
        "gini": catalogue.gini(lists, n_items),
    }
    if history is not None:
        takers = np.asarray(history.matrix().sum(axis=0)).ravel()
        bits = catalogue.novelty(lists, takers, int((history.lengths > 0).sum()))
        figures["novelty_bits"] = float(np.nanmean(bits)) if np.isfinite(bits).any() else float("nan")
    return figures
