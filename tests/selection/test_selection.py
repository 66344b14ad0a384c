from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.selection import SCORERS, create, parse_budget, scorer_class, select
from frugalrec.selection.surrogates import SurrogateScorer
from frugalrec.testing.selection_contract import ScorerContract
from frugalrec.testing.toys import cycle_dataset


@pytest.mark.parametrize(
    ("budget", "n", "rows"),
    [
        ("2%", 1000, 20),
        (0.02, 1000, 20),
        ("0.02", 1000, 20),
        (1024, 5000, 1024),
        ("64", 1000, 64),
        (10, 10, 10),
        (0.001, 10, 1),  # at least one
        ("100%", 7, 7),
        (1.0, 7, 7),
        (64.0, 100, 64),
        ("0.5%", 300, 2),  # 1.5 rounds half up
    ],
)
def test_budgets(budget, n, rows):
    assert parse_budget(budget, n) == rows


@pytest.mark.parametrize("budget", [0, -3, "0%", "200%", "many", float("nan"), True, 2.5, "", "-2%", "inf"])
def test_senseless_budgets_are_refused(budget):
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(budget, 100)


@pytest.mark.parametrize("budget", [11, "11", 11.0, "2000"])
def test_more_rows_than_there_are_is_no_budget(budget):
    with pytest.raises(
        ConfigError, match=rf"budget of {int(float(budget))} rows exceeds the 10 rows.*lower it"
    ):
        parse_budget(budget, 10)
    with pytest.raises(ConfigError, match="exceeds the 10 rows"):
        select(np.arange(10.0), budget, scorer="x")


def test_scores_of_which_none_is_defined_are_no_ground_to_choose_on():
    with pytest.raises(DataError, match="recent: none of the 5 rows has a score.*another scorer"):
        select(np.full(5, np.nan), 2, scorer="recent")


def test_select_keeps_the_highest_and_counts_the_dropped():
    kept = select(np.array([0.1, 3.0, np.nan, 2.0, -np.inf]), 3, scorer="x")
    assert kept.kept.tolist() == [0, 1, 3]
    assert (kept.n_dropped, kept.budget, kept.scorer) == (2, 3, "x")


def test_undefined_scores_go_last_even_after_minus_infinity():
    assert select(np.array([np.nan, -np.inf, np.nan, 1.0]), 2, scorer="x").kept.tolist() == [1, 3]


def test_ties_are_broken_by_seed_not_by_row_number():
    choices = {tuple(select(np.zeros(10), 3, scorer="x", seed=s).kept) for s in range(20)}
    assert len(choices) > 10
    assert (
        select(np.zeros(10), 3, scorer="x", seed=4).kept == select(np.zeros(10), 3, scorer="x", seed=4).kept
    ).all()


@given(
    st.lists(st.floats(width=32, allow_nan=True), max_size=39),
    st.floats(width=32, allow_nan=False),
    st.integers(0, 5),
    st.data(),
)
def test_selection_has_the_exact_size_and_no_dropped_row_beats_a_kept_one(values, defined, seed, data):
    scores = np.array([*values, defined], dtype=np.float32)
    budget = data.draw(st.integers(1, scores.size))
    kept = select(scores, budget, scorer="x", seed=seed).kept
    assert kept.size == budget == np.unique(kept).size
    dropped = np.setdiff1d(np.arange(scores.size), kept)
    for row in dropped:
        if not np.isnan(scores[row]):
            assert (scores[kept] >= scores[row]).all()


@pytest.mark.parametrize("name", sorted(set(SCORERS) - {"dealrec", "effort"}))  # those need an LLM
class TestScorers(ScorerContract):
    def build(self, name):
        small = {"options": {"epochs": 2, "embedding_size": 8}}
        few = {"groups": 5} if name == "ccs" else {}
        return create(name, **(small | few if issubclass(scorer_class(name), SurrogateScorer) else {}))


def test_unknown_scorer_names_the_choices():
    with pytest.raises(ConfigError, match="'best'; choose one of .*random"):
        create("best")


def test_longest_prefers_long_windows_then_busy_users():
    data = cycle_dataset(n_users=6, length=8)
    rows = examples(data, window=3, min_history=1, per_user="all")
    scores = create("longest").score(rows, data)
    lengths = np.diff(rows.indptr)
    for a in range(len(rows)):
        for b in range(len(rows)):
            if lengths[a] > lengths[b]:
                assert scores[a] > scores[b]
    # equal windows: the user with more interactions. Users 0 and 1 keep 8 and 5 of theirs.
    keep = np.ones(data.n, dtype=bool)
    keep[data.indptr[1] : data.indptr[1] + 3] = False
    shorter = data.where(keep)
    scores = create("longest").score(examples(shorter, window=3), shorter)
    assert scores[0] > scores[1]


def test_recent_follows_target_times():
    data = cycle_dataset(n_users=10, length=5)
    rows = examples(data, per_user="all")
    scores = create("recent").score(rows, data)
    assert rows.times is not None
    assert (np.argsort(scores, kind="stable") == np.argsort(rows.times, kind="stable")).all()
    part = rows.take(np.array([3, 1]))
    assert part.times.tolist() == [rows.times[3], rows.times[1]]
    untimed = create("recent").score(replace(rows, times=None), data)
    assert np.isnan(untimed).all()


def test_no_rows_is_an_error():
    data = cycle_dataset(n_users=3, length=3)
    with pytest.raises(DataError, match="no training rows"):
        create("random").score(examples(data, min_history=5), data)
