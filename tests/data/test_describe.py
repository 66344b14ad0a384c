"""Figures of a data set, against hand counts."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.describe import describe
from frugalrec.testing.toys import cycle_dataset


def small(**columns) -> Dataset:
    frame = {"user": ["u", "u", "u", "v"], "item": ["a", "b", "c", "a"], **columns}
    texts = pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "", None, "D"], "year": [1, 2, 3, 4]})
    return Dataset.from_frames(pl.DataFrame(frame), texts, name="small")


def test_sizes_density_and_titles():
    facts = describe(small())
    assert (facts["users"], facts["items"], facts["interactions"]) == (2, 4, 4)
    assert (facts["active_users"], facts["items_with_interactions"]) == (2, 3)
    assert facts["density"] == pytest.approx(4 / (2 * 3))
    assert facts["share_of_items_with_title"] == 0.5  # "" and null are no titles
    assert facts["item_columns"] == ["title", "year"]
    assert facts["interactions_per_user"]["mean"] == 2.0  # (3 + 1) / 2
    assert facts["interactions_per_user"]["min"] == 1.0
    assert facts["interactions_per_user"]["p50"] == 2.0
    assert facts["interactions_per_user"]["max"] == 3.0
    assert facts["interactions_per_item"]["max"] == 2.0  # item a, of u and of v
    assert not {"time", "values", "folds"} & facts.keys()


def test_time_and_values():
    facts = describe(small(time=[0, 86_400, 129_600, 10], value=[4.0, 4.5, 4.0, 1.0]))
    assert facts["time"] == {"first": "1970-01-01", "last": "1970-01-02", "days": 1.5}
    assert facts["values"] == {"1": 1, "4": 2, "4.5": 1}


def test_many_values_are_binned():
    frame = pl.DataFrame({"user": ["u"] * 100, "item": ["a"] * 100, "value": np.arange(100.0)})
    values = describe(Dataset.from_frames(frame, name="x"))["values"]
    assert len(values) == 10
    assert set(values.values()) == {10}


def test_folds_count_cold_items_and_users():
    facts = describe(small(fold=[0, 1, 2, 2]))["folds"]
    assert facts["train"] == {"interactions": 1, "users": 1}
    # b is not in train; u is.
    assert facts["valid"] == {"interactions": 1, "users": 1, "of_cold_items": 1, "of_cold_users": 0}
    # (u, c): c is cold. (v, a): v is cold, a is warm.
    assert facts["test"] == {"interactions": 2, "users": 2, "of_cold_items": 1, "of_cold_users": 1}


def test_the_facts_are_json_and_do_not_depend_on_the_seed():
    first, second = describe(cycle_dataset(seed=1)), describe(cycle_dataset(seed=1))
    assert json.loads(json.dumps(first)) == first == second


def test_an_emptied_data_set_is_described():
    dataset = small(value=[1.0] * 4)
    facts = describe(dataset.where(np.zeros(dataset.n, dtype=bool)))
    assert facts["interactions"] == 0 and facts["density"] == 0.0
