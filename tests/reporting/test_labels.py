import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from frugalrec.reporting.labels import Box, place, spread

FRAME = Box(0, 0, 400, 300)
points = st.tuples(st.floats(0, 400), st.floats(0, 300))
sizes = st.tuples(st.floats(5, 120), st.floats(5, 15))


def naive_overlap(a, b):
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


@pytest.mark.slow
@given(st.lists(st.tuples(points, sizes), max_size=12))
def test_labels_cover_neither_each_other_nor_a_mark_nor_the_edge(labels):
    anchors, wanted = [p for p, _ in labels], [s for _, s in labels]
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in anchors]
    placed = place(anchors, wanted, marks, FRAME)
    boxes = [box for box in placed if box is not None]
    assert len(placed) == len(labels)
    for i, box in enumerate(boxes):
        assert not any(naive_overlap(box, other) for other in boxes[i + 1 :] + marks)
        assert 0 <= box.x0 and box.x1 <= 400 and 0 <= box.y0 and box.y1 <= 300


def test_a_lonely_label_stands_right_beside_its_mark():
    # 7 px to the right of the mark, centred on its height: 100 + 7 and 100 - 10 / 2.
    assert place([(100, 100)], [(50, 10)], [], FRAME) == [Box(107, 95, 157, 105)]


def test_a_label_without_room_is_left_out():
    assert place([(100, 100)], [(500, 10)], [], FRAME) == [None]


def test_a_label_is_not_nearer_to_another_mark():
    first, second = place([(100, 100), (130, 100)], [(60, 10), (60, 10)], [], FRAME)
    assert first.distance((100, 100)) <= first.distance((130, 100)) + 3
    assert second.distance((130, 100)) <= second.distance((100, 100)) + 3


@pytest.mark.slow
@given(st.lists(st.floats(-1e3, 1e3), max_size=15), st.floats(0.1, 50))
def test_spread_is_the_closest_ordering_with_gaps(wanted, gap):
    found = spread(wanted, gap)
    order = np.argsort(wanted, kind="stable")
    ranks = np.arange(len(wanted))
    if len(wanted):
        target = np.asarray(wanted)[order] - ranks * gap
        best = IsotonicRegression().fit_transform(ranks, target) + ranks * gap
        assert np.asarray(found)[order] == pytest.approx(best, abs=1e-6)
    assert all(np.diff(np.asarray(found)[order]) >= gap - 1e-6)


def test_positions_far_apart_stay_where_they_are():
    assert spread([30.0, 0.0, 60.0], 10) == [30.0, 0.0, 60.0]


def test_equal_positions_part_around_their_mean():
    assert spread([5.0, 5.0], 4) == [3.0, 7.0]  # 5 - 4/2 and 5 + 4/2
