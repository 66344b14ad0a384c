"""The P5/POD layout on the files that P5 and POD were measured on: readable, and refused by the audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from frugalrec.data.audit import audit, ids
from frugalrec.data.dataset import NUMBER
from frugalrec.data.readers import read
from frugalrec.data.splits import split

pytestmark = pytest.mark.slow

KNOWN = [
    # folder, file, users, items, HR@1 of the largest id + 1
    ("amazon-beauty", "Beauty.txt", 22_363, 12_101, 0.0441),
    ("amazon-sports", "Sports_and_Outdoors.txt", 35_598, 18_357, 0.0414),
]


def published(real: Path, name: str, destination: Path, order: np.ndarray | None = None) -> Path:
    """The files under POD's names, with maps that hide the numbers, renumbered by `order` if given."""
    destination.mkdir()
    source = real / name
    if order is None:
        shutil.copy(source, destination / "sequential.txt")
    else:
        rows = [line.split() for line in source.read_text().splitlines()]
        text = "".join(f"{user} {' '.join(str(order[int(i)]) for i in row)}\n" for user, *row in rows)
        (destination / "sequential.txt").write_text(text)
    frame = read(destination / "sequential.txt", "sequence").to_frames()[0]
    maps = {
        f"id2{kind}": {number: f"{number}X" for number in frame[kind].unique()} for kind in ("user", "item")
    }
    (destination / "datamaps.json").write_text(json.dumps(maps))
    return destination


@pytest.mark.parametrize(("folder", "file", "users", "items", "rate"), KNOWN)
def test_the_audit_refuses_the_published_numbers_by_default(
    real_data, tmp_path, folder, file, users, items, rate
):
    for dataset in (
        read(real_data / folder, "p5"),
        read(published(real_data, f"{folder}/{file}", tmp_path / "maps")),
    ):
        assert (dataset.n_users, dataset.n_items) == (users, items)
        (finding,) = audit(dataset, split(dataset)).errors()
        assert finding.name == "id-order"
        assert finding.share == pytest.approx(rate, abs=5e-5)


def test_random_numbers_pass(real_data, tmp_path):
    order = np.concatenate([[0], np.random.default_rng(0).permutation(12_101) + 1])
    dataset = read(published(real_data, "amazon-beauty/Beauty.txt", tmp_path / "mended", order))
    assert audit(dataset, split(dataset)).errors() == ()
    numbers = dataset.item_text[NUMBER].cast(pl.Int64).to_numpy() - 1
    assert ids.next_id_hits(dataset, numbers).mean() <= 2e-4
