"""Templates of POD's tasks and the writing of ids."""

from __future__ import annotations

import re

import numpy as np
import pytest

from frugalrec.distillation.pod.templates import (
    SEQUENTIAL,
    TASKS,
    TEMPLATES,
    IdWriter,
    bare,
    draw_templates,
    parts,
    write_ids,
    write_titles,
)
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.item_ids import ItemIds, catalogue_hash, random_numbers

NAMES = np.array([f"B{i}" for i in range(30)])


def test_every_task_has_worded_templates_and_ends_with_the_bare_one() -> None:
    assert set(TEMPLATES) == set(TASKS)
    for task, templates in TEMPLATES.items():
        assert len(templates) >= 4 and len(set(templates)) == len(templates)
        assert templates[bare(task)] == "{user} {items}"
        for text in templates[:-1]:
            assert text.count("{items}") == 1 and text.count("{user}") == 1
            assert len(re.sub(r"\{\w+\}", "", text).split()) >= 3


def test_templates_are_drawn_alike_and_the_bare_one_too() -> None:
    n = 20_000
    for task in TASKS:
        drawn = draw_templates(task, n, 0, 3)
        shares = np.bincount(drawn, minlength=len(TEMPLATES[task])) / n
        np.testing.assert_allclose(shares, 1 / len(TEMPLATES[task]), atol=0.02)
        np.testing.assert_array_equal(drawn, draw_templates(task, n, 0, 3))
        assert (drawn != draw_templates(task, n, 0, 4)).any()
        assert (drawn != draw_templates(task, n, 1, 3)).any()


def test_texts_are_the_templates_filled_in() -> None:
    ids = random_numbers(NAMES, seed=1)
    writer = write_ids(ids, n_users=5, seed=1)
    assert writer.users is not None
    for task in TASKS:
        for number, template in enumerate(TEMPLATES[task]):
            said = writer.text(task, number, 2, [4, 9])
            filled = template.replace("{user}", writer.users[2])
            filled = filled.replace("{items}", f"item_{ids.text(4)} item_{ids.text(9)}")
            assert said == f" {filled}"
    anyone = write_ids(ids)
    assert anyone.text(SEQUENTIAL, bare(SEQUENTIAL), 2, [4]) == f" item_{ids.text(4)}"
    assert " someone " in anyone.text(SEQUENTIAL, 1, 2, [4])


def test_numbers_of_users_are_a_seeded_permutation() -> None:
    ids = random_numbers(NAMES)
    users = [write_ids(ids, n_users=50, seed=seed).users for seed in (0, 0, 1)]
    assert users[0] == users[1] != users[2]
    assert sorted(users[0] or ()) == sorted(f"user_{n}" for n in range(1, 51))
    assert users[0] != tuple(f"user_{n}" for n in range(1, 51))


def test_codes_are_written_as_they_are() -> None:
    codes = np.array([[0, 2], [1, 2]], dtype=np.int32)
    ids = ItemIds(
        kind="semantic", seed=0, codes=codes, symbols=("<a_0>", "<a_1>", "<b_0>"), collisions=0, catalogue="c"
    )
    writer = write_ids(ids)
    assert writer.items == writer.answers == ("<a_0><b_0>", "<a_1><b_0>")
    assert writer.catalogue == "c"


def test_titles_differ_and_stand_apart() -> None:
    writer = write_titles(["Heat", "Alien\n(1979)", "Heat", "Heat"], NAMES[:4])
    assert writer.answers == ("Heat", "Alien (1979)", "Heat (2)", "Heat (3)")
    assert writer.text(SEQUENTIAL, bare(SEQUENTIAL), 0, [0, 1]) == " Heat | Alien (1979)"
    assert writer.catalogue == catalogue_hash(NAMES[:4])


def test_bad_writers_are_refused() -> None:
    with pytest.raises(DataError, match="share their answer"):
        IdWriter(items=("a", "b"), answers=("1", "1"), users=None, catalogue="")
    with pytest.raises(DataError, match="as many answers"):
        IdWriter(items=("a",), answers=("1", "2"), users=None, catalogue="")
    ids = random_numbers(NAMES)
    titled = ItemIds(
        kind="titles", seed=0, codes=ids.codes, symbols=ids.symbols, collisions=0, catalogue=ids.catalogue
    )
    with pytest.raises(ConfigError, match="write_titles"):
        write_ids(titled)


def test_what_is_written_has_a_fingerprint() -> None:
    ids = random_numbers(NAMES)
    assert write_ids(ids).fingerprint == write_ids(ids).fingerprint
    others = [write_ids(random_numbers(NAMES, seed=1)), write_ids(ids, n_users=3)]
    assert len({write_ids(ids).fingerprint, *(writer.fingerprint for writer in others)}) == 3


def test_words_begin_with_a_blank_and_slots_stand_alone() -> None:
    assert parts("{user} {items}", users=True) == ["{user}", "{items}"]
    assert parts("Choose {items} for {user} .", users=False) == [" Choose", "{items}", " for someone ."]
