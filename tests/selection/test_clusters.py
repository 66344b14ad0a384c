import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.selection.clusters import kmeans, rank_within


def blobs(groups, each, *, spread, seed=0, width=5):
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(groups, width))
    labels = np.repeat(np.arange(groups), each)
    return centres[labels] + spread * rng.normal(size=(labels.size, width)), labels


def same_groups(first, second):
    """Whether two labellings split the rows alike, whatever the groups are called."""
    pairs = {*zip(first.tolist(), second.tolist(), strict=True)}
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_groups_far_apart_are_found_whatever_the_order_of_rows(seed):
    vectors, truth = blobs(7, 20, spread=0.01)
    order = np.random.default_rng(seed).permutation(truth.size)
    found = kmeans(vectors[order], 7, np.random.default_rng(seed))
    assert same_groups(found.labels, truth[order])
    for group in range(7):
        mean = vectors[order][found.labels == group].mean(axis=0)
        np.testing.assert_allclose(found.centres[group], mean)


def test_groups_are_a_fixed_point_of_the_naive_loop():
    vectors, _ = blobs(12, 15, spread=8.0, seed=3)
    found = kmeans(vectors, 9, np.random.default_rng(1), iterations=200)
    for row, vector in enumerate(vectors):
        gaps = [np.sqrt(sum((vector - centre) ** 2)) for centre in found.centres]
        assert int(np.argmin(gaps)) == found.labels[row]
        assert found.distances[row] == pytest.approx(min(gaps))
    for group, centre in enumerate(found.centres):
        np.testing.assert_allclose(centre, vectors[found.labels == group].mean(axis=0))


@pytest.mark.slow
def test_as_tight_as_scikit_learn():
    from sklearn.cluster import KMeans

    vectors, _ = blobs(30, 20, spread=6.0, seed=5)
    ours = [(kmeans(vectors, 20, np.random.default_rng(s)).distances ** 2).sum() for s in range(10)]
    theirs = [KMeans(20, n_init=1, random_state=s).fit(vectors).inertia_ for s in range(10)]
    assert np.mean(ours) < 1.03 * np.mean(theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 3), st.data())
def test_no_group_is_empty_and_equal_rows_stay_together(n, values, seed, data):
    vectors = np.random.default_rng(seed).integers(0, values, size=(n, 2)).astype(float)
    k = data.draw(st.integers(1, n))
    found = kmeans(vectors, k, np.random.default_rng(seed))
    distinct = np.unique(vectors, axis=0)
    assert len(found.centres) == min(k, len(distinct)) == np.unique(found.labels).size
    for row in distinct:
        assert np.unique(found.labels[(vectors == row).all(axis=1)]).size == 1
    if k >= len(distinct):
        assert found.distances.max() < 1e-12


def test_a_repeated_row_weighs_as_often_as_it_occurs():
    vectors = np.array([[0.0]] * 9 + [[10.0]])
    assert kmeans(vectors, 1, np.random.default_rng(0)).centres.tolist() == [[1.0]]


def test_many_centres_are_drawn_many_at_a_time_and_stay_different():
    vectors = np.random.default_rng(0).normal(size=(400, 3))
    found = kmeans(vectors, 300, np.random.default_rng(0))
    assert np.unique(found.centres, axis=0).shape == (300, 3)


def test_one_seed_one_result_and_another_seed_another():
    vectors, _ = blobs(12, 15, spread=8.0)
    one, two, other = (kmeans(vectors, 10, np.random.default_rng(s)).labels for s in (4, 4, 5))
    assert np.array_equal(one, two) and not same_groups(one, other)


@pytest.mark.parametrize(
    ("vectors", "k", "error", "message"),
    [
        (np.zeros((4, 2)), 0, ConfigError, "clusters=0 must be a whole number in 1..4"),
        (np.zeros((4, 2)), 5, ConfigError, "clusters=5 must be a whole number in 1..4"),
        (np.zeros(4), 1, DataError, r"shape \(n, d\).*got \(4,\)"),
        (np.array([[1.0], [np.nan]]), 1, DataError, "line 1 holds NaN"),
    ],
)
def test_senseless_input_is_refused(vectors, k, error, message):
    with pytest.raises(error, match=message):
        kmeans(vectors, k, np.random.default_rng(0))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=30))
def test_ranks_within_groups_equal_a_sort_of_each_group(rows):
    groups, first, second = (np.array(column) for column in zip(*rows, strict=True))
    second = second * 100 + np.arange(len(rows))  # no two rows equal
    ranks = rank_within(groups, first, second)
    for row in range(len(rows)):
        before = [
            other
            for other in range(len(rows))
            if groups[other] == groups[row] and (first[other], second[other]) < (first[row], second[row])
        ]
        assert ranks[row] == len(before)
