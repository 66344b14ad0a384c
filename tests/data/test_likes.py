"""Like-rates of titles: each rating once, against a naive count of the ratings the rows were cut from."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.likes import item_counts, item_like_rate, ratings
from frugalrec.data.readers.tallrec import (
    PointwiseRows,
    history_like_rate,
    parse_prompts,
    read_prompts,
    rebuild_movie_split,
)
from frugalrec.errors import ConfigError
from frugalrec.evaluation.pointwise import auc


def windows(users, window):
    """Cut users' ratings into rows: `window` ratings before, and the one that follows."""
    rows = [events[at - window : at + 1] for events in users for at in range(window, len(events))]
    return PointwiseRows(
        liked=tuple(tuple(title for title, like in row[:-1] if like) for row in rows),
        disliked=tuple(tuple(title for title, like in row[:-1] if not like) for row in rows),
        targets=tuple(row[-1][0] for row in rows),
        labels=np.array([row[-1][1] for row in rows], dtype=bool),
    )


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_rating_is_counted_once(seed, window):
    rng = np.random.default_rng(seed)
    catalogue = [f"film {number}" for number in range(30)]
    users = []
    for user in range(5):
        # The first title is the user's own: else one user's row may by chance continue another's.
        titles = [f"own {user}", *(catalogue[i] for i in rng.permutation(30)[: window + rng.integers(8)])]
        users.append([(title, bool(rng.random() < 0.6)) for title in titles])
    rows = windows(users, window)
    found = ratings(rows)
    naive = [
        (rater, title, like)
        for rater, events in enumerate(users)
        for like in (True, False)
        for title, liked in events
        if liked is like
    ]
    assert Counter(zip(found.raters.tolist(), found.titles, found.likes.tolist(), strict=True)) == Counter(
        naive
    )
    assert len(found) == len(naive)
    # Likes and ratings of each target, and the rate, by a loop.
    overall = np.mean([like for _, _, like in naive])
    for row, target in enumerate(rows.targets):
        marks = [like for _, title, like in naive if title == target]
        assert [counts[row] for counts in item_counts(rows, rows)] == [sum(marks), len(marks)]
        rate = (sum(marks) + 2.5 * overall) / (len(marks) + 2.5)
        assert item_like_rate(rows, rows, pseudo_count=2.5)[row] == pytest.approx(rate)


def test_rows_that_do_not_overlap_are_counted_whole():
    rows = PointwiseRows(
        liked=(("a",), ("a",), ("b",)),
        disliked=((), ("c",), ("c",)),
        targets=("b", "b", "a"),
        labels=np.array([True, False, True]),
    )
    # Row 2 has "c" and lacks "b"; row 3 has lost "a" and has "b", but as a like: both start anew.
    assert ratings(rows).raters.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [counts.tolist() for counts in item_counts(rows, rows)] == [[2, 2, 3], [3, 3, 3]]


def test_titles_without_ratings_have_the_overall_rate():
    train = windows([[("a", True), ("b", True), ("c", False)]], 1)
    rows = windows([[("a", True), ("new", False)]], 1)
    assert item_like_rate(train, rows).tolist() == pytest.approx([2 / 3])
    nothing = train.take(np.array([], dtype=int))
    assert item_like_rate(nothing, rows).tolist() == [0.5]
    assert [counts.tolist() for counts in item_counts(nothing, rows)] == [[0], [0]]
    with pytest.raises(ConfigError, match="above 0, not 0"):
        item_like_rate(train, rows, pseudo_count=0)


@pytest.mark.slow
def test_the_movie_split(real_data):
    files = rebuild_movie_split(real_data / "ml-100k")
    train = parse_prompts(json.loads(files["train"]))
    test = read_prompts(real_data / "tallrec-movie" / "test.json")
    known = ratings(train)
    # 80 users, of whom the file holds ten ratings of history and the 8,000 targets.
    assert (len(known), int(known.raters.max()) + 1) == (8_800, 80)
    rate = item_like_rate(train, test)
    assert 100 * auc(rate, test.labels) == pytest.approx(67.21, abs=0.005)
    assert 100 * auc(rate + history_like_rate(test), test.labels) == pytest.approx(76.10, abs=0.005)
