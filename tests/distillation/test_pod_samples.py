"""Samples of POD's tasks against naive loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.readers.p5 import Explanations
from frugalrec.data.splits import Split, split
from frugalrec.distillation.pod.samples import (
    explanation_draw,
    next_items,
    sequential_draw,
    top_n_draw,
    train_explanations,
    unmet_items,
)
from frugalrec.distillation.pod.templates import bare, draw_templates
from frugalrec.errors import ConfigError, DataError
from frugalrec.rng import generator
from frugalrec.testing.toys import cycle_dataset


@pytest.fixture(scope="module")
def folds() -> Split:
    data = cycle_dataset(40, 30, 14, seed=3, noise=0.4)
    keep = np.ones(data.n, dtype=bool)
    for user in range(0, 40, 3):  # sequences of different lengths, down to one training item
        keep[data.indptr[user] : data.indptr[user] + 1 + user % 12] = False
    return split(data.where(keep), "leave-last-out")


def naive_segments(
    train: Dataset, window: int, seed: int, epoch: int
) -> list[tuple[int, list[int], int, int]]:
    """The rule read off the definition, user after user."""
    rng = generator(seed, "pod", "sequential", epoch)
    first, last = rng.random(train.n_users), rng.random(train.n_users)
    templates = draw_templates("sequential", train.n_users, seed, epoch)
    found = []
    for user in range(train.n_users):
        items = train.history(user).tolist()
        n = len(items)
        if n < 2:
            continue
        start = int(first[user] * (n - 1))  # uniform on 0..n-2
        end = start + 1 + int(last[user] * (n - 1 - start))  # uniform on start+1..n-1
        found.append((user, items[start:end][-window:], items[end], int(templates[user])))
    return found


@pytest.mark.parametrize("window", [2, 20])
def test_segments_are_those_of_a_loop(folds: Split, window: int) -> None:
    draw = sequential_draw(folds.train, window=window, seed=5, epoch=2)
    rows = [
        (int(draw.users[r]), draw.shown(r).tolist(), int(draw.targets[r]), int(draw.templates[r]))
        for r in range(len(draw))
    ]
    assert rows == naive_segments(folds.train, window, 5, 2)


def test_segments_cover_all_starts_and_ends(folds: Split) -> None:
    user = int(np.argmax(folds.train.lengths))
    n = int(folds.train.lengths[user])
    ends = []
    for epoch in range(400):
        draw = sequential_draw(folds.train, window=99, seed=0, epoch=epoch)
        row = int(np.flatnonzero(draw.users == user)[0])
        ends.append(draw.shown(row).size)
    # P(length = m) = sum over starts of 1/(n-1) * 1/(n-1-start), for the starts that leave room.
    wanted = [sum(1 / (n - 1) / (n - 1 - s) for s in range(n - m)) for m in range(1, n)]
    np.testing.assert_allclose(np.bincount(ends, minlength=n)[1:] / 400, wanted, atol=0.09)


def test_held_out_interactions_are_nowhere(folds: Split) -> None:
    pairs = {(u, i) for u, i in zip(folds.train.rows.tolist(), folds.train.items.tolist(), strict=True)}
    for epoch in range(5):
        drawn = sequential_draw(folds.train, window=20, seed=0, epoch=epoch)
        chosen = top_n_draw(folds.train, negatives=9, seed=0, epoch=epoch)
        for row in range(len(drawn)):
            user = int(drawn.users[row])
            assert all((user, i) in pairs for i in [*drawn.shown(row).tolist(), int(drawn.targets[row])])
        for row in range(len(chosen)):
            user, target = int(chosen.users[row]), int(chosen.targets[row])
            assert (user, target) in pairs
            others = [i for i in chosen.shown(row).tolist() if i != target]
            assert len(others) == len(set(others)) == 9
            assert not any((user, i) in pairs for i in others)


def naive_unmet(known: Dataset, n: int, rng: np.random.Generator) -> list[list[int]]:
    """One item after the other, drawn anew where it was met or stands to its left before drawing."""
    found = rng.integers(0, known.n_items, (known.n_users, n), dtype=np.int32)
    open_rows = set(range(known.n_users))
    while open_rows:
        fresh_needed = {}
        for user in open_rows:
            row, met = found[user].tolist(), set(known.history(user).tolist())
            bad = [p for p, item in enumerate(row) if item in met or item in row[:p]]
            if bad:
                fresh_needed[user] = bad
        fresh = rng.integers(0, known.n_items, found.shape, dtype=np.int32)
        for user, bad in fresh_needed.items():
            found[user, bad] = fresh[user, bad]
        open_rows = set(fresh_needed)
    return found.tolist()


def test_unmet_items_are_those_of_a_loop(folds: Split) -> None:
    ours = unmet_items(folds.train, 12, seed=4, stream=("test",))
    assert ours.tolist() == naive_unmet(folds.train, 12, generator(4, "test"))


def test_a_users_items_do_not_depend_on_other_users(folds: Split) -> None:
    train = folds.train
    changed = train.where((train.rows < 20) | (np.arange(train.n) % 2 == 0))  # users from 20 on lose items
    one = unmet_items(train, 8, seed=0, stream=("s",))
    two = unmet_items(changed, 8, seed=0, stream=("s",))
    np.testing.assert_array_equal(one[:20], two[:20])
    rows = [top_n_draw(part, negatives=8, seed=0, epoch=1) for part in (train, changed)]
    first = [{int(d.users[r]): d.shown(r).tolist() for r in range(len(d))} for d in rows]
    assert all(first[0][user] == first[1][user] for user in range(20) if user in first[0])


def test_places_of_the_right_item_are_uniform(folds: Split) -> None:
    places = np.concatenate(
        [
            (d.items.reshape(len(d), -1) == d.targets[:, None]).argmax(axis=1)
            for d in (top_n_draw(folds.train, negatives=3, seed=0, epoch=e) for e in range(60))
        ]
    )
    np.testing.assert_allclose(np.bincount(places, minlength=4) / places.size, 0.25, atol=0.03)


def test_too_many_negatives_are_refused(folds: Split) -> None:
    with pytest.raises(ConfigError, match="at most"):
        unmet_items(folds.train, 29, seed=0, stream=("s",))


def test_draws_repeat_and_epochs_differ(folds: Split) -> None:
    for make in (
        lambda e: sequential_draw(folds.train, window=5, seed=0, epoch=e),
        lambda e: top_n_draw(folds.train, negatives=5, seed=0, epoch=e),
    ):
        one, again, other = make(0), make(0), make(1)
        np.testing.assert_array_equal(one.items, again.items)
        assert one.items.size != other.items.size or (one.items != other.items).any()


def explanations(pairs: list[tuple[int, int]]) -> Explanations:
    users, items = np.array(pairs, dtype=np.int32).T
    texts = tuple(f"text {n}" for n in range(len(pairs)))
    return Explanations(users=users, items=items, texts=texts, features=texts, dropped=0)


def test_explanations_of_held_out_pairs_are_dropped(folds: Split) -> None:
    user = int(folds.users("test")[0])
    held = int(folds.test.history(user)[0]), int(folds.valid.history(user)[0])
    own = int(folds.train.history(user)[0])
    given = explanations([(user, held[0]), (user, own), (user, held[1])])
    kept = train_explanations(given, folds)
    assert kept.texts == ("text 1",) and kept.dropped == 2
    draw = explanation_draw(kept, seed=0, epoch=0)
    assert draw.shown(0).tolist() == [own] and draw.targets.tolist() == [0]
    with pytest.raises(DataError, match="none of 1"):
        train_explanations(explanations([(user, held[0])]), folds)


def test_validation_rows_are_the_last_items(folds: Split) -> None:
    users = folds.users("valid")
    draw = next_items(folds.train, folds.valid, users, window=3, template=bare("sequential"))
    for row, user in enumerate(users.tolist()):
        assert draw.shown(row).tolist() == folds.train.history(user)[-3:].tolist()
        assert draw.targets[row] == folds.valid.history(user)[0]


def test_taken_rows_are_the_rows(folds: Split) -> None:
    draw = sequential_draw(folds.train, window=5, seed=0, epoch=0)
    rows = np.array([7, 2, 2])
    some = draw.take(rows)
    said: Any = [(some.shown(r).tolist(), int(some.targets[r]), int(some.users[r])) for r in range(3)]
    assert said == [(draw.shown(r).tolist(), int(draw.targets[r]), int(draw.users[r])) for r in rows]
