"""Rivals that need no LLM: boosted trees over the same candidates, and another cheap model's lists."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frugalrec.config import RunConfig
from frugalrec.data.splits import Fold
from frugalrec.ledger import Meter
from frugalrec.recommenders.candidate_features import CandidateFeatures, candidate_features, scores_of
from frugalrec.recommenders.learning_to_rank import LambdaRank
from frugalrec.recommenders.second_opinions import hits, reordered
from frugalrec.runs import Run
from frugalrec.stages.artefacts import load_arrays, load_json, save_arrays, save_json
from frugalrec.stages.cheap import CheapArm, load_model, other_models
from frugalrec.stages.data import Prepared
from frugalrec.types import Ranking

LAMBDARANK = "lambdarank"
FEWEST_LISTS = 20
"""Validation lists with a right item below which nothing is learned."""
MOST_OPINIONS = 3
"""Further cheap models whose scores the trees read."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Lists that cost no LLM, for all test users."""

    name: str
    ranking: Ranking
    trees: int
    """Trees that validation kept; none leave the first stage's order."""
    opinions: tuple[str, ...]
    """Further cheap models whose scores the trees read."""
    fit_s: float
    ms_per_user: float


def available() -> bool:
    """Return whether LightGBM is installed, and finds the libraries of the system that it needs."""
    try:
        importlib.import_module("lightgbm")
    except (ImportError, OSError):
        return False
    return True


def learn_to_rank(
    run: Run, config: RunConfig, data: Prepared, arms: Sequence[CheapArm], first: CheapArm
) -> Rival | None:
    """Re-order the first stage's candidates by trees fitted on validation.

    None where it is switched off, LightGBM is not installed, or too few validation lists have a right item.
    """
    if not (config.recommenders.learning_to_rank and available()):
        return None
    found = hits(_head(config, first, "valid"), data.split.targets("valid"))
    if found.any(axis=1).sum() < FEWEST_LISTS:
        return None
    opinions = other_models(config, arms, first)[:MOST_OPINIONS]
    depth = config.llm.candidates

    def build(folder: Path, meter: Meter) -> None:
        began = time.perf_counter()
        known = _features(config, data, first, opinions, "valid")
        model = LambdaRank(seed=config.seed).fit_lists(known, data.split.targets("valid"))
        fitted = time.perf_counter()
        scores = model.score_lists(_features(config, data, first, opinions, "test"))
        users = first.rankings["test"].users.size
        model.save(folder / "model.json")
        save_arrays(folder / "scores.npz", scores=scores)
        ms = 1000 * (time.perf_counter() - fitted) / max(1, users)
        save_json(folder / "costs.json", {"trees": model.trees, "fit_s": fitted - began, "ms_per_user": ms})

    key = {
        "first": first.stage.hash,
        "opinions": [arm.stage.hash for arm in opinions],
        "depth": depth,
        "seed": config.seed,
    }
    stage = run.stage(f"rivals/{LAMBDARANK}", key, build)
    costs = load_json(stage.path / "costs.json")
    scores = load_arrays(stage.path / "scores.npz")["scores"]
    return Rival(
        name=LAMBDARANK,
        ranking=reordered(first.rankings["test"], scores),
        trees=int(costs["trees"]),
        opinions=tuple(arm.name for arm in opinions),
        fit_s=first.fit_s + sum(arm.fit_s for arm in opinions) + float(costs["fit_s"]),
        ms_per_user=first.ms_per_user + float(costs["ms_per_user"]),
    )


def _features(
    config: RunConfig, data: Prepared, first: CheapArm, opinions: Sequence[CheapArm], fold: Fold
) -> CandidateFeatures:
    histories, head = data.split.history(fold), _head(config, first, fold)
    fitted_on = (
        data.split.history("test") if fold == "test" and config.recommenders.refit else data.split.train
    )
    scores = {}
    for arm in opinions:
        model = load_model(
            arm.stage.path, config, arm.name, fitted_on, fitted_on="all" if fold == "test" else "train"
        )
        scores[arm.name] = np.asarray(scores_of(model, head, histories))
    return candidate_features(head, histories, scores)


def _head(config: RunConfig, first: CheapArm, fold: Fold) -> Ranking:
    """Return the candidates that an LLM would see."""
    whole, depth = first.rankings[fold], config.llm.candidates
    return Ranking(users=whole.users, items=whole.items[:, :depth], scores=whole.scores[:, :depth])
