"""K-means against plain loops, and the matching against the loop that takes pairs by distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError
from frugalrec.grounding.item_ids.grouping import _nearest, kmeans, matched, squared_distances
from frugalrec.grounding.item_ids.residuals import residual_kmeans


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def by_pairs(costs: np.ndarray, room: int) -> list[int]:
    """Take the nearest pair of a free point and a group with room, again and again."""
    group = [-1] * len(costs)
    for point, k in sorted(np.ndindex(*costs.shape), key=lambda pair: costs[pair]):
        if group[point] < 0 and group.count(k) < room:
            group[point] = k
    return group


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 9), st.integers(0, 2))
def test_matching_equals_taking_the_nearest_pairs(n, k, seed, spare):
    costs = np.random.default_rng(seed).random((n, k))
    room = -(-n // k) + spare
    assert matched(costs, room).tolist() == by_pairs(costs, room)


def test_matching_with_room_for_all_is_the_nearest_group():
    costs = np.random.default_rng(0).random((40, 5))
    np.testing.assert_array_equal(matched(costs, 40), costs.argmin(axis=1))


def test_ties_are_matched_too():
    assert np.bincount(matched(np.zeros((10, 4)), 3)).tolist() == [3, 3, 3, 1]


def test_squared_distances_equal_a_loop():
    points, centres = drawn(7, 3, 0), drawn(4, 3, 1)
    loop = [[sum((a - b) ** 2 for a, b in zip(p, c, strict=True)) for c in centres] for p in points]
    np.testing.assert_allclose(squared_distances(points, centres), loop, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 9))
def test_no_step_of_lloyd_makes_the_groups_better(n, k, seed):
    points = drawn(n, 3, seed)
    found = kmeans(points, min(k, n), np.random.default_rng(seed), iterations=100)
    for group, centre in enumerate(found.centres):
        np.testing.assert_allclose(centre, points[found.labels == group].mean(axis=0), atol=1e-9)
    error = sum(float(((p - found.centres[g]) ** 2).sum()) for p, g in zip(points, found.labels, strict=True))
    assert found.error == pytest.approx(error)
    nearest = [min(((p - c) ** 2).sum() for c in found.centres) for p in points]
    assert found.error == pytest.approx(sum(nearest))


def test_clear_groups_are_found():
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [0, 10], [10, 0], [10, 10]])
    truth = rng.integers(4, size=80)
    points = corners[truth] + rng.normal(scale=0.1, size=(80, 2))
    labels = kmeans(points, 4, np.random.default_rng(1)).labels
    assert len(set(zip(truth.tolist(), labels.tolist(), strict=True))) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 9))
def test_no_group_is_fuller_than_its_room(n, k, seed):
    k = min(k, n)
    room = -(-n // k)
    points = np.round(drawn(n, 2, seed))  # many equal points
    labels = kmeans(points, k, np.random.default_rng(seed), room=room).labels
    assert np.bincount(labels, minlength=k).max() <= room


def test_how_many_distances_are_held_does_not_matter(monkeypatch):
    points = drawn(50, 3, 0)
    whole = kmeans(points, 6, np.random.default_rng(0))
    monkeypatch.setattr("frugalrec.grounding.item_ids.grouping.CELLS", 40)
    np.testing.assert_array_equal(kmeans(points, 6, np.random.default_rng(0)).labels, whole.labels)


def test_no_group_stays_empty():
    points = drawn(30, 1, 0)
    for seed in range(20):  # as many groups as points: each gets one
        labels = kmeans(points, 30, np.random.default_rng(seed), iterations=3).labels
        assert sorted(labels.tolist()) == list(range(30))
    centres = np.array([[0.0], [50.0], [60.0]])  # two centres that are nearest to none
    assert sorted(set(_nearest(points, centres).tolist())) == [0, 1, 2]


def test_equal_points_stay_in_one_group():
    points = np.repeat(drawn(3, 2, 0), 5, axis=0)
    found = kmeans(points, 10, np.random.default_rng(0))
    assert len(found.centres) == 3 and found.error == pytest.approx(0)
    assert all(len(set(found.labels[i : i + 5].tolist())) == 1 for i in (0, 5, 10))


def test_groups_without_room_for_all_are_refused():
    with pytest.raises(ConfigError, match="9 points do not fit into 4 groups of at most 2"):
        kmeans(drawn(9, 2, 0), 4, np.random.default_rng(0), room=2)
    with pytest.raises(ConfigError, match="9 points do not fit into 10 groups"):
        kmeans(drawn(9, 2, 0), 10, np.random.default_rng(0))


def test_residual_error_equals_a_loop():
    points = drawn(60, 4, 0)
    found, centres = residual_kmeans(points, 3, 5, np.random.default_rng(0), iterations=100)
    total = sum(float(((p - points.mean(axis=0)) ** 2).sum()) for p in points)
    left = [p.copy() for p in points]
    for level, book in enumerate(centres):
        for row in range(len(left)):
            nearest = min(range(len(book)), key=lambda c: float(((left[row] - book[c]) ** 2).sum()))
            assert found.codes[row, level] == nearest
            left[row] = left[row] - book[nearest]
        error = sum(float((rest**2).sum()) for rest in left)
        assert found.unexplained[level] == pytest.approx(error / total)
    assert found.unexplained[0] > found.unexplained[1] > found.unexplained[2] > 0


def test_moving_and_stretching_all_points_changes_no_code():
    points = drawn(60, 4, 0)
    first, _ = residual_kmeans(points, 2, 5, np.random.default_rng(0))
    moved, _ = residual_kmeans(points * 4 + 8, 2, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(first.codes, moved.codes)
    assert moved.unexplained == pytest.approx(first.unexplained)
