"""What a listwise re-ranking returns: lists, scores, and for every user why they are as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from frugalrec.grounding.reranking import Reranked
from frugalrec.llm.chat import Reason
from frugalrec.types import DoubleArray, FloatArray, Ranking

ListReason = Literal[
    Reason,
    "unparsed",  # answered, twice, but the answers name too few candidates
    "unscored",  # the model told no probability of some letter, or could not be asked for it
    "unstable",  # answered, but the replicas contradict each other
    "nothing-to-rank",  # fewer than two candidates with a title; not asked
]
"""Why a user's list is as it is: the reasons of `frugalrec.llm.chat`, and four of re-ranking."""
GIVEN: tuple[ListReason, ...] = ("answered", "cached")
"""The reasons of users whose list the model ordered; all others keep the cheap list."""
MOST_ECHO, LEAST_AGREEMENT = 0.5, 0.3


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What a model makes of one window of candidates."""

    points: FloatArray | None
    """Points of each candidate, (m,), higher is better; None where the model gave none."""
    reason: ListReason
    agreement: float = float("nan")
    """Mean of Kendall's tau over pairs of replicas."""
    echo: float = float("nan")
    """Mean of Kendall's tau between the order shown and the order answered."""
    latency_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ListwiseResult(Reranked):
    """Re-ranked lists of all users who were asked for, those who fell back included."""

    ranking: Ranking
    """The head in the model's order, the tail untouched; scores stay with the places."""
    agreement: DoubleArray
    """How far replicas agree, (n_users,): mean of Kendall's tau over pairs, 1 for the same order; NaN with
    one replica."""
    echo: DoubleArray
    """How far answers repeat the order shown, (n_users,): mean of Kendall's tau; about 0 where the model
    reads, near 1 where it echoes."""
    latency_s: DoubleArray
    """Seconds from the first question to the last answer, (n_users,), retries and windows added up."""
    requests: int
    """Different questions sent; users with the same history and candidates share theirs."""
    parses: Mapping[str, int]
    """How answers were read, one count a user and question: the stages of `parse_ranking`, `valid` for those
    that were all that was asked for, `retried` for those asked anew."""
    flagged: int
    """Different titles of histories and candidates that read like instructions; none is removed."""
    places: tuple[float, ...] | None = None
    """For each place of the prompt, where the candidate shown there stands in the answer: 0 first, 1 last,
    mean over usable answers about full windows. Flat where the place says nothing; None without such answers.
    In cheap order a good model rises as well: the better candidates stand in front."""

    @property
    def report(self) -> Mapping[str, Any]:
        """Return the figures of the whole call, ready for JSON; agreement and echo are None if unknown."""
        return {
            **super().report,
            "requests": self.requests,
            "parses": dict(self.parses),
            # JSON has no NaN.
            "agreement": None if np.isnan(mean := _mean(self.agreement)) else mean,
            "echo": None if np.isnan(mean := _mean(self.echo)) else mean,
            "titles_flagged": self.flagged,
            "places": None if self.places is None else list(self.places),
            "cautions": cautions(self),
        }


def cautions(
    result: ListwiseResult, *, max_echo: float = MOST_ECHO, min_agreement: float = LEAST_AGREEMENT
) -> list[str]:
    """Return what a reader of the result should be warned of, in words; empty if nothing.

    Args:
        result: What a re-ranker returned.
        max_echo: Mean of Kendall's tau between the order shown and the answer above which the model
            repeats rather than ranks.
        min_agreement: Mean of Kendall's tau between replicas below which the order shown decides.
    """
    found = []
    kept = Counter(reason for reason in result.reasons if reason not in GIVEN)
    echo, agreed = _mean(result.echo), _mean(result.agreement)
    if echo > max_echo:
        found.append(
            f"The model repeats the order in which candidates are shown (mean Kendall's tau {echo:.2f}): its "
            "lists are those orders. Shuffle, ask for a replica more, or take another model."
        )
    if agreed < min_agreement:
        found.append(
            f"The order shown decides: replicas of one user agree by {agreed:.2f} (mean Kendall's tau; what "
            "repeats the order shown is near 0 where orders are shuffled, below 0 where they are balanced). "
            "Ask for more replicas, or set min_agreement."
        )
    if kept:
        found.append(
            f"{sum(kept.values())} of {len(result.reasons)} users keep the cheap list: "
            f"{', '.join(f'{n} {why}' for why, n in sorted(kept.items()))}."
        )
    if result.flagged:
        found.append(f"{result.flagged} of the titles read like instructions to a model; set promotion_cap.")
    return found


def relative_places(places: NDArray[Any]) -> DoubleArray:
    """Return places, or any numbers that rise with them, as shares from 0, first, to 1, last; ties share.

    >>> relative_places(np.array([7, 3, 7])).tolist()
    [0.75, 0.0, 0.75]
    """
    ranks: DoubleArray = rankdata(places)
    return (ranks - 1) / (ranks.size - 1)


def mean_places(answers: Sequence[DoubleArray], full: int) -> tuple[float, ...] | None:
    """Return the mean of the relative places of answers about `full` candidates; None without any."""
    whole = [places for places in answers if places.size == full]
    return tuple(np.mean(whole, axis=0).tolist()) if whole else None


def merged(opinions: list[Opinion]) -> Opinion:
    """Return what is told of a user whose list took several windows; the points are the last window's."""
    failed = [opinion for opinion in opinions if opinion.points is None]
    asked = any(opinion.reason == "answered" for opinion in opinions)
    return Opinion(
        points=None if failed else opinions[-1].points,
        reason=failed[0].reason if failed else "answered" if asked else "cached",
        agreement=_mean(np.array([opinion.agreement for opinion in opinions])),
        echo=_mean(np.array([opinion.echo for opinion in opinions])),
        latency_s=sum(opinion.latency_s for opinion in opinions),
    )


def counted(*counts: Mapping[str, int]) -> Mapping[str, int]:
    """Return the sum of some counts, by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _mean(values: DoubleArray) -> float:
    """Return the mean of the known values; NaN if there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
