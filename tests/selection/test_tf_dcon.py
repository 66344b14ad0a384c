from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.data.examples import Examples, examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.selection import create
from frugalrec.selection.title_vectors import tf_idf, title_vectors
from frugalrec.testing.toys import cycle_dataset

TITLES = [
    "The Red House",
    "the red red RIVER",
    "A river, a house!",
    "...",
    "Blue moon 7",
    "Moon over the blue house",
    "Seven",
    "river 7",
]
DATA = cycle_dataset(n_users=40, n_items=8, length=8, noise=0.5)
ROWS = examples(DATA, window=5, min_history=1, per_user="all")


def rng():
    return np.random.default_rng(0)


def few(histories, targets) -> Examples:
    """Rows of given histories and targets."""
    lengths = [len(history) for history in histories]
    return Examples(
        users=np.arange(len(targets), dtype=np.int32),
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for history in histories for item in history], dtype=np.int32),
        values=None,
        targets=np.array(targets, dtype=np.int32),
        labels=None,
    )


def test_word_weights_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    theirs = TfidfVectorizer(token_pattern=r"\w+").fit(TITLES)
    ours = tf_idf(TITLES)
    gram = ours @ ours.T
    expected = theirs.transform(TITLES)
    np.testing.assert_allclose(gram.toarray(), (expected @ expected.T).toarray(), atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 3, 5, 30])
def test_vectors_are_the_best_of_their_width(dimensions):
    vectors = title_vectors(TITLES, dimensions, rng())
    assert np.isnan(vectors[3]).all()  # no word
    vectors = np.nan_to_num(vectors)
    left, values, _ = np.linalg.svd(tf_idf(TITLES).toarray(), full_matrices=False)
    best = (left * values)[:, :dimensions]
    np.testing.assert_allclose(vectors @ vectors.T, best @ best.T, atol=1e-9)


def test_a_row_is_the_mean_of_its_items_and_the_score_its_distance_from_the_mean_row():
    items = np.random.default_rng(1).normal(size=(DATA.n_items, 3))
    scorer = create("tf-dcon", vectors=items)
    scores = scorer.score(ROWS, DATA)
    rows = [
        np.mean([items[i] for i in [*ROWS.history(r), ROWS.targets[r]]], axis=0) for r in range(len(ROWS))
    ]
    np.testing.assert_allclose(scorer.rows_, rows)
    middle = sum(rows) / len(rows)
    np.testing.assert_allclose(scores, [-np.sqrt(((row - middle) ** 2).sum()) for row in rows], rtol=1e-5)
    order = np.random.default_rng(2).permutation(len(ROWS))
    np.testing.assert_allclose(create("tf-dcon", vectors=items).score(ROWS.take(order), DATA), scores[order])


def test_each_group_gives_the_row_nearest_to_its_mean():
    # Three groups far apart on a line; the middle row of each is nearest to its mean.
    places = [0.0, 1.0, 2.1, 100.0, 101.0, 102.1, 200.0, 201.0]
    vectors = np.array(places)[:, None]
    rows = few([[i] for i in range(8)], list(range(8)))
    scorer = create("tf-dcon", vectors=vectors)
    kept = scorer.choose(scorer.score(rows, DATA), 3).kept
    assert kept[:2].tolist() == [1, 4] and kept[2] in (6, 7)
    # The order of rows plays no part.
    backwards = rows.take(np.arange(8)[::-1])
    turned = scorer.choose(scorer.score(backwards, DATA), 3).kept
    assert {1, 4} < set((7 - turned).tolist())
    # With three groups and a budget of five, groups take turns: each first, then two seconds.
    scorer = create("tf-dcon", vectors=vectors, clusters=3)
    kept = scorer.choose(scorer.score(rows, DATA), 5).kept
    assert sorted(np.bincount(kept // 3).tolist()) == [1, 2, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.data())
def test_the_size_is_exact_however_few_distinct_rows_there_are(n, distinct, seed, wordless, data):
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, distinct, n)
    rows = few([[int(target)] for target in targets], targets)
    titles = ["!" if wordless and item == 0 and distinct > 1 else f"title {item}" for item in range(8)]
    if wordless and distinct > 1 and not (targets > 0).any():
        return
    scorer = create("tf-dcon")
    scores = scorer.score(rows, titled(DATA, titles))
    size = data.draw(st.integers(1, n))
    kept = scorer.choose(scores, size, seed=seed).kept
    assert kept.size == size == np.unique(kept).size and (np.diff(kept) > 0).all()
    defined = ~np.isnan(scores)
    assert np.isnan(scores[kept]).sum() == max(0, size - defined.sum())  # undefined ones fill up
    covered = {int(targets[row]) for row in kept if defined[row]}
    assert len(covered) == min(len({*targets[defined].tolist()}), size)


def titled(data, titles) -> Dataset:
    return replace(data, item_text=data.item_text.with_columns(pl.Series(TITLE, titles)))


def test_another_seed_may_choose_others_and_the_same_does_not():
    scorer = create("tf-dcon")
    scores = scorer.score(ROWS, DATA)
    one, two, other = (scorer.choose(scores, 20, seed=s).kept for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clusters": 0}, ConfigError, "clusters=0 must be a whole number in 1.."),
        ({"clusters": 9999}, ConfigError, f"clusters=9999 must be a whole number in 1..{len(ROWS)}"),
        ({"clusters": 2.5}, ConfigError, "clusters=2.5 must be a whole number"),
        ({"dimensions": 0}, ConfigError, "dimensions must be a whole number of at least 1, not 0"),
        ({"dimensions": "many"}, ConfigError, "not 'many'"),
        ({"vectors": np.zeros((3, 2))}, DataError, r"expected shape \(8, d\).*got \(3, 2\)"),
        ({"vectors": np.zeros(8)}, DataError, r"got \(8,\)"),
        ({"vectors": [["a"]] * 8}, DataError, "expected a table of numbers"),
        ({"vectors": np.array([[1.0], [np.nan], *[[2.0]] * 6])}, DataError, "line 1 holds NaN"),
    ],
)
def test_senseless_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        create("tf-dcon", **options).score(ROWS, DATA)


def test_scores_of_other_rows_are_no_ground_to_choose_on():
    with pytest.raises(DataError, match="call score on the rows first"):
        create("tf-dcon").choose(np.zeros(4), 2)
    scorer = create("tf-dcon")
    scorer.score(ROWS, DATA)
    with pytest.raises(DataError, match="these 4 scores are not of the rows"):
        scorer.choose(np.zeros(4), 2)
    with pytest.raises(DataError, match="no title has a word"):
        create("tf-dcon").score(ROWS, titled(DATA, ["?"] * 8))


def test_an_id_is_no_word():
    untitled = replace(DATA, item_text=DATA.item_text.with_columns(pl.lit(None, pl.String).alias(TITLE)))
    with pytest.raises(DataError, match="no title has a word"):
        create("tf-dcon").score(ROWS, untitled)
