"""Item ids on the Beauty files: the published numbers fail the audit, ours pass it; codes know neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from frugalrec.data.audit import audit
from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import split
from frugalrec.grounding.item_ids import ItemIds, collaborative, random_numbers
from frugalrec.grounding.trie import TitleTrie

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def beauty(real_data) -> Dataset:
    return read(real_data / "amazon-beauty", "p5")


def under(dataset: Dataset, ids: ItemIds) -> Dataset:
    """The data as a model would read them: items are called by their ids."""
    frame, _ = dataset.to_frames()
    number = {name: ids.text(item) for item, name in enumerate(dataset.item_ids.tolist())}
    return Dataset.from_frames(frame.with_columns(frame["item"].replace_strict(number)), name="renumbered")


def test_random_numbers_mend_the_published_ones(beauty):
    assert [finding.name for finding in audit(beauty, split(beauty)).errors()] == ["id-order"]
    ids = random_numbers(beauty.item_ids)
    assert (ids.n_items, ids.max_length, ids.mean_length) == (12_101, 3, 3.0)  # 12,100 in pieces of 2 digits
    mended = under(beauty, ids)
    assert audit(mended, split(mended)).errors() == ()


def test_collaborative_ids_put_what_people_have_together_together(beauty):
    ids = collaborative(split(beauty, "leave-last-out").train)
    assert ids.max_length == 3 and ids.prefix_free
    assert TitleTrie.build(ids.sequences(100)).n_titles == beauty.n_items
    assert ids.evidence["together"] > 5 * ids.evidence["together_by_chance"]
    assert np.bincount(ids.codes[:, 0]).max() <= -(-12_101 // 32)
