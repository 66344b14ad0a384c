"""Cheap models: baselines, surrogates and the first-stage ranking."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.recommenders.base import Recommender

RECOMMENDERS: dict[str, str] = {
    "random": "frugalrec.recommenders.baselines:Random",
    "popularity": "frugalrec.recommenders.baselines:Popularity",
    "recent-popularity": "frugalrec.recommenders.baselines:RecentPopularity",
    "max-id": "frugalrec.recommenders.baselines:MaxId",
    "like-rate": "frugalrec.recommenders.counting:LikeRate",
    "markov": "frugalrec.recommenders.counting:Markov",
    "item-knn": "frugalrec.recommenders.neighbours:ItemKNN",
    "ease": "frugalrec.recommenders.neighbours:EASE",
    "als": "frugalrec.recommenders.factors:ALS",
    "bpr": "frugalrec.recommenders.factors:BPR",
    "sasrec": "frugalrec.recommenders.sequential:SASRec",
    "gru4rec": "frugalrec.recommenders.sequential:GRU4Rec",
    "caser": "frugalrec.recommenders.sequential:Caser",
    "dros": "frugalrec.recommenders.sequential:DROS",
    "bert4rec": "frugalrec.recommenders.bert4rec:BERT4Rec",
    "dcrec": "frugalrec.recommenders.dcrec:DCRec",
}
"""Name -> ``module:Class``; resolved on use, so that listing names imports no model."""

ENTRY_POINTS = "frugalrec.recommenders"
"""The entry-point group in which other packages offer models."""


def create(name: str, **options: Any) -> Recommender:
    """Return an unfitted model by name.

    Args:
        name: A key of `RECOMMENDERS`, or the name of an entry point in `frugalrec.recommenders`.
        options: Keyword arguments of the model's constructor.

    Raises:
        ConfigError: If the name or an option is unknown; the message lists those there are.

    >>> create("popularity").name
    'popularity'
    """
    model = _resolve(name)
    accepted = sorted(inspect.signature(model).parameters)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        takes = f"it takes {', '.join(accepted)}" if accepted else "it takes no options"
        raise ConfigError(f"{name} has no option {unknown[0]!r}; {takes}.")
    return model(**options)


def names() -> list[str]:
    """Return the names that `create` knows, those of other packages included."""
    return sorted({*RECOMMENDERS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def _resolve(name: str) -> type[Recommender]:
    if name in RECOMMENDERS:
        module, _, attribute = RECOMMENDERS[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        found = _entry_point(name).load()
    if not (inspect.isclass(found) and issubclass(found, Recommender)):
        raise ConfigError(f"the recommender {name!r} is {found!r}, which is not a Recommender class.")
    return found


def _entry_point(name: str) -> EntryPoint:
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point
    raise ConfigError(f"unknown recommender {name!r}; choose one of {', '.join(names())}.")
