"""The audit on published files: figures known from elsewhere, and no false alarm on MovieLens."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from frugalrec.data.audit import AuditReport, Finding, audit
from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import split
from frugalrec.errors import LeakError

pytestmark = pytest.mark.slow


def named(report: AuditReport) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def renumbered(dataset: Dataset, seed: int) -> Dataset:
    """The same interactions with external item ids permuted at random."""
    frame, _ = dataset.to_frames()
    ids = np.sort(dataset.item_ids.astype(np.int64))
    other = pl.DataFrame({"item": ids.astype(str), "new": np.random.default_rng(seed).permutation(ids)})
    frame = frame.join(other, on="item", how="left", maintain_order="left")
    return Dataset.from_frames(frame.select("user", pl.col("new").alias("item")), name="renumbered")


@pytest.mark.parametrize(
    ("path", "rate", "frontier"),
    [("amazon-beauty", 0.0441, 0.0580), ("amazon-sports/Sports_and_Outdoors.txt", 0.0414, 0.0575)],
)
def test_the_amazon_files_give_the_test_item_away(real_data, path, rate, frontier):
    dataset = read(real_data / path)
    report = audit(dataset, split(dataset))
    finding = named(report)["id-order"]
    assert finding.severity == "error"
    assert finding.share == pytest.approx(rate, abs=5e-5)
    assert f"HR@12 {frontier:.4f}" in finding.message
    with pytest.raises(LeakError, match="--allow id-order"):
        report.enforce()
    report.enforce(allow=["id-order"])
    for seed in range(2):
        assert audit(renumbered(dataset, seed)).errors() == ()


def test_dealrec_games_has_its_known_defects(real_data):
    findings = named(audit(read(real_data / "dealrec-games")))  # published folds, no split needed
    assert findings["placeholder-titles"].count == 19
    assert "counting outer spaces, 814 and 448" in findings["duplicate-titles"].message
    assert findings["html-entities"].count == 745
    assert findings["separator-titles"].count == 673
    assert findings["cold-items"].count == 5_650
    assert "test 5,650 of 19,733 (28.6%), valid 5,000 of 22,609 (22.1%)" in findings["cold-items"].message
    assert findings["id-order"].share == pytest.approx(0.026, abs=5e-4)  # numbered by first appearance, too


def test_microlens_is_numbered_at_random_but_mostly_cold(real_data):
    report = audit(read(real_data / "dealrec-microlens-50k"))
    assert report.errors() == ()
    assert named(report)["cold-items"].count == 26_761
    assert "87 more items than titles" in named(report)["duplicate-titles"].message
    assert "mojibake" not in named(report)  # Chinese titles are no mojibake


def test_movielens_passes_under_a_global_time_split(real_data):
    dataset = read(real_data / "ml-100k")
    report = audit(dataset, split(dataset, "time"))
    report.enforce()
    findings = named(report)
    assert findings["placeholder-titles"].examples == ("267: unknown",)
    assert "18 more items than titles" in findings["duplicate-titles"].message
    assert "not-global-time" not in findings
    assert "not-global-time" in named(audit(dataset, split(dataset, "leave-last-out")))


def test_movielens_read_in_the_wrong_encoding_is_mojibake(real_data):
    text = (real_data / "ml-latest-small/movies.csv").read_text("latin-1")  # the file is UTF-8
    items = pl.read_csv(text.encode()).rename({"movieId": "item"})
    events = pl.DataFrame({"user": 1, "item": items["item"]})
    garbled = named(audit(Dataset.from_frames(events, items, name="garbled")))["mojibake"].count
    correct = pl.read_csv(real_data / "ml-latest-small/movies.csv")["title"]
    accented = correct.str.contains(r"[^\x00-\x7F]").sum()
    assert garbled == accented > 100
    assert "mojibake" not in named(audit(read(real_data / "ml-latest-small")))


def test_the_film_clubs_years_and_genres_agree_with_movielens(real_data):
    from frugalrec.data.films import films

    listed = pl.read_csv(real_data / "ml-latest-small/movies.csv")
    known: dict[str, list[tuple[int, set[str]]]] = {}
    for title, genres in listed.select("title", "genres").iter_rows():
        name, _, year = title.strip().rpartition(" (")
        if year[:4].isdigit():
            for part in name.split(" ("):
                known.setdefault(plain(part), []).append((int(year[:4]), set(genres.split("|"))))
    agree, share = [], []
    for title, year, genres in (
        films().filter(pl.col("year") < 2017).select("title", "year", "genres").iter_rows()
    ):
        candidates = known.get(plain(title[:-7]), [])
        if candidates:
            nearest, theirs = min(candidates, key=lambda entry: abs(entry[0] - year))
            agree.append(abs(nearest - year) <= 1)
            ours = set(genres.split("|"))
            share.append(len(ours & theirs) / len(ours | theirs))
    assert len(agree) > 400
    assert np.mean(agree) == 1.0  # a premiere and a release may fall in neighbouring years
    assert np.mean(share) > 0.9


def plain(title: str) -> str:
    """A title without articles, case, accents and signs: "Matrix, The" and "The Matrix" agree."""
    import re
    import unicodedata

    ascii_title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    ascii_title = ascii_title.replace("colour", "color").replace("&", "and").replace("a.k.a.", "")
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\b(the|a|an|la|le|les)\b", "", ascii_title))
