"""The contract of the scorer seam: inherit it, parametrise `name`, get these checks."""

from __future__ import annotations

import numpy as np

from frugalrec.data.examples import Examples, examples
from frugalrec.selection import Scorer, create, select
from frugalrec.testing.toys import cycle_dataset


def _check(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class ScorerContract:
    """Checks that every scorer must pass; the test class is parametrised with ``name``.

    Override `build` for a scorer that is not in the table or needs options.
    """

    data = cycle_dataset(n_users=40, n_items=20, length=8)

    def build(self, name: str) -> Scorer:
        """Return a fresh scorer."""
        return create(name)

    def rows(self) -> Examples:
        """Return candidate rows."""
        return examples(self.data, window=5, min_history=2, per_user="last")

    def test_name_is_the_one_in_the_table(self, name: str) -> None:
        """The class knows its own name."""
        _check(self.build(name).name == name, "the class's name differs from its name in the table")

    def test_one_float_a_row(self, name: str) -> None:
        """Scores are (n,) float32, without infinities."""
        scores = self.build(name).score(self.rows(), self.data)
        _check(scores.shape == (len(self.rows()),), "expected one score a row")
        _check(scores.dtype == np.float32, "expected float32")
        _check(not np.isinf(scores).any(), "a score is infinite")

    def test_same_call_same_scores(self, name: str) -> None:
        """Two fresh scorers agree bit for bit."""
        first = self.build(name).score(self.rows(), self.data)
        second = self.build(name).score(self.rows(), self.data)
        _check(np.array_equal(first, second, equal_nan=True), "two calls with one seed differ")

    def test_rows_are_not_changed(self, name: str) -> None:
        """Scoring leaves the rows as they were."""
        rows, before = self.rows(), self.rows()
        self.build(name).score(rows, self.data)
        _check(np.array_equal(rows.items, before.items), "scoring changed the histories")
        _check(np.array_equal(rows.targets, before.targets), "scoring changed the targets")

    def test_scores_lead_to_a_selection_of_the_asked_size(self, name: str) -> None:
        """The scores can be selected from."""
        scores = self.build(name).score(self.rows(), self.data)
        kept = select(scores, 7, scorer=name).kept
        _check(kept.size == 7 and (np.diff(kept) > 0).all(), "expected seven ascending row numbers")

    def test_its_own_choice_has_the_asked_size(self, name: str) -> None:
        """`choose` keeps exactly as many rows as the budget says, the same ones for the same seed."""
        scorer = self.build(name)
        scores = scorer.score(self.rows(), self.data)
        for budget in (1, 7, "50%"):
            one, two = (scorer.choose(scores, budget, seed=3) for _ in range(2))
            size = 20 if budget == "50%" else budget
            _check(one.kept.size == one.budget == size, f"a budget of {budget} kept {one.kept.size} rows")
            _check((np.diff(one.kept) > 0).all(), "the kept rows do not ascend")
            _check(np.array_equal(one.kept, two.kept), "two choices with one seed differ")
