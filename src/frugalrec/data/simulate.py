r"""The film club: real films, simulated members, a documented and seeded model.

Needs no download, and real titles let a language model's knowledge of films matter. Each member
draws from a stream of its own, so the first 100 members of a club of 600 are the club of 100.

Films. Film j has a unit genre vector g_j, a year y_j and a quality q_j ~ N(0, 1). Its popularity is
Zipf-like in a noisy quality rank: pi_j = -ZIPF * log(rank of (q_j + N(0, 0.5))), standardised. A fifth
of the films that stand alone join the library at a time a_j uniform over the last three quarters of
the period (cold items); all others are there from the start.

Members. Member u has a taste archetype k (one of 8, each liking three genres and disliking two):
theta_u(0) = archetype + N(0, 0.35) per genre, and drifts to theta_u(1) = theta_u(0) + N(0, 0.25) by
the end of the period. The favourite era is c_u: 2008 for most, 1990, 1970 or 1952 for others.
Affinity at time t in [0, 1]:

    a_uj(t) = z(g_j . theta_u(t)) + ERA * z(exp(-((y_j - c_u) / 18)^2 / 2))      (z: over films)

Activity is log-normal, n_u = clip(exp(N(3.25, 1.05)), 5, 200): many members see 5 to 15 films, few see
100 or more. Members join over the first 80 % of the period, come back in sessions of 1 to 4 films on
distinct days, uniform from joining to leaving; three in ten leave before the end.

Choices. The next film maximises, over films not yet seen and already in the library,

    U_j = TASTE * a_uj(t) + POPULAR * pi_j + MOOD * g_j . g_last + NEW * [a_j < 60 days ago] + h_uj + Gumbel

where h_uj is the series effect: -SKIP for a part whose predecessor the member has not seen, and +NEXT
for one whose predecessor the member has. A share NOISE of the choices is somebody else's: they follow
popularity and the series effect alone.

Ratings. r = 2.9 + b_u + 0.55 * a_uj(t) + 0.35 * q_j + N(0, 0.6), with leniency b_u ~ N(0, 0.35);
rounded to half stars by one half of the members and to whole stars by the other, and kept in 1 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.dataset import ITEM, TIME, USER, VALUE, Dataset
from frugalrec.data.films import NO_FILM, films, genre_matrix, predecessors
from frugalrec.errors import ConfigError
from frugalrec.rng import generator
from frugalrec.types import DoubleArray, FloatArray, IntArray, LongArray

TASTE, POPULAR, MOOD, SKIP, NEXT, NEW = 1.6, 0.8, 2.0, 4.0, 3.0, 1.0
"""Weights of the choice model, in units of the Gumbel noise."""
NOISE = 0.1
"""Share of choices that ignore the member's taste and mood."""
ZIPF, ERA, NEW_DAYS = 0.8, 0.5, 60
DAY, DAYS = 86_400, 1_095
START = 1_672_531_200
"""1 January 2023, 00:00 UTC, in Unix seconds; the club is followed for three years."""
FEWEST, MOST = 5, 200
ERAS, ERA_SHARES = (2008.0, 1990.0, 1970.0, 1952.0), (0.5, 0.25, 0.15, 0.1)
LATE_SHARE = 0.2
ARCHETYPES = 8


@dataclass(frozen=True, kw_only=True)
class _Library:
    """What all members share."""

    genres: FloatArray
    """Unit genre vectors, (n_films, n_genres)."""
    likeness: FloatArray
    """Cosine of the genres of two films, (n_films, n_films)."""
    years: DoubleArray
    quality: DoubleArray
    popularity: DoubleArray
    added: LongArray
    """Day on which each film joined the library, (n_films,); below 0 for the first stock."""
    before: IntArray
    """Predecessor in the series, -1 for none, (n_films,)."""
    after: IntArray
    """Successor in the series, -1 for none, (n_films,)."""
    archetypes: DoubleArray
    """Tastes of the archetypes, (8, n_genres)."""


def film_club(*, n_members: int = 600, seed: int = 0) -> Dataset:
    """Simulate the film club.

    Args:
        n_members: Number of members.
        seed: Seed of everything that is drawn, the codes of the data set included.

    Returns:
        A data set "film-club" with ratings from 1 to 5, Unix seconds over three years, and `title`,
        `year`, `genres`, `series` and `part` of each film.

    Raises:
        ConfigError: If there is not at least one member.

    >>> film_club(n_members=3).n_users
    3
    """
    if n_members < 1:
        raise ConfigError(f"the film club needs at least 1 member, not {n_members}.")
    catalogue = films()
    library = _library(catalogue, seed)
    seen = [_member(library, generator(seed, "film-club", "member", u)) for u in range(n_members)]
    counts = [items.size for items, _, _ in seen]
    items, values, times = (np.concatenate([member[column] for member in seen]) for column in range(3))
    frame = pl.DataFrame(
        {
            USER: np.repeat([f"member-{u:04d}" for u in range(n_members)], counts),
            ITEM: catalogue[ITEM].to_numpy()[items],
            VALUE: values,
            TIME: times,
        }
    )
    return Dataset.from_frames(frame, catalogue, name="film-club", seed=seed)


def _library(catalogue: pl.DataFrame, seed: int) -> _Library:
    rng = generator(seed, "film-club", "library")
    names, genres = genre_matrix(catalogue)
    n = catalogue.height
    quality = rng.normal(size=n)
    rank = np.argsort(np.argsort(-(quality + rng.normal(scale=0.5, size=n)))) + 1
    before = predecessors(catalogue)
    after = np.full(n, NO_FILM, dtype=np.int32)
    after[before[before >= 0]] = np.flatnonzero(before >= 0)
    alone = catalogue["series"].is_null().to_numpy()
    late = alone & (rng.random(n) < LATE_SHARE)
    added = np.where(late, rng.integers(DAYS // 4, DAYS, size=n), -DAYS)
    return _Library(
        genres=genres,
        likeness=genres @ genres.T,
        years=catalogue["year"].to_numpy().astype(np.float64),
        quality=quality,
        popularity=_standard(-ZIPF * np.log(rank)),
        added=added,
        before=before,
        after=after,
        archetypes=_archetypes(rng, len(names)),
    )


def _archetypes(rng: np.random.Generator, n_genres: int) -> DoubleArray:
    tastes = np.zeros((ARCHETYPES, n_genres))
    for taste in tastes:
        chosen = rng.choice(n_genres, size=5, replace=False)
        taste[chosen[:3]], taste[chosen[3:]] = 1.0, -1.0
    return tastes


def _member(library: _Library, rng: np.random.Generator) -> tuple[IntArray, FloatArray, LongArray]:
    """Draw one member's films, ratings and times, oldest first."""
    times = _visits(rng)
    early, late = _affinities(library, rng)
    share = (times - START) / (DAYS * DAY)
    items = _choose(library, rng, early, late, times)
    affinity = (1 - share) * early[items] + share * late[items]
    leniency = rng.normal(scale=0.35)
    stars = (
        2.9
        + leniency
        + 0.55 * affinity
        + 0.35 * library.quality[items]
        + rng.normal(scale=0.6, size=items.size)
    )
    step = 0.5 if rng.random() < 0.5 else 1.0
    values = np.clip(np.round(stars / step) * step, 1.0, 5.0).astype(np.float32)
    return items, values, times


def _visits(rng: np.random.Generator) -> LongArray:
    """Draw the times of one member: sessions of 1 to 4 films on distinct days, strictly rising."""
    n = int(np.clip(np.exp(rng.normal(3.25, 1.05)), FEWEST, MOST))
    sizes = 1 + rng.binomial(3, 0.4, size=n)
    sessions = int(np.searchsorted(np.cumsum(sizes), n)) + 1
    joined = int(rng.integers(0, int(0.8 * DAYS)))
    room = DAYS - joined
    # A member who leaves still stays long enough for all sessions to have a day of their own.
    stay = room if rng.random() < 0.7 else max(min(room, sessions + 30), int(room * rng.random()))
    days = joined + np.sort(np.concatenate([[0], 1 + rng.permutation(stay - 1)[: sessions - 1]]))
    day = np.repeat(days, sizes[:sessions])[:n]
    place = np.arange(n) - np.repeat(np.cumsum(sizes[:sessions]) - sizes[:sessions], sizes[:sessions])[:n]
    # A film takes at most 3 hours, the first starts by noon: a session ends before midnight.
    start = np.repeat(rng.integers(9 * 3_600, 12 * 3_600, size=sessions), sizes[:sessions])[:n]
    return (START + day * DAY + start + place * 3 * 3_600 + rng.integers(0, 1_800, size=n)).astype(np.int64)


def _affinities(library: _Library, rng: np.random.Generator) -> tuple[DoubleArray, DoubleArray]:
    """Return the member's affinity to every film at the start and at the end, each (n_films,)."""
    n_genres = library.genres.shape[1]
    taste = library.archetypes[rng.integers(ARCHETYPES)] + rng.normal(scale=0.35, size=n_genres)
    later = taste + rng.normal(scale=0.25, size=n_genres)
    centre = rng.choice(ERAS, p=ERA_SHARES)
    era = ERA * _standard(np.exp(-(((library.years - centre) / 18) ** 2) / 2))
    first, last = (_standard(library.genres @ theta) + era for theta in (taste, later))
    return first, last


def _choose(
    library: _Library, rng: np.random.Generator, early: DoubleArray, late: DoubleArray, times: LongArray
) -> IntArray:
    """Draw the films of one member, one after the other, (n,)."""
    n, n_films = times.size, library.quality.size
    days = ((times - START) // DAY)[:, None]
    share = ((times - START) / (DAYS * DAY))[:, None]
    own = rng.random((n, 1)) >= NOISE
    new = (library.added <= days) & (days - library.added < NEW_DAYS)
    utility = TASTE * ((1 - share) * early + share * late) + NEW * new  # (n, n_films)
    utility = np.where(own, utility, 0.0) + POPULAR * library.popularity + rng.gumbel(size=(n, n_films))
    utility[library.added > days] = -np.inf
    chosen = np.empty(n, dtype=np.int32)
    series = np.where(library.before == NO_FILM, 0.0, -SKIP)  # -inf once seen
    for step, mood in enumerate((MOOD * own[:, 0]).tolist()):
        scores = utility[step] + series
        if mood and step:
            scores += mood * library.likeness[chosen[step - 1]]
        film = int(np.argmax(scores))
        chosen[step], series[film] = film, -np.inf
        following = library.after[film]
        if following != NO_FILM and series[following] > -np.inf:
            series[following] = NEXT
    return chosen


def _standard(values: NDArray[Any]) -> DoubleArray:
    """Shift and scale to mean 0 and deviation 1."""
    centred = np.asarray(values, dtype=np.float64) - values.mean()
    return np.asarray(centred / centred.std())
