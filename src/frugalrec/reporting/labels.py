"""Where to write direct labels so that none covers another, a mark or the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_SLACK, _MARK = 3.0, 5.0
_DISTANCES = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows upwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    def touches(self, other: Box) -> bool:
        """Return whether both rectangles share more than an edge."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return the point of this rectangle that is nearest to `point`."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

    def distance(self, point: tuple[float, float]) -> float:
        """Return how far `point` is from this rectangle; 0 inside it."""
        return math.dist(self.nearest(point), point)

    def inside(self, other: Box) -> bool:
        """Return whether this rectangle lies within `other`."""
        return self.x0 >= other.x0 and self.x1 <= other.x1 and self.y0 >= other.y0 and self.y1 <= other.y1


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
) -> list[Box | None]:
    """Return a free rectangle near each anchor, nearest first; earlier labels choose first.

    Args:
        anchors: The marks to label, in pixels.
        sizes: Width and height of each label.
        obstacles: What no label may cover.
        frame: What every label must stay within.

    Returns:
        One rectangle a label, or ``None`` where every place nearby is taken.
    """
    taken = list(obstacles)
    placed: list[Box | None] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        others = [other for other in anchors if other != anchor]
        boxes = [box for box in _around(anchor, size) if _is_free(box, taken, frame)]
        reached = [box for box in boxes if not _crosses(anchor, box, others)]
        # A label that is nearer to another mark would be read as that mark's name.
        clear = [
            b for b in reached if all(b.distance(anchor) <= b.distance(other) + _SLACK for other in others)
        ]
        free = next(iter(clear or reached or boxes), None)
        placed.append(free)
        if free is not None:
            taken.append(free)
    return placed


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions at least `gap` apart, in the order of `wanted` and close to it.

    Neighbours that are too close form a block around their own mean, as in isotonic regression.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[tuple[float, int]] = []  # sum of (wanted - rank * gap), members
    for rank, i in enumerate(order):
        blocks.append((wanted[i] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + members)
    flat = [total / members for total, members in blocks for _ in range(members)]
    result = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        result[i] = flat[rank] + rank * gap
    return result


def _is_free(box: Box, taken: Sequence[Box], frame: Box) -> bool:
    return box.inside(frame) and not any(box.touches(other) for other in taken)


def _is_nearest(anchor: tuple[float, float], box: Box, others: Sequence[tuple[float, float]]) -> bool:
    return all(box.distance(anchor) <= box.distance(other) + _SLACK for other in others)


def _crosses(anchor: tuple[float, float], box: Box, others: Sequence[tuple[float, float]]) -> bool:
    """Return whether the way from a mark to its label passes over another mark."""
    x, y = box.nearest(anchor)
    steps = [(anchor[0] + (x - anchor[0]) * t / 8, anchor[1] + (y - anchor[1]) * t / 8) for t in range(1, 8)]
    return any(math.dist(step, other) < _MARK for step in steps for other in others)


def _around(anchor: tuple[float, float], size: tuple[float, float]) -> list[Box]:
    """Return candidate rectangles around a mark, nearest distance first."""
    (x, y), (width, height) = anchor, size
    boxes = []
    for distance in _DISTANCES:
        for dx, dy in _DIRECTIONS:
            reach = distance if dx == 0 or dy == 0 else distance * 0.7
            left = x + dx * reach - (width / 2 if dx == 0 else width if dx < 0 else 0)
            bottom = y + dy * reach - (height / 2 if dy == 0 else height if dy < 0 else 0)
            boxes.append(Box(left, bottom, left + width, bottom + height))
    return boxes
