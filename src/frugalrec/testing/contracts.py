"""Contract tests for plug-in authors: subclass one, write `make`, and inherit a dozen checks."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, NotFittedError
from frugalrec.recommenders import RECOMMENDERS, create
from frugalrec.recommenders.base import Recommender
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import PAD, FloatArray, Ranking


class RecommenderContract:
    """What every `Recommender` must do. A model's test is three lines.

    >>> from frugalrec.recommenders.baselines import Popularity
    >>> class TestPopularity(RecommenderContract):
    ...     uses_history = False
    ...     def make(self) -> Recommender:
    ...         return Popularity()
    """

    uses_history: ClassVar[bool] = True
    """Whether scores depend on what `histories` says of the user."""
    exact: ClassVar[bool] = True
    """Whether scores are the same to the last bit in any batch; if not, to `tolerance`."""
    tolerance: ClassVar[float] = 1e-4

    def make(self) -> Recommender:
        """Return an unfitted model with options small enough for a test."""
        raise NotImplementedError("a contract test writes make()")

    def dataset(self) -> Dataset:
        """Return the data that the checks fit on; at least 20 users and 12 items."""
        return cycle_dataset()

    def fitted(self) -> Recommender:
        """Return a fitted model."""
        return self.make().fit(self.dataset())

    def test_an_unfitted_model_says_so(self) -> None:
        """Score, recommend and save ask for fit first."""
        for call in (
            lambda: self.make().score(np.arange(2)),
            lambda: self.make().recommend(np.arange(2)),
            lambda: self.make().save(Path("never-written")),
        ):
            with pytest.raises(NotFittedError, match="fit"):
                call()

    def test_the_constructor_only_stores(self) -> None:
        """Options are keyword-only and come back as attributes, untouched."""
        model = self.make()
        options = inspect.signature(type(model)).parameters
        for option in options.values():
            assert option.kind is inspect.Parameter.KEYWORD_ONLY, f"{option.name} must be keyword-only"
            assert hasattr(model, option.name), f"option {option.name} is not kept as an attribute"
        given = {key: getattr(model, key) for key in options}
        built = type(model)(**given)
        for key, value in given.items():
            assert getattr(built, key) is value, f"option {key} is not stored as it was given"
        assert model.fitted_on is None

    def test_the_table_finds_the_model(self) -> None:
        """`create` builds a model of the table from the same options."""
        model = self.make()
        if model.name in RECOMMENDERS:
            options = {key: getattr(model, key) for key in inspect.signature(type(model)).parameters}
            built = create(model.name, **options)
            assert type(built) is type(model)
            assert {key: getattr(built, key) for key in options} == options
        with pytest.raises(ConfigError, match="no-such-model"):
            create("no-such-model")

    def test_scores_have_shape_type_and_are_finite(self) -> None:
        """One float32 row a user, without NaN or infinity."""
        data = self.dataset()
        scores = self.make().fit(data).score(np.array([3, 0, 7]))
        assert scores.shape == (3, data.n_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_no_users_give_no_rows(self) -> None:
        """An empty request is no error."""
        data = self.dataset()
        model = self.make().fit(data)
        assert model.score(np.array([], dtype=np.int32)).shape == (0, data.n_items)
        assert model.recommend(np.array([], dtype=np.int32), 3).items.shape == (0, 3)

    def test_scores_do_not_depend_on_the_batch(self) -> None:
        """A user scored alone gets the same scores as in company."""
        model, users = self.fitted(), np.arange(20)
        whole = model.score(users)
        single = np.concatenate([model.score(users[[row]]) for row in range(users.size)])
        self._same(whole, single)

    def test_scores_follow_the_order_of_users(self) -> None:
        """Permuting or repeating users permutes or repeats rows."""
        model, users = self.fitted(), np.arange(20)
        order = np.random.default_rng(0).permutation(users.size)
        self._same(model.score(users)[order], model.score(users[order]))
        self._same(model.score(np.array([4, 4])), model.score(np.array([4]))[[0, 0]])

    def test_lists_do_not_depend_on_the_batch_size(self) -> None:
        """Lists are the same for any batch size."""
        model, users = self.fitted(), np.arange(20)
        first = model.recommend(users, 5, batch_size=1)
        for batch_size in (7, 256):
            self._same_lists(model.recommend(users, 5, batch_size=batch_size), first)

    def test_lists_hold_the_best_scores(self) -> None:
        """Lists agree with sorting all candidates by score."""
        data = self.dataset()
        model = self.make().fit(data)
        scores = model.score(np.arange(20))
        for seen in ("include", "exclude"):
            ranking = model.recommend(np.arange(20), 4, seen=seen)
            for user in range(20):
                # Naive oracle: sort all candidates by (score, then code).
                candidates = [
                    i for i in range(data.n_items) if seen == "include" or i not in data.history(user)
                ]
                best = sorted(candidates, key=lambda i: (-scores[user, i], i))[:4]
                expected = np.full(4, -np.inf, dtype=np.float32)
                expected[: len(best)] = scores[user, best]
                self._same(ranking.scores[[user]], expected[None, :])
                if self.exact:
                    assert ranking.items[user].tolist() == best + [PAD] * (4 - len(best))

    def test_seen_items_are_left_out_unless_asked_for(self) -> None:
        """A list never holds a seen item, unless seen='include'."""
        data = self.dataset()
        model, users = self.make().fit(data), np.arange(20)
        without = model.recommend(users, data.n_items)
        everything = model.recommend(users, data.n_items, seen="include")
        for user in users:
            known = set(data.history(int(user)).tolist())
            assert not known & set(without.items[user].tolist())
            assert sorted(everything.items[user].tolist()) == list(range(data.n_items))

    def test_lists_longer_than_the_catalogue_are_padded(self) -> None:
        """What is missing is -1 with score -inf."""
        data = self.dataset()
        ranking = self.make().fit(data).recommend(np.arange(3), data.n_items + 5)
        assert ranking.items.shape == (3, data.n_items + 5)
        assert (ranking.items[:, -5:] == PAD).all()
        assert np.isneginf(ranking.scores[ranking.items == PAD]).all()
        assert np.isfinite(ranking.scores[ranking.items != PAD]).all()

    def test_a_user_without_training_data_is_served_from_the_history(self) -> None:
        """A user known only at prediction time gets a list."""
        data, user = self.dataset(), 5
        train = data.where(data.rows != user)
        model = self.make().fit(train)
        ranking = model.recommend(np.array([user]), 4, histories=data)
        assert np.isfinite(ranking.scores).sum() == min(4, data.n_items - np.unique(data.history(user)).size)
        assert not set(ranking.items[0].tolist()) & set(data.history(user).tolist())
        nothing_known = model.score(np.array([user]))
        assert np.isfinite(nothing_known).all()
        told = model.score(np.array([user]), data)
        assert np.array_equal(told, nothing_known) != self.uses_history

    def test_fitting_twice_gives_the_same_model(self) -> None:
        """A second fit starts afresh and repeats to the last bit."""
        users, data = np.arange(20), self.dataset()
        first = self.make().fit(data).score(users)
        again = self.make().fit(data.where(data.rows < 15)).fit(data)
        np.testing.assert_array_equal(again.score(users), first)

    def test_saving_and_loading_changes_nothing(self, tmp_path: Path) -> None:
        """A model that was saved and loaded scores the same."""
        data, users = self.dataset(), np.arange(20)
        model = self.make().fit(data)
        model.save(tmp_path / "model")
        loaded = self.make().load(tmp_path / "model", data)
        np.testing.assert_array_equal(loaded.score(users), model.score(users))
        before, after = model.recommend(users, 6), loaded.recommend(users, 6)
        np.testing.assert_array_equal(before.items, after.items)

    def test_another_vocabulary_is_refused(self) -> None:
        """Histories whose codes mean something else are an error."""
        data = self.dataset()
        model = self.make().fit(data)
        with pytest.raises(DataError, match="vocabulary"):
            model.score(np.arange(2), _renamed(data, "item_ids"))
        with pytest.raises(DataError, match="vocabulary"):
            model.recommend(np.arange(2), histories=_renamed(data, "user_ids"))

    def test_unknown_user_codes_are_refused(self) -> None:
        """User codes out of range are an error."""
        data = self.dataset()
        model = self.make().fit(data)
        for code in (-1, data.n_users):
            with pytest.raises(DataError, match="user codes"):
                model.score(np.array([code]))

    def test_empty_training_data_are_refused(self) -> None:
        """Nothing can be learned from nothing."""
        data = self.dataset()
        with pytest.raises(DataError, match="empty"):
            self.make().fit(data.where(np.zeros(data.n, dtype=bool)))

    def test_scoring_changes_neither_the_data_nor_the_model(self) -> None:
        """Returned scores and the data stay as they were."""
        data = self.dataset()
        model, before = self.make().fit(data), data.items.copy()
        first = model.score(np.arange(20))
        kept = first.copy()
        model.score(np.arange(10, 30 if data.n_users >= 30 else 20))
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(data.items, before)

    def _same(self, left: FloatArray, right: FloatArray) -> None:
        if self.exact:
            np.testing.assert_array_equal(left, right)
        else:
            np.testing.assert_allclose(left, right, rtol=self.tolerance, atol=self.tolerance)

    def _same_lists(self, left: Ranking, right: Ranking) -> None:
        self._same(left.scores, right.scores)
        if self.exact:  # otherwise near-ties may swap
            np.testing.assert_array_equal(left.items, right.items)


def _renamed(data: Dataset, field: str) -> Dataset:
    changed: dict[str, Any] = {field: np.roll(getattr(data, field), 1)}
    return replace(data, **changed)
