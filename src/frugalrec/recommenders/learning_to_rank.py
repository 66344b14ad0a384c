"""LambdaRank: cheap lists re-ordered by boosted trees (LightGBM), the rival that any LLM must beat.

The trees correct the first model's order: boosting starts from one of the features, so no trees at all
leave the order as it was. How many trees there are is chosen on users left out of the fit, and is none where
their gain may be noise. The scores of left-out users are kept: apart from that choice they are an unbiased
picture of the gain. After Burges (MSR-TR-2010-82).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, require
from frugalrec.recommenders.candidate_features import FIRST, CandidateFeatures
from frugalrec.recommenders.rank_model import RankModel, checked_features, folded, started, unfolded
from frugalrec.recommenders.second_opinions import hits
from frugalrec.rng import derive_seed, generator
from frugalrec.types import BoolArray, DoubleArray, FloatArray, LongArray


@dataclass(frozen=True, kw_only=True)
class LambdaRank:
    """How trees are fitted. The result depends on the rows and the seed, not on the rows' order."""

    trees: int = 200
    """The most trees."""
    learning_rate: float = 0.05
    leaves: int = 7
    min_leaf: int = 40
    """Rows that a leaf holds at least."""
    l2: float = 5.0
    rows_share: float = 0.8
    """Share of the rows that a tree sees."""
    features_share: float = 0.8
    k: int = 10
    """Places that the NDCG of training and choice looks at."""
    start: str | None = f"{FIRST}.score"
    """The feature that boosting starts from; None starts from 0."""
    start_scale: float = 1.0
    folds: int = 5
    """Folds of users for the choice of the number of trees."""
    every: int = 10
    """The number of trees is chosen among multiples of this, and 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in {"trees": 0, "leaves": 2, "min_leaf": 1, "k": 1, "folds": 2, "every": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        for name in ("learning_rate", "rows_share", "features_share", "start_scale"):
            if not 0 < getattr(self, name) <= (np.inf if name == "start_scale" else 1):
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}.")
        if not self.l2 >= 0:
            raise ConfigError(f"l2 must not be negative, but is {self.l2}.")

    def fit(
        self,
        features: NDArray[Any],
        labels: NDArray[Any],
        groups: NDArray[Any],
        names: Sequence[str] | None = None,
    ) -> RankModel:
        """Fit trees that put each group's rows in the order of their labels.

        Args:
            features: (n_rows, n_features); NaN where a value is missing.
            labels: How good each row is, whole numbers from 0 to 30, (n_rows,).
            groups: Whose list each row is in, (n_rows,); rows may come in any order.
            names: Names of the features; default: f0, f1, ...

        Raises:
            DataError: If shapes or labels do not fit, or fewer than two groups have rows of different labels.
            MissingExtraError: If LightGBM is not installed.
        """
        values = np.asarray(features, dtype=np.float64)
        columns = tuple(names or (f"f{n}" for n in range(values.shape[-1])))
        values = checked_features(values, columns)
        start = self.start if self.start in columns else None
        if self.start is not None and names is not None and start is None:
            raise DataError(f"boosting starts from {self.start!r}, which is no feature; set start to None.")
        rows = _Rows.sorted(values, np.asarray(labels), np.asarray(groups))
        rows.base = started(rows.values, columns, start, self.start_scale)
        curve, held_out = self._cross_validated(rows, columns)
        best = fewest_trees(curve)
        text = (
            self._boosted(rows, np.ones(len(rows.labels), dtype=bool), columns, best).model_to_string()
            if best
            else ""
        )
        scores = np.empty(len(rows.labels))
        scores[rows.order] = held_out[best]
        return RankModel(
            names=columns,
            start=start,
            start_scale=self.start_scale,
            trees=best,
            text=text,
            curve={trees: float(values.mean()) for trees, values in curve.items()},
            held_out=scores,
        )

    def fit_lists(self, features: CandidateFeatures, targets: Dataset) -> RankModel:
        """Fit on candidate lists: a candidate that the user took up later is labelled 1, all others 0.

        `held_out` of the result follows the candidates, list after list; see `left_out`.

        Args:
            features: Of the lists of validation users.
            targets: What the users took up afterwards, ``split.targets("valid")``.

        Raises:
            DataError: If the histories that the features saw reach into the targets.
        """
        features.check_before(targets)
        present = features.present
        users = np.repeat(features.ranking.users[:, None], features.ranking.k, axis=1)
        labels = hits(features.ranking, targets)
        return self.fit(folded(features, features.names), labels[present], users[present], features.names)

    def _cross_validated(
        self, rows: _Rows, names: Sequence[str]
    ) -> tuple[dict[int, DoubleArray], dict[int, DoubleArray]]:
        """Return each left-out list's NDCG and the rows' scores, by number of trees."""
        counts = range(0, self.trees + 1, self.every)
        scores = {trees: rows.base.copy() for trees in counts}
        fold = self._fold(rows)
        for number in range(self.folds):
            inside = fold == number
            if not inside.any() or not self.trees:
                continue
            booster = self._boosted(rows, ~inside, names, self.trees)
            for trees in counts[1:]:
                part = booster.predict(
                    rows.values[inside], raw_score=True, num_iteration=trees, num_threads=1
                )
                scores[trees][inside] += part
        return {trees: rows.ndcg(found, self.k) for trees, found in scores.items()}, scores

    def _fold(self, rows: _Rows) -> LongArray:
        """Return the fold of each row; groups are dealt whole, and those that tell something evenly."""
        numbers = np.arange(rows.sizes.size)
        draws = generator(self.seed, "lambda-rank", "folds").permutation(numbers)
        order = np.lexsort((draws, ~rows.telling))
        fold = np.empty(numbers.size, dtype=np.int64)
        fold[order] = numbers % self.folds
        return np.repeat(fold, rows.sizes)

    def _boosted(self, rows: _Rows, chosen: BoolArray, names: Sequence[str], trees: int) -> Any:
        lightgbm = require("lightgbm", "rank")
        used = chosen & np.repeat(rows.telling, rows.sizes)
        sizes = np.add.reduceat(used, rows.starts)
        data = lightgbm.Dataset(
            rows.values[used],
            label=rows.labels[used],
            group=sizes[sizes > 0],
            init_score=rows.base[used],
            feature_name=[f"f{n}" for n in range(len(names))],
            params={"verbosity": -1, "feature_pre_filter": False, "num_threads": 1, "min_data_in_bin": 1},
        )
        return lightgbm.train(self._parameters(), data, num_boost_round=trees)

    def _parameters(self) -> dict[str, Any]:
        return {
            "objective": "lambdarank",
            "lambdarank_truncation_level": self.k,
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_leaf,
            "lambda_l2": self.l2,
            "bagging_fraction": self.rows_share,
            "bagging_freq": 1 if self.rows_share < 1 else 0,
            "feature_fraction": self.features_share,
            "seed": derive_seed(self.seed, "lambda-rank", "trees") % 2**31,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


@dataclass
class _Rows:
    """Rows by group, label and features, so that the order in which they are given does not matter."""

    values: DoubleArray
    labels: LongArray
    order: LongArray
    """Where each row stood."""
    sizes: LongArray
    """Rows of each group."""
    base: DoubleArray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def sorted(cls, values: DoubleArray, labels: NDArray[Any], groups: NDArray[Any]) -> _Rows:
        """Return checked rows in that order."""
        n = len(values)
        if labels.shape != (n,) or groups.shape != (n,):
            raise DataError(
                f"{n} rows of features need as many labels and groups; got {labels.shape}, {groups.shape}."
            )
        if not (np.isin(labels, np.arange(31)).all()):
            raise DataError("labels must be whole numbers from 0 to 30.")
        order = np.lexsort((*np.nan_to_num(values, nan=-np.inf).T[::-1], labels, groups))
        _, sizes = np.unique(groups, return_counts=True)
        rows = cls(
            values=values[order],
            labels=labels[order].astype(np.int64),
            order=order,
            sizes=sizes.astype(np.int64),
        )
        if int(rows.telling.sum()) < 2:
            raise DataError(
                f"of {sizes.size} lists, {int(rows.telling.sum())} hold rows of different labels, too few to "
                "learn an order from. Give more users or longer lists."
            )
        return rows

    @property
    def starts(self) -> LongArray:
        """First row of each group."""
        starts: LongArray = np.cumsum(self.sizes) - self.sizes
        return starts

    @property
    def telling(self) -> BoolArray:
        """True for groups with rows of different labels."""
        low, high = (f.reduceat(self.labels, self.starts) for f in (np.minimum, np.maximum))
        telling: BoolArray = low < high
        return telling

    def ndcg(self, scores: DoubleArray, k: int) -> DoubleArray:
        """Return the NDCG@k inside each list that tells something."""
        return list_ndcg(scores, self.labels, self.sizes, k)


def fewest_trees(curve: Mapping[int, DoubleArray]) -> int:
    """Return the fewest trees that are within one standard error of the best, paired over lists.

    None at all, unless these are better than none by at least two standard errors.

    Args:
        curve: Trees -> NDCG of each left-out list; holds 0.
    """

    def lead(a: int, b: int) -> float:
        """Return by how many standard errors `a` trees are better than `b`."""
        gaps = curve[a] - curve[b]
        error = gaps.std(ddof=1) / np.sqrt(gaps.size)
        return float(gaps.mean() / error) if error > 1e-12 else float(1e12 * gaps.mean())

    best = max(curve, key=lambda trees: (round(float(curve[trees].mean()), 9), -trees))
    if best == 0:
        return 0
    fewest = next(n for n in sorted(curve) if n and (n == best or lead(best, n) <= 1))
    return fewest if lead(fewest, 0) >= 2 else 0


def list_ndcg(scores: NDArray[Any], labels: NDArray[Any], sizes: NDArray[Any], k: int) -> DoubleArray:
    """Return the NDCG@k inside each list, gain 2**label - 1; tied rows share the places they take up.

    Lists whose rows all have one label are left out.

    Args:
        scores: (n_rows,), list after list.
        labels: (n_rows,).
        sizes: Rows of each list.
        k: Places that count.
    """
    found, start = [], 0
    for size in np.asarray(sizes).tolist():
        own, gains = scores[start : start + size], 2.0 ** labels[start : start + size] - 1.0
        start += size
        if gains.min() == gains.max():
            continue
        discounts = np.where(np.arange(size) < k, 1.0 / np.log2(np.arange(size) + 2.0), 0.0)
        _, place = np.unique(-own, return_inverse=True)
        order = np.argsort(place, kind="stable")
        counts = np.bincount(place)
        shared = np.add.reduceat(discounts, np.cumsum(counts) - counts) / counts
        dcg = float((gains[order] * np.repeat(shared, counts)).sum())
        found.append(dcg / float((np.sort(gains)[::-1] * discounts).sum()))
    return np.array(found, dtype=np.float64)


def left_out(model: RankModel, features: CandidateFeatures) -> FloatArray:
    """Return scores of the lists a model was fitted on, (n_users, m), each from a fit without its user."""
    if model.held_out is None or model.held_out.size != int(features.present.sum()):
        raise DataError("the model was fitted on other lists than these.")
    return unfolded(model.held_out, features.present)
