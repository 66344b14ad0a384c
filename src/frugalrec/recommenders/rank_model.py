"""Fitted rank trees: scores of candidates, a text file, and the evidence for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError, StorageError, require
from frugalrec.recommenders.candidate_features import CandidateFeatures
from frugalrec.runs import storage_errors, write_text
from frugalrec.types import BoolArray, DoubleArray, FloatArray

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RankModel:
    """Fitted trees, and the evidence for them."""

    names: tuple[str, ...]
    """Features, in the order of the columns."""
    start: str | None
    """The feature whose value boosting starts from."""
    start_scale: float
    trees: int
    """Trees that are used; 0 leaves the order of `start`."""
    text: str
    """The trees in LightGBM's own text format; empty without trees."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """Trees -> NDCG inside the lists of users left out of the fit."""
    held_out: DoubleArray | None = None
    """Score of each row from a fit without its user, (n_rows,), in the order given to `fit`."""

    def score(self, features: NDArray[Any]) -> DoubleArray:
        """Return the score of each row, (n_rows,), higher is better; features as in `LambdaRank.fit`."""
        values = checked_features(features, self.names)
        scores = started(values, self.names, self.start, self.start_scale)
        if self.trees and len(values):
            scores = scores + _booster(self.text).predict(values, raw_score=True, num_threads=1)
        return scores

    def score_lists(self, features: CandidateFeatures) -> FloatArray:
        """Return scores of candidates, (n_users, m), NaN at padding, as `grounding.fusion.fuse` takes them.

        Raises:
            DataError: If a feature that the model was fitted on is not among them.
        """
        return unfolded(self.score(folded(features, self.names)), features.present)

    @property
    def importance(self) -> dict[str, float]:
        """Feature -> share of what all splits gained; all 0 without trees."""
        if not self.trees:
            return dict.fromkeys(self.names, 0.0)
        gains = _booster(self.text).feature_importance("gain", iteration=self.trees)
        return dict(zip(self.names, (gains / max(gains.sum(), 1e-12)).tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write the model as JSON, its trees as LightGBM's text."""
        facts = {"format": FORMAT, **asdict(self)}
        facts["held_out"] = None if self.held_out is None else self.held_out.tolist()
        facts["curve"] = {str(trees): value for trees, value in self.curve.items()}
        with storage_errors(path):
            write_text(path, json.dumps(facts))

    @classmethod
    def load(cls, path: Path) -> RankModel:
        """Read what `save` wrote.

        Raises:
            StorageError: If the file is missing, damaged or of another format.
        """
        try:
            facts = json.loads(path.read_text())
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            facts["names"] = tuple(facts["names"])
            facts["curve"] = {int(trees): value for trees, value in facts["curve"].items()}
            held_out = facts["held_out"]
            facts["held_out"] = None if held_out is None else np.array(held_out, dtype=np.float64)
            model = cls(**facts)
            if model.trees:
                _booster(model.text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path} is no rank model that can be read ({error}); fit it again.") from None
        return model


def checked_features(features: NDArray[Any], names: Sequence[str]) -> DoubleArray:
    """Return rows of features as float64, checked."""
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(f"features of shape {values.shape} do not fit the {len(names)} names.")
    if np.isinf(values).any():
        raise DataError(
            f"the feature {names[int(np.isinf(values).any(axis=0).argmax())]!r} is infinite in some rows."
        )
    return values


def folded(features: CandidateFeatures, names: Sequence[str]) -> DoubleArray:
    """Return the features of all candidates, list after list, (n_rows, n_features)."""
    absent = [name for name in names if name not in features.names]
    if absent:
        raise DataError(f"the model was fitted with the feature {absent[0]!r}, which is not given.")
    index = [features.names.index(name) for name in names]
    return features.values[features.present][:, index].astype(np.float64)


def unfolded(scores: DoubleArray, present: BoolArray) -> FloatArray:
    """Return rows' scores as lists, (n_users, m), NaN at padding."""
    lists = np.full(present.shape, np.nan, dtype=np.float32)
    lists[present] = scores
    return lists


def started(values: DoubleArray, names: Sequence[str], start: str | None, scale: float) -> DoubleArray:
    """Return what boosting starts from, (n_rows,)."""
    if start is None:
        return np.zeros(len(values))
    return scale * np.nan_to_num(values[:, list(names).index(start)], nan=0.0)


def _booster(text: str) -> Any:
    lightgbm = require("lightgbm", "rank")
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(str(error)) from None
