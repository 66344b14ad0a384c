"""Single models outside a run: fit and save one, compare a few, recommend from what is on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.data.dataset import Dataset, concatenate
from frugalrec.data.splits import Fold, split
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.evaluation.compare import interval
from frugalrec.evaluation.evaluate import evaluate
from frugalrec.recommenders import create
from frugalrec.recommenders.base import Recommender
from frugalrec.runs import storage_errors
from frugalrec.stages.artefacts import load_json, save_json
from frugalrec.stages.cheap import load_model, run_options, timed_fit
from frugalrec.types import Ranking

HEAD_MANIFEST = "frugalrec_item_head.json"
"""What an item head's folder holds; see `distillation.catalogue_head`."""


def train_model(
    dataset: Dataset, name: str, options: dict[str, Any], folder: Path, *, seed: int = 0
) -> dict[str, Any]:
    """Fit a model on all interactions and save it with its data to `folder`; return the facts."""
    model = create(name, **run_options(name, options, seed))
    fit_s = timed_fit(model, dataset, None)
    temporary = folder.with_name(f".{folder.name}.new")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        dataset.save(temporary / "data")
        model.save(temporary / "model")
        facts = {
            "model": name,
            "options": options,
            "seed": seed,
            "fit_s": fit_s,
            "interactions": dataset.n,
            "example_user": str(dataset.user_ids[int(np.argmax(dataset.lengths))]),
        }
        save_json(temporary / "model.json", facts)
        if (folder / "model.json").exists():  # only ever replaces what this command wrote
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise StorageError(f"{folder} holds other files; choose another --out.")
        temporary.replace(folder)
    return facts


def compare_models(
    dataset: Dataset,
    names: Sequence[str],
    metrics: Sequence[str],
    *,
    fold: str = "test",
    split_method: str = "auto",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fit models on the train fold and return their figures on a held-out fold, one row each."""
    if fold not in ("valid", "test"):
        raise ConfigError(f"--fold is {fold!r}; choose valid or test.")
    parts = split(dataset, split_method)  # type: ignore[arg-type]
    where: Fold = "valid" if fold == "valid" else "test"
    histories, users = parts.history(where), parts.users(where)
    rows = []
    for name in names:
        model = create(name, **run_options(name, {}, seed))
        fit_s = timed_fit(model, parts.train, parts.valid)
        evaluation = evaluate(name, _scores(model, histories), parts, where, metrics)
        row = {
            "model": name,
            "users": int(users.size),
            "fit_s": fit_s,
            "ms_per_user": 1000 * evaluation.details["score_s"] / max(1, users.size),
            "metrics": {m: interval(evaluation.values[m], seed=seed).to_dict() for m in metrics},
        }
        rows.append(row)
    return rows


def recommend_from(
    folder: Path,
    users: Sequence[str],
    *,
    k: int = 10,
    model: str | None = None,
    llm: bool = False,
    student: Path | None = None,
) -> list[dict[str, Any]]:
    """Recommend to users (external ids) from a folder that `train` or `run` wrote.

    Args:
        folder: The folder.
        users: External ids; none takes the first three users with a history.
        k: Length of the lists.
        model: Which cheap model of a run; default: the run's first stage.
        llm: Re-rank with the run's tuned LLM.
        student: Re-rank with this distilled prompt, or list by this item head.

    Raises:
        DataError: On an unknown user.
        StorageError: If the folder holds no model.
    """
    if (folder / "model.json").exists():
        about = load_json(folder / "model.json")
        dataset = Dataset.load(folder / "data")
        fitted = create(about["model"], **about["options"]).load(folder / "model", dataset)
        histories = dataset
    elif (folder / "report.json").exists():
        fitted, dataset, histories = _from_run(folder, model)
    else:
        raise StorageError(
            f"{folder} holds no trained model and no finished run; see frugalrec train and run."
        )
    codes = _codes(dataset, histories, users)
    if student is not None and (student / HEAD_MANIFEST).is_file():
        from frugalrec.stages.item_heads import recommend_with_head

        ranking = recommend_with_head(folder, histories, codes, k, student)
        return [_entry(dataset, histories, ranking, row, k) for row in range(codes.size)]
    llm = llm or student is not None
    ranking = fitted.recommend(codes, max(k, 20) if llm else k, histories=histories)
    if llm:
        from frugalrec.stages.live import rerank_live

        ranking = rerank_live(folder, histories, ranking, student)
    return [_entry(dataset, histories, ranking, row, k) for row in range(codes.size)]


def _scores(model: Recommender, histories: Dataset) -> Any:
    return lambda batch: model.score(batch, histories)


def _from_run(folder: Path, name: str | None) -> tuple[Recommender, Dataset, Dataset]:
    import yaml

    from frugalrec.config import RunConfig

    report = load_json(folder / "report.json")
    config = RunConfig.model_validate(yaml.safe_load(report["config_yaml"]))
    name = name or str(report["reference"])
    if not (folder / "recommenders" / name).is_dir():
        known = sorted(p.name for p in (folder / "recommenders").iterdir())
        raise ConfigError(f"the run has no model {name!r}; it has {', '.join(known)}.")
    dataset = Dataset.load(folder / "data")
    data = config.data
    parts = split(dataset, data.split, valid=data.valid, test=data.test)
    train = parts.history("test") if config.recommenders.refit else parts.train
    fitted = load_model(folder / "recommenders" / name, config, name, train, fitted_on="all")
    return fitted, dataset, concatenate(parts.history("test"), parts.test)


def _codes(dataset: Dataset, histories: Dataset, users: Sequence[str]) -> Any:
    if not users:
        return np.flatnonzero(histories.lengths > 0)[:3].astype(np.int32)
    table = {user: code for code, user in enumerate(dataset.user_ids.tolist())}
    unknown = [user for user in users if user not in table]
    if unknown:
        some = ", ".join(dataset.user_ids[:3].tolist())
        raise DataError(f"there is no user {unknown[0]!r} in {dataset.name}; users are such as {some}.")
    return np.array([table[user] for user in users], dtype=np.int32)


def _entry(dataset: Dataset, histories: Dataset, ranking: Ranking, row: int, k: int) -> dict[str, Any]:
    user = int(ranking.users[row])
    pairs = zip(ranking.items[row, :k].tolist(), ranking.scores[row, :k].tolist(), strict=True)
    return {
        "user": str(dataset.user_ids[user]),
        "history": [dataset.titles[i] for i in histories.history(user).tolist()],
        "items": [
            {"item": str(dataset.item_ids[i]), "title": dataset.titles[i], "score": score}
            for i, score in pairs
            if i >= 0
        ],
    }
