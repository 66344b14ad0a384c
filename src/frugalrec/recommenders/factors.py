"""Matrix factorisation: ALS and BPR, trained by the `implicit` library."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.recommenders.base import Recommender, history_matrix
from frugalrec.rng import derive_seed
from frugalrec.types import FloatArray, IntArray

ROWS = 64
"""Users multiplied at once. BLAS rounds by the shape of its operands: one shape, one rounding."""


class ALS(Recommender):
    """Implicit-feedback matrix factorisation by alternating least squares.

    Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008. Only
    the item factors are kept: a user's factors are solved exactly from `histories` at every call, so
    a user who has come on since training, or was not in it, is served like any other.
    """

    name: ClassVar[str] = "als"
    item_factors_: FloatArray
    """(n_items, factors)."""

    def __init__(
        self,
        *,
        factors: int = 64,
        regularization: float = 0.01,
        alpha: float = 1.0,
        iterations: int = 15,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Store the options.

        Args:
            factors: Dimensions of a user or an item.
            regularization: The L2 penalty.
            alpha: Confidence in an interaction; an item without one has confidence 1.
            iterations: Alternations.
            seed: Seed of the first factors.
            threads: Threads of training; the result does not depend on them.
        """
        self.factors = factors
        self.regularization = regularization
        self.alpha = alpha
        self.iterations = iterations
        self.seed = seed
        self.threads = threads

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        _check(self.name, self.factors, self.iterations, self.regularization)
        if self.alpha <= 0:
            raise ConfigError(f"als: alpha must be above 0, not {self.alpha}.")
        with threadpool_limits(limits=1, user_api="blas"):
            model = self._model()
            model.fit(sp.csr_matrix(train.matrix()), show_progress=False)
        self.item_factors_ = np.ascontiguousarray(model.item_factors, dtype=np.float32)

    def _model(self) -> Any:
        from implicit.cpu.als import AlternatingLeastSquares

        return AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            iterations=self.iterations,
            num_threads=self.threads,
            random_state=_seed(self.seed, self.name),
        )

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        with threadpool_limits(limits=1, user_api="blas"):
            model = self._model()
            model.item_factors = self.item_factors_
            rows = sp.csr_matrix(history_matrix(histories, users))
            solved = model.recalculate_user(np.arange(users.size), rows)
        return products(np.asarray(solved, dtype=np.float32), self.item_factors_)

    def _state(self) -> dict[str, NDArray[Any]]:
        return {"item_factors": self.item_factors_}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.item_factors_ = state["item_factors"]


class BPR(Recommender):
    """Matrix factorisation that learns to rank an interaction above a random other item.

    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009. A user with
    training interactions keeps the fitted factors, whatever `histories` says. Anyone else is folded
    in: the mean, over the items of the history, of the mean factors of the item's training users;
    without a usable history, the mean of all training users.
    """

    name: ClassVar[str] = "bpr"
    user_factors_: FloatArray
    """(n_users, factors + 1); the last column is 1, to meet the item's bias."""
    item_factors_: FloatArray
    """(n_items, factors + 1); the last column is the item's bias."""
    trained_: NDArray[np.bool_]
    """Whether a user has training interactions, (n_users,)."""
    audience_: FloatArray
    """Mean factors of the training users of each item, (n_items, factors + 1); zeros without any."""

    def __init__(
        self,
        *,
        factors: int = 64,
        learning_rate: float = 0.01,
        regularization: float = 0.01,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        """Store the options.

        Args:
            factors: Dimensions of a user or an item, without the bias.
            learning_rate: Step size.
            regularization: The L2 penalty.
            iterations: Passes over the interactions. Training runs on one thread: with more, updates
                race and a seed would not fix the result.
            seed: Seed of the first factors and of the sampled items.
        """
        self.factors = factors
        self.learning_rate = learning_rate
        self.regularization = regularization
        self.iterations = iterations
        self.seed = seed

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        _check(self.name, self.factors, self.iterations, self.regularization)
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        matrix = train.matrix()
        with threadpool_limits(limits=1, user_api="blas"):
            model = BayesianPersonalizedRanking(
                factors=self.factors,
                learning_rate=self.learning_rate,
                regularization=self.regularization,
                iterations=self.iterations,
                num_threads=1,
                random_state=_seed(self.seed, self.name),
            )
            model.fit(sp.csr_matrix(matrix), show_progress=False)
        self.user_factors_ = np.ascontiguousarray(model.user_factors, dtype=np.float32)
        self.item_factors_ = np.ascontiguousarray(model.item_factors, dtype=np.float32)
        self.trained_ = train.lengths > 0
        by_item = matrix.T.tocsr()
        sizes = np.maximum(np.diff(by_item.indptr), 1)[:, None]
        self.audience_ = np.asarray(by_item @ self.user_factors_ / sizes, dtype=np.float32)

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        factors = self.user_factors_[users]
        new = ~self.trained_[users]
        if new.any():
            factors[new] = self._fold_in(users[new], histories)
        return products(factors, self.item_factors_)

    def _fold_in(self, users: IntArray, histories: Dataset) -> FloatArray:
        rows = history_matrix(histories, users)
        # Items without training users say nothing of a newcomer's factors.
        known = np.any(self.audience_ != 0, axis=1).astype(np.float32)
        sizes = (rows @ known)[:, None]
        folded = (rows @ self.audience_) / np.maximum(sizes, 1)
        average = self.user_factors_[self.trained_].mean(axis=0)
        factors: FloatArray = np.where(sizes > 0, folded, average).astype(np.float32)
        return factors

    def _state(self) -> dict[str, NDArray[Any]]:
        return {
            "user_factors": self.user_factors_,
            "item_factors": self.item_factors_,
            "trained": self.trained_,
            "audience": self.audience_,
        }

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.user_factors_ = state["user_factors"]
        self.item_factors_ = state["item_factors"]
        self.trained_ = state["trained"]
        self.audience_ = state["audience"]


def products(user_factors: FloatArray, item_factors: FloatArray) -> FloatArray:
    """Return ``user_factors @ item_factors.T`` with a rounding that ignores the number of users."""
    scores = np.empty((user_factors.shape[0], item_factors.shape[0]), dtype=np.float32)
    block = np.zeros((ROWS, user_factors.shape[1]), dtype=np.float32)
    for start in range(0, user_factors.shape[0], ROWS):
        part = user_factors[start : start + ROWS]
        block[: part.shape[0]] = part
        scores[start : start + ROWS] = (block @ item_factors.T)[: part.shape[0]]
    return scores


def _check(name: str, factors: int, iterations: int, regularization: float) -> None:
    if factors < 1 or iterations < 1 or regularization < 0:
        raise ConfigError(
            f"{name}: factors={factors} and iterations={iterations} must be at least 1, "
            f"and regularization={regularization} at least 0."
        )


def _seed(seed: int, name: str) -> int:
    return derive_seed(seed, name) % (2**31)  # implicit takes 32 bits
