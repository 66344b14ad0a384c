"""The cheap models: fit, rank and evaluate each once; then choose the first stage on validation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Fold, Split
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate
from frugalrec.ledger import Meter
from frugalrec.recommenders import create
from frugalrec.recommenders.base import Recommender
from frugalrec.runs import Run, Stage
from frugalrec.stages.artefacts import (
    load_evaluation,
    load_json,
    load_ranking,
    save_evaluation,
    save_json,
    save_ranking,
)
from frugalrec.stages.data import Prepared
from frugalrec.types import Evaluation, Ranking

CONTROLS = {"random", "max-id"}
"""Cheap models that nobody would deploy; they show what a number is worth."""
FOLDS: tuple[Fold, Fold] = ("valid", "test")


@dataclass(frozen=True, kw_only=True)
class CheapArm:
    """A fitted cheap model: its lists and its per-user figures on both folds."""

    name: str
    stage: Stage
    rankings: dict[Fold, Ranking]
    evaluations: dict[Fold, Evaluation]
    fit_s: float
    ms_per_user: float


def fit_and_evaluate(run: Run, config: RunConfig, data: Prepared, name: str) -> CheapArm:
    """Fit one cheap model, or find it fitted."""
    given = config.recommenders.options.get(name, {})
    section = config.recommenders.model_dump(include={"refit", "depth"})
    key = {
        "data": data.key,
        "name": name,
        "options": given,
        "metrics": config.evaluation.metrics,
        "seed": config.seed,
        **section,
    }

    def build(folder: Path, meter: Meter) -> None:
        def progress(done: int, total: int) -> None:
            run.observer.progressed(stage_name, done, total)

        options = run_options(name, given, config.seed, folder / "checkpoint", progress)
        _build(folder, name, options, data.split, config)

    stage_name = f"recommenders/{name}"
    stage = run.stage(stage_name, key, build)
    costs = load_json(stage.path / "costs.json")
    return CheapArm(
        name=name,
        stage=stage,
        rankings={fold: load_ranking(stage.path / f"{fold}.ranking.npz") for fold in FOLDS},
        evaluations={fold: load_evaluation(stage.path / f"{fold}.npz") for fold in FOLDS},
        **costs,
    )


def run_options(
    name: str, given: dict[str, Any], seed: int, checkpoint: Path | None = None, progress: Any = None
) -> dict[str, Any]:
    """Add the run's seed, checkpoint folder and progress to a model's options, where it takes them."""
    accepted = vars(create(name))  # constructors only store, so attributes are options
    extra = {"seed": seed, "checkpoint": checkpoint, "progress": progress}
    usable = {key: value for key, value in extra.items() if key in accepted and value is not None}
    return {**usable, **given}


def load_model(
    path: Path, config: RunConfig, name: str, data: Dataset, fitted_on: Literal["train", "all"]
) -> Recommender:
    """Return a fitted model of a finished stage.

    Args:
        path: Folder of the model's stage.
        config: The run's configuration.
        name: Name of the model.
        data: The data it was fitted on.
        fitted_on: `train` for the model that validation saw, `all` for the one of the test.
    """
    options = run_options(name, config.recommenders.options.get(name, {}), config.seed)
    folder = "model.train" if fitted_on == "train" and config.recommenders.refit else "model"
    return create(name, **options).load(path / folder, data)


def check_names(config: RunConfig) -> None:
    """Refuse a model that is not known, or an option that it does not take."""
    for name in config.recommenders.names:
        create(name, **config.recommenders.options.get(name, {}))


def applicable(config: RunConfig, data: Prepared) -> list[str]:
    """Return the models that fit the data: the max-id control is for data with numbered items only."""
    numbered = np.char.isdecimal(data.dataset.item_ids).all()
    return [name for name in config.recommenders.names if numbered or name != "max-id"]


def first_stage(run: Run, config: RunConfig, data: Prepared) -> CheapArm:
    """Return the first stage of a run, its models fitted or found fitted."""
    arms = [fit_and_evaluate(run, config, data, name) for name in applicable(config, data)]
    return choose_first_stage(config, arms)


def choose_first_stage(config: RunConfig, arms: list[CheapArm]) -> CheapArm:
    """Return the arm whose lists the LLM re-ranks: the named one, or the best on validation."""
    wanted = config.recommenders.first_stage
    if wanted == "auto":
        real = [arm for arm in arms if arm.name not in CONTROLS] or arms
        return max(real, key=lambda arm: arm.evaluations["valid"].mean(config.evaluation.primary))
    for arm in arms:
        if arm.name == wanted:
            return arm
    names = ", ".join(arm.name for arm in arms)
    raise ConfigError(f"recommenders.first_stage is {wanted!r}, which is not among the models: {names}.")


def other_models(config: RunConfig, arms: Sequence[CheapArm], first: CheapArm) -> list[CheapArm]:
    """Return the cheap models beside the first stage, best on validation first; controls are none."""
    primary = config.evaluation.primary
    others = [arm for arm in arms if arm.name != first.name and arm.name not in CONTROLS]
    return sorted(others, key=lambda arm: -arm.evaluations["valid"].mean(primary))


def timed_fit(model: Recommender, train: Dataset, valid: Dataset | None) -> float:
    """Fit a model and return the seconds it took."""
    start = time.perf_counter()
    model.fit(train, valid)
    return time.perf_counter() - start


def _build(folder: Path, name: str, options: dict[str, Any], split: Split, config: RunConfig) -> None:
    model = create(name, **options)
    fit_s = timed_fit(model, split.train, split.valid)
    _rank(folder, model, split, "valid", config)
    if config.recommenders.refit:
        model.save(folder / "model.train")
        # As a deployment would: everything known before the test, for the number of epochs that
        # validation chose.
        epochs = getattr(model, "best_epoch_", None)
        fixed = {"epochs": epochs} if epochs else {}
        if "checkpoint" in options:
            fixed["checkpoint"] = options["checkpoint"].with_name("checkpoint-refit")
        model = create(name, **{**options, **fixed})
        fit_s += timed_fit(model, split.history("test"), None)
    ms_per_user = _rank(folder, model, split, "test", config)
    model.save(folder / "model")
    for leftover in folder.glob("checkpoint*"):
        shutil.rmtree(leftover)
    save_json(folder / "costs.json", {"fit_s": fit_s, "ms_per_user": ms_per_user})


def _rank(folder: Path, model: Recommender, split: Split, fold: Fold, config: RunConfig) -> float:
    """Evaluate one fold over the full catalogue, keep the lists; return milliseconds per user."""
    histories, users = split.history(fold), split.users(fold)
    evaluation = evaluate(
        model.name, lambda batch: model.score(batch, histories), split, fold, config.evaluation.metrics
    )
    save_evaluation(folder / f"{fold}.npz", evaluation)
    start = time.perf_counter()
    ranking = model.recommend(users, config.recommenders.depth, histories=histories)
    elapsed = time.perf_counter() - start
    save_ranking(folder / f"{fold}.ranking.npz", ranking)
    return 1000 * elapsed / max(1, users.size)
