"""The readers on real data sets, with the counts that are known of them."""

from __future__ import annotations

import numpy as np
import pytest

from frugalrec.data.convert import FORMATS, convert
from frugalrec.data.describe import describe
from frugalrec.data.readers import detect, read

pytestmark = pytest.mark.slow

KNOWN = [
    # folder, format, users, items, interactions, items without a title
    ("ml-100k", "movielens-100k", 943, 1_682, 100_000, 0),
    ("ml-latest-small", "movielens-latest", 610, 9_742, 100_836, 0),
    ("dealrec-games", "dealrec", 49_156, 17_332, 342_329, 0),
    ("dealrec-microlens-50k", "dealrec", 49_887, 19_217, 359_048, 0),
    ("amazon-beauty", "sequence", 22_363, 12_101, 198_502, 7),
    ("amazon-sports", "sequence", 35_598, 18_357, 296_337, 18_357),
]


@pytest.mark.parametrize(("folder", "format", "users", "items", "n", "untitled"), KNOWN)
def test_known_counts(real_data, folder, format, users, items, n, untitled):
    assert detect(real_data / folder) == format
    dataset = read(real_data / folder)
    assert (dataset.n_users, dataset.n_items, dataset.n) == (users, items, n)
    assert dataset.item_text["title"].null_count() == untitled


@pytest.mark.parametrize(
    ("folder", "folds", "cold"),
    [
        ("dealrec-games", (299_987, 22_609, 19_733), (5_000, 5_650)),
        ("dealrec-microlens-50k", (287_768, 35_970, 35_310), (19_125, 26_761)),
    ],
)
def test_published_splits(real_data, folder, folds, cold):
    text, npy = read(real_data / folder), read(real_data / folder, "dealrec-npy")
    for part in ("indptr", "items", "folds", "user_ids", "item_ids"):
        assert np.array_equal(getattr(text, part), getattr(npy, part))
    facts = describe(text)["folds"]
    assert tuple(fold["interactions"] for fold in facts.values()) == folds
    assert (facts["valid"]["of_cold_items"], facts["test"]["of_cold_items"]) == cold


def test_microlens_users_without_training_items_are_kept(real_data):
    dataset = read(real_data / "dealrec-microlens-50k")
    trained = np.unique(dataset.rows[dataset.folds == 0]).size
    assert dataset.n_users - trained == 471


def test_movielens_dates_titles_and_years(real_data):
    dataset = read(real_data / "ml-100k")
    facts = describe(dataset)
    assert facts["time"]["first"] == "1997-09-20" and facts["time"]["last"] == "1998-04-22"
    assert sum(facts["values"].values()) == 100_000
    titles = dict(zip(dataset.item_ids.tolist(), dataset.titles, strict=True))
    assert titles["267"] == "unknown"
    assert "Mis\u00e9rables, Les (1995)" in titles.values()
    assert int((dataset.item_text["year"] == 1997).sum()) > 200
    latest = read(real_data / "ml-latest-small")
    assert int((latest.item_counts > 0).sum()) == 9_724


@pytest.mark.parametrize("format", FORMATS)
def test_a_real_set_survives_conversion(real_data, tmp_path, format):
    for folder in ("ml-100k", "amazon-beauty"):
        dataset = read(real_data / folder, seed=5)
        back = read(convert(dataset, tmp_path / folder, format), seed=5)
        assert back.fingerprint == dataset.fingerprint
