"""Batches of one task each."""

from __future__ import annotations

import numpy as np
import pytest

from frugalrec.distillation.pod.batches import alternated, bucketed, epoch_batches, weighted_rows


def lengths(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"sequential": rng.integers(5, 90, 500), "top-n": rng.integers(300, 430, 60)}


def test_every_row_is_in_one_batch_of_its_task_and_budgets_hold() -> None:
    given = lengths()
    found = epoch_batches(given, max_tokens=2000, max_rows=16, seed=0, epoch=0)
    for task, sizes in given.items():
        rows = [batch for name, batch in found if name == task]
        assert sorted(np.concatenate(rows).tolist()) == list(range(sizes.size))
        for batch in rows:
            assert batch.size <= 16
            assert batch.size == 1 or batch.size * sizes[batch].max() <= 2000


def test_buckets_save_padding() -> None:
    sizes = lengths()["sequential"]
    rng = np.random.default_rng(0)
    ours = sum(b.size * sizes[b].max() for b in bucketed(sizes, max_tokens=10_000, max_rows=16, rng=rng))
    order = np.random.default_rng(0).permutation(sizes.size)
    plain = sum(len(b) * sizes[b].max() for b in np.array_split(order, sizes.size // 16))
    assert ours < 1.1 * sizes.sum() < 0.7 * plain


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    found = bucketed(np.array([5, 900, 6]), max_tokens=20, max_rows=8, rng=np.random.default_rng(0))
    assert sorted(map(len, found)) == [1, 2]


def test_tasks_take_turns_evenly() -> None:
    turns = alternated({"a": 30, "b": 10, "c": 20})
    assert [turns.count(task) for task in "abc"] == [30, 10, 20]
    for start in range(0, 60, 6):  # each tenth of an epoch has its share
        part = turns[start : start + 6]
        assert [part.count(task) for task in "abc"] == pytest.approx([3, 1, 2], abs=1)


def test_order_is_seeded_by_name() -> None:
    def said(seed: int, epoch: int, given: dict[str, np.ndarray]) -> list[tuple[str, list[int]]]:
        found = epoch_batches(given, max_tokens=2000, max_rows=16, seed=seed, epoch=epoch)
        return [(task, rows.tolist()) for task, rows in found]

    given = lengths()
    assert said(0, 0, given) == said(0, 0, given)
    assert said(0, 0, given) != said(1, 0, given) and said(0, 0, given) != said(0, 1, given)
    # Another task changes the turns, not the batches of this one.
    alone = said(0, 0, {"sequential": given["sequential"]})
    assert [entry for entry in said(0, 0, given) if entry[0] == "sequential"] == alone


def test_weights_are_passes() -> None:
    def rows(weight: float, epoch: int = 0) -> list[int]:
        return weighted_rows(100, weight, seed=0, task="top-n", epoch=epoch).tolist()

    assert rows(1.0) == list(range(100)) and rows(2.0) == list(range(200))
    part = rows(0.25)
    assert len(part) == len(set(part)) == 25 and max(part) < 100 and part != rows(0.25, epoch=1)
    more = rows(1.5)
    assert more[:100] == list(range(100)) and len(more) == 150 and min(more[100:]) >= 100
