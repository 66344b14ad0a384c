"""Leniency and quality: the log-odds of a like as what the user forgives plus what the title is worth.

The Rasch model (1960) of yes/no answers, with a normal prior on everybody. A title's quality is its own
deviation plus, where there is an embedder, what its text says, so that a title with few ratings, or none,
is not left at zero. A user who was never seen is placed by the likes and dislikes in the row itself, each
weighed by the quality of what was liked: to like what nobody likes is a stronger sign. Training is one
concave problem, solved by Newton's method in seconds; there is no seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from frugalrec.data.likes import ratings
from frugalrec.data.readers.tallrec import PointwiseRows
from frugalrec.errors import ConfigError, DataError, NotFittedError
from frugalrec.recommenders.feedback_rows import TextEmbedder
from frugalrec.types import BoolArray, DoubleArray

OVERALL_VARIANCE = 100.0
"""Prior variance of the overall log-odds: wide, yet finite where all ratings agree."""


@dataclass(kw_only=True, eq=False, repr=False)
class Leniency:
    """Fits on yes/no rows and scores others; needs no network.

    After `fit`: `overall_` (log-odds), `deviations_` (title -> its own part of the quality) and
    `directions_` (what the text vectors' directions are worth).
    """

    user_variance: float = 1.0
    """Prior variance of users' leniency."""
    title_variance: float = 0.5
    """Prior variance of titles' own deviations."""
    text_variance: float = 2.0
    """Prior variance of what a direction of the text vectors is worth; without an embedder, no text."""
    embedder: TextEmbedder | None = None
    """Gives the titles' vectors."""

    overall_: float = field(init=False)
    deviations_: dict[str, float] | None = field(init=False, default=None)
    directions_: DoubleArray = field(init=False)
    centre_: DoubleArray = field(init=False)

    def fit(self, rows: PointwiseRows) -> Self:
        """Learn from the ratings in the rows' histories and labels.

        Raises:
            ConfigError: If a variance is not above 0.
            DataError: If there are no rows.
        """
        for option in ("user_variance", "title_variance", "text_variance"):
            if not getattr(self, option) > 0:
                raise ConfigError(f"leniency: {option} must be above 0, not {getattr(self, option)}.")
        known = ratings(rows)
        if not len(known):
            raise DataError("leniency: there are no rows to learn from; give at least one.")
        distinct, place = np.unique(np.array(known.titles), return_inverse=True)
        titles, place = distinct.tolist(), place.reshape(-1)
        vectors = self._vectors(titles)
        self.centre_ = vectors.mean(axis=0)
        features = vectors - self.centre_
        n, users = len(known), int(known.raters.max()) + 1
        by_user = sp.csr_array((np.ones(n), (np.arange(n), known.raters)), shape=(n, users)).toarray()
        design = np.hstack([np.ones((n, 1)), by_user, features[place]])
        variances = (OVERALL_VARIANCE, self.user_variance, self.text_variance)
        precision = 1 / np.repeat(variances, (1, users, features.shape[1]))
        found, own = _maximum(design, place, known.likes, precision, 1 / self.title_variance)
        self.overall_, self.directions_ = float(found[0]), found[1 + users :]
        self.deviations_ = dict(zip(titles, own.tolist(), strict=True))
        return self

    def quality(self, titles: Sequence[str]) -> DoubleArray:
        """Return what titles add to the log-odds, (n,); for one without ratings, what its text says."""
        if self.deviations_ is None:
            raise NotFittedError("leniency is not fitted; call fit first.")
        own = np.array([self.deviations_.get(title, 0.0) for title in titles], dtype=np.float64)
        quality: DoubleArray = own + (self._vectors(titles) - self.centre_) @ self.directions_
        return quality

    def leniency(self, rows: PointwiseRows) -> DoubleArray:
        """Return what the user of each row adds, (n,), judged by the row's own history; 0 without any."""
        titles = sorted(set().union(*rows.liked, *rows.disliked))
        quality = dict(zip(titles, self.quality(titles).tolist(), strict=True))
        histories = [
            [(quality[title], 1.0) for title in liked] + [(quality[title], 0.0) for title in disliked]
            for liked, disliked in zip(rows.liked, rows.disliked, strict=True)
        ]
        owner = np.repeat(np.arange(len(rows)), [len(history) for history in histories])
        flat = np.array([pair for history in histories for pair in history]).reshape(-1, 2)
        found = np.zeros(len(rows))
        # Newton's method in one dimension for all rows at once; the objective is strictly concave.
        for _ in range(50):
            chances = _sigmoid(self.overall_ + found[owner] + flat[:, 0])
            slope = np.bincount(owner, flat[:, 1] - chances, len(rows)) - found / self.user_variance
            bend = np.bincount(owner, chances * (1 - chances), len(rows)) + 1 / self.user_variance
            step = np.clip(slope / bend, -2.0, 2.0)
            found += step
            if np.abs(step).max(initial=0.0) < 1e-10:
                break
        return found

    def score(self, rows: PointwiseRows) -> DoubleArray:
        """Return the log-odds of Yes of each row, (n,); labels are not looked at."""
        quality = self.quality(rows.targets)
        return self.overall_ + self.leniency(rows) + quality

    def _vectors(self, titles: Sequence[str]) -> DoubleArray:
        """Return the text vectors of titles, (n, width); of no width without an embedder."""
        if self.embedder is None:
            return np.empty((len(titles), 0))
        return self.embedder.embed(list(titles)).astype(np.float64)


def _maximum(
    design: DoubleArray,
    titles: NDArray[Any],
    likes: BoolArray,
    precision: DoubleArray,
    title_precision: float,
) -> tuple[DoubleArray, DoubleArray]:
    """Return (weights (d,), deviations (titles,)) of highest posterior density, by Newton's method.

    The titles' own block of the curvature is diagonal, so it is eliminated first.
    """
    n, n_titles = len(likes), int(titles.max()) + 1
    of_title = sp.csr_array((np.ones(n), (titles, np.arange(n))), shape=(n_titles, n))
    weights, own = np.zeros(design.shape[1]), np.zeros(n_titles)
    signs = np.where(likes, 1.0, -1.0)

    def objective(weights: DoubleArray, own: DoubleArray) -> float:
        odds = design @ weights + own[titles]
        penalty = precision @ weights**2 + title_precision * own @ own
        return float(np.logaddexp(0.0, -signs * odds).sum() + penalty / 2)

    value = objective(weights, own)
    for _ in range(100):
        chances = _sigmoid(design @ weights + own[titles])
        bends = chances * (1 - chances)
        slopes = likes - chances
        to_weights = design.T @ slopes - precision * weights
        to_own = np.bincount(titles, slopes) - title_precision * own
        own_bend = np.bincount(titles, bends) + title_precision
        weighted = design * bends[:, None]
        cross = np.asarray(of_title @ weighted)  # (titles, d)
        curvature = design.T @ weighted + np.diag(precision) - cross.T @ (cross / own_bend[:, None])
        step = np.linalg.solve(curvature, to_weights - cross.T @ (to_own / own_bend))
        own_step = (to_own - cross @ step) / own_bend
        share = 1.0
        while objective(weights + share * step, own + share * own_step) > value and share > 1e-6:
            share /= 2
        weights, own = weights + share * step, own + share * own_step
        value = objective(weights, own)
        if max(np.abs(step).max(), np.abs(own_step).max()) < 1e-9:
            break
    return weights, own


def _sigmoid(odds: DoubleArray) -> DoubleArray:
    chances: DoubleArray = np.exp(-np.logaddexp(0.0, -odds))
    return chances
