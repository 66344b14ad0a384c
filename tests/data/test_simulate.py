"""The film club: a catalogue of facts, a seeded model, and signals that can be learnt."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data import simulate
from frugalrec.data.audit import audit
from frugalrec.data.dataset import Dataset
from frugalrec.data.films import NO_FILM, films, genre_matrix, predecessors
from frugalrec.data.simulate import DAY, DAYS, START, film_club
from frugalrec.data.splits import Split, split
from frugalrec.errors import ConfigError


@pytest.fixture(scope="module")
def club() -> Dataset:
    return film_club()


@pytest.fixture(scope="module")
def folds(club) -> Split:
    return split(club, "time")


# ---- the catalogue --------------------------------------------------------------------------------


def test_the_catalogue_is_large_varied_and_without_duplicates():
    catalogue = films()
    assert catalogue.height >= 480
    assert catalogue["title"].n_unique() == catalogue["item"].n_unique() == catalogue.height
    assert catalogue["year"].min() >= 1930 and catalogue["year"].max() <= 2023
    per_decade = (catalogue["year"] // 10).value_counts()["count"]
    assert per_decade.min() >= 15 and per_decade.len() == 10
    names, genres = genre_matrix(catalogue)
    assert len(names) == 18
    assert (genres > 0).sum(axis=0).min() >= 10  # the rarest genre, film noir, has a dozen
    assert np.allclose(np.square(genres).sum(axis=1), 1.0)


def test_titles_carry_the_year_and_texts_are_clean():
    catalogue = films()
    assert (catalogue["title"].str.extract(r" \((\d{4})\)$").cast(pl.Int64) == catalogue["year"]).all()
    frame = pl.DataFrame({"user": "u", "item": catalogue["item"]})
    report = audit(Dataset.from_frames(frame, catalogue, name="catalogue"))
    assert [
        f.name for f in report.findings if "title" in f.name or f.name in ("mojibake", "html-entities")
    ] == []


def test_parts_of_a_series_follow_each_other():
    catalogue = films()
    before = predecessors(catalogue)
    titles = catalogue["title"].to_list()
    follows = {titles[row]: titles[b] for row, b in enumerate(before.tolist()) if b != NO_FILM}
    assert follows["Toy Story 2 (1999)"] == "Toy Story (1995)"
    assert follows["The Godfather Part III (1990)"] == "The Godfather Part II (1974)"
    assert follows["Three Colours: Red (1994)"] == "Three Colours: White (1994)"  # same year, in order
    assert "Toy Story (1995)" not in follows and "Heat (1995)" not in follows
    years = catalogue["year"].to_numpy()
    second = np.flatnonzero(before != NO_FILM)
    assert (years[second] >= years[before[second]]).all()
    by_series = catalogue.drop_nulls("series").group_by("series").agg(pl.col("part").sort())
    assert all(
        parts == list(range(1, len(parts) + 1)) and len(parts) > 1 for parts in by_series["part"].to_list()
    )


# ---- the data set ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_club_has_the_promised_size(club, folds):
    assert club.n_users == 600 and club.n_items == films().height
    assert 22_000 <= club.n <= 32_000
    assert folds.users("test").size >= 250
    assert folds.users("valid").size >= 250
    assert (club.lengths <= 15).mean() > 0.25  # many weak members
    assert 0.03 < (club.lengths >= 100).mean() < 0.2  # few heavy ones


def test_the_default_club_passes_the_audit(club, folds):
    report = audit(club, folds)
    report.enforce()
    assert [f.name for f in report.findings] == ["cold-items"]  # films that joined the library late
    assert 0 < report.findings[0].share < 0.1


def test_the_same_seed_gives_the_same_club_and_another_seed_another():
    small = film_club(n_members=20)
    assert small.fingerprint == film_club(n_members=20).fingerprint
    assert small.fingerprint != film_club(n_members=20, seed=1).fingerprint


def test_more_members_do_not_change_those_before():
    few, more = film_club(n_members=5), film_club(n_members=9)
    first, _ = few.to_frames()
    second, _ = more.to_frames()
    kept = second.filter(pl.col("user").is_in(first["user"].unique().to_list()))
    assert first.sort("user", "time").equals(kept.sort("user", "time"))


@settings(max_examples=10, deadline=None)
@given(n_members=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_every_club_keeps_the_rules(n_members, seed):
    dataset = film_club(n_members=n_members, seed=seed)
    assert dataset.n_users == n_members
    assert (dataset.lengths >= 5).all() and (dataset.lengths <= 200).all()
    assert dataset.matrix().nnz == dataset.n  # each film once per member
    assert np.isin(dataset.values * 2, np.arange(2, 11)).all()  # 1 to 5 in steps of a half
    assert ((dataset.times >= START) & (dataset.times < START + DAYS * DAY)).all()
    same_user = dataset.rows[1:] == dataset.rows[:-1]
    assert (np.diff(dataset.times)[same_user] > 0).all()


def test_a_club_without_members_is_refused():
    with pytest.raises(ConfigError, match="at least 1 member, not 0"):
        film_club(n_members=0)


def test_choices_maximise_the_documented_utility():
    library = simulate._library(films(), 0)
    early, late = simulate._affinities(library, np.random.default_rng(3))
    times = START + np.arange(40) * 25 * DAY
    chosen = simulate._choose(library, np.random.default_rng(4), early, late, times)
    draws = np.random.default_rng(4)
    own, noise = draws.random(40) >= simulate.NOISE, draws.gumbel(size=(40, early.size))
    seen: list[int] = []
    for step in range(40):
        share, utilities = step * 25 / DAYS, []
        for j in range(early.size):
            day = step * 25
            utility = simulate.POPULAR * library.popularity[j] + noise[step, j]
            if library.before[j] != NO_FILM:
                utility += simulate.NEXT if library.before[j] in seen else -simulate.SKIP
            if own[step]:
                utility += simulate.TASTE * ((1 - share) * early[j] + share * late[j])
                utility += simulate.NEW * (day - 60 < library.added[j] <= day)
                utility += (
                    simulate.MOOD * float(library.genres[seen[-1]] @ library.genres[j]) if seen else 0.0
                )
            utilities.append(-np.inf if j in seen or library.added[j] > day else utility)
        seen.append(int(np.argmax(utilities)))
    assert chosen.tolist() == seen
    assert not own.all()  # the share of noise occurs in this stream


# ---- signals that can be learnt -------------------------------------------------------------------


def hit_rate(folds: Split, scores: dict[int, np.ndarray]) -> float:
    """HR@10 of the first test item, seen items left out."""
    known, hits = folds.history("test"), []
    for user, score in scores.items():
        masked = score.astype(np.float64)
        masked[known.history(user)] = -np.inf
        hits.append(folds.test.history(user)[0] in np.argsort(-masked, kind="stable")[:10])
    return float(np.mean(hits))


def test_films_seen_together_predict_better_than_popularity(folds):
    known = folds.history("test")
    users = folds.users("test").tolist()
    matrix = known.matrix()
    together = (matrix.T @ matrix).toarray()
    np.fill_diagonal(together, 0.0)
    scale = np.sqrt(np.maximum(known.item_counts, 1))
    cosine = together / scale[:, None] / scale[None, :]
    popular = hit_rate(folds, {u: known.item_counts for u in users})
    neighbours = hit_rate(folds, {u: cosine[known.history(u)].sum(axis=0) for u in users})
    assert neighbours > 1.3 * popular


def test_the_next_film_shares_genres_with_the_last_more_than_chance(club):
    order = {item: row for row, item in enumerate(films()["item"].to_list())}
    _, genres = genre_matrix(films())
    vectors = genres[[order[item] for item in club.item_ids.tolist()]]
    same_user = club.rows[1:] == club.rows[:-1]

    def likeness(items):
        return float((vectors[items[1:]] * vectors[items[:-1]]).sum(axis=1)[same_user].mean())

    rng = np.random.default_rng(0)
    shuffled = club.items[
        np.lexsort((rng.random(club.n), club.rows))
    ]  # inside each member: tastes stay, mood goes
    assert likeness(club.items) > likeness(shuffled) + 0.05


def test_sequels_are_watched_in_order(club):
    series = club.item_text.select(pl.Series("code", np.arange(club.n_items)), "series", "part").drop_nulls(
        "series"
    )
    watched = pl.DataFrame({"user": club.rows, "code": club.items.astype(np.int64), "time": club.times}).join(
        series, on="code"
    )
    later = watched.with_columns(part=pl.col("part") - 1)
    pairs = watched.join(later, on=["user", "series", "part"], suffix="_next")
    assert pairs.height > 1_000
    assert (pairs["time"] < pairs["time_next"]).mean() > 0.9


def test_ratings_follow_the_films_quality_and_the_members_leniency(club):
    # Two-way structure: the spread of film means and of member means is far beyond sampling error.
    assert 2.5 < club.values.mean() < 4.0
    for groups in (club.items, club.rows):
        counts = np.bincount(groups)
        means = np.bincount(groups, weights=club.values)[counts >= 20] / counts[counts >= 20]
        assert means.std() > 2 * club.values.std() / np.sqrt(counts[counts >= 20].mean())
