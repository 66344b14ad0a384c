"""The contract of the grounder seam: inherit it, write `make`, get these checks."""

from __future__ import annotations

import numpy as np
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.base import Grounder
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import PAD


def _check(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class GrounderContract:
    """Checks that every grounder must pass, whatever it asks the model."""

    users = np.array([4, 0, 8, 2, 5])

    def make(self) -> Grounder:
        """Return a grounder for `dataset`; a second call returns an equal one."""
        raise NotImplementedError("a contract test writes make()")

    def dataset(self) -> Dataset:
        """Return the histories: at least 9 users and 12 items."""
        return cycle_dataset(n_users=9, n_items=20, length=5)

    def test_lists_hold_real_items_none_twice(self) -> None:
        """Items are codes of the catalogue, padding stands at the end, scores do not rise."""
        data = self.dataset()
        for k in (1, 6, data.n_items + 3):
            ranking, usage = self.make().ground(data, self.users, k)
            _check(ranking.items.shape == (self.users.size, k), "expected (users, k) items")
            _check(np.array_equal(ranking.users, self.users), "the users are not those asked for")
            _check(ranking.items.max() < data.n_items and ranking.items.min() >= PAD, "an item is not real")
            for items, scores in zip(ranking.items, ranking.scores, strict=True):
                n = int((items != PAD).sum())
                _check((items[:n] != PAD).all(), "padding stands before an item")
                _check(np.unique(items[:n]).size == n, "an item is listed twice")
                _check((np.diff(scores[:n]) <= 0).all(), "scores rise along a list")
                _check(np.isneginf(scores[n:]).all(), "the score of padding is not -inf")
            _check(usage.llm_calls > 0 and usage.wall_s >= 0, "the usage is empty")

    def test_seen_items_are_left_out(self) -> None:
        """`exclude` leaves out every item of the history, `include` need not."""
        data = self.dataset()
        ranking, _ = self.make().ground(data, self.users, data.n_items, seen="exclude")
        for user, items in zip(self.users, ranking.items, strict=True):
            _check(not np.isin(items, data.history(int(user))).any(), "an item that was seen is listed")

    def test_each_user_is_served_alone(self) -> None:
        """Neither the order of users nor who else is asked for matters."""
        data, order = self.dataset(), np.array([3, 1, 4, 0, 2])
        whole, _ = self.make().ground(data, self.users, 6)
        turned, _ = self.make().ground(data, self.users[order], 6)
        _check(np.array_equal(turned.items, whole.items[order]), "the order of users matters")
        for row, user in enumerate(self.users):
            alone, _ = self.make().ground(data, np.array([user]), 6)
            _check(np.array_equal(alone.items[0], whole.items[row]), "other users matter")

    def test_shorter_lists_begin_longer_ones(self) -> None:
        """The best three of six are the best three; nothing else is promised of search."""
        data = self.dataset()
        six, _ = self.make().ground(data, self.users, 6)
        three, _ = self.make().ground(data, self.users, 3)
        _check(np.array_equal(three.items, six.items[:, :3]), "a shorter list is another one")

    def test_no_users_and_no_history_are_fine(self) -> None:
        """An empty call gives an empty ranking; a user without history gets a list."""
        data = self.dataset()
        nobody, _ = self.make().ground(data, self.users[:0], 4)
        _check(nobody.items.shape == (0, 4), "expected no rows")
        silent = data.where(data.rows != self.users[0])
        ranking, _ = self.make().ground(silent, self.users[:1], 4)
        _check((ranking.items != PAD).any(), "a user without history gets nothing")

    def test_progress_ends_with_all_users(self) -> None:
        """Progress never falls, and ends at (n, n)."""
        told: list[tuple[int, int]] = []
        self.make().ground(self.dataset(), self.users, 3, progress=lambda *at: told.append(at))
        _check(
            told and told[-1] == (self.users.size, self.users.size), "progress does not end with all users"
        )
        _check(told == sorted(told), "progress falls")

    def test_bad_arguments_are_named(self) -> None:
        """Wrong k, seen and users are refused with the value."""
        data = self.dataset()
        with pytest.raises(ConfigError, match="k must be at least 1, not 0"):
            self.make().ground(data, self.users, 0)
        with pytest.raises(ConfigError, match="seen must be exclude or include, not 'drop'"):
            self.make().ground(data, self.users, seen="drop")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="user codes must lie in 0"):
            self.make().ground(data, np.array([data.n_users]))
