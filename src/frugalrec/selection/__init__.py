"""Score every training sample, keep a few."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.selection.base import Scorer, parse_budget, select

SCORERS: dict[str, str] = {
    "ccs": "frugalrec.selection.surrogates:CCS",
    "dealrec": "frugalrec.selection.dealrec:DEALRec",
    "effort": "frugalrec.selection.effort:Effort",
    "el2n": "frugalrec.selection.surrogates:EL2N",
    "grand": "frugalrec.selection.grand:GraNd",
    "influence": "frugalrec.selection.surrogates:Influence",
    "longest": "frugalrec.selection.baselines:Longest",
    "random": "frugalrec.selection.baselines:Random",
    "recent": "frugalrec.selection.baselines:Recent",
    "recranker": "frugalrec.selection.recranker:RecRanker",
    "tf-dcon": "frugalrec.selection.tf_dcon:TFDCon",
}
"""Name -> where the class is; resolved on use, so that listing them loads nothing."""


def scorer_class(name: str) -> type[Scorer]:
    """Return the scorer class called `name`."""
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}; choose one of {', '.join(sorted(SCORERS))}.")
    module, _, attribute = SCORERS[name].partition(":")
    found: type[Scorer] = getattr(import_module(module), attribute)
    return found


def create(name: str, **options: Any) -> Scorer:
    """Build the scorer called `name`.

    >>> create("random", seed=3).name
    'random'
    """
    try:
        return scorer_class(name)(**options)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}; see help(frugalrec.selection) for its options.") from None


__all__ = ["SCORERS", "Scorer", "create", "parse_budget", "scorer_class", "select"]
