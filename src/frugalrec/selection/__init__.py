"""Score every training sample, keep a few."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.selection.base import Scorer, parse_budget, select

SCORERS: dict[str, str] = {
    "longest": "frugalrec.selection.baselines:Longest",
    "random": "frugalrec.selection.baselines:Random",
    "recent": "frugalrec.selection.baselines:Recent",
}
"""Name -> where the class is; resolved on use, so that listing them loads nothing."""


def create(name: str, **options: Any) -> Scorer:
    """Build the scorer called `name`.

    >>> create("random", seed=3).name
    'random'
    """
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}; choose one of {', '.join(sorted(SCORERS))}.")
    module, _, attribute = SCORERS[name].partition(":")
    scorer: Scorer = getattr(import_module(module), attribute)(**options)
    return scorer


__all__ = ["SCORERS", "Scorer", "create", "parse_budget", "select"]
