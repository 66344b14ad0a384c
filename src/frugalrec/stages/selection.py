"""Which training samples the LLM is tuned on: inside a run, or once more on a finished one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from frugalrec import selection as scorers
from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples, examples
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.ledger import Meter, Usage
from frugalrec.llm import models
from frugalrec.runs import Observer, Run, Stage
from frugalrec.selection.base import parse_budget
from frugalrec.selection.diagnostics import describe
from frugalrec.stages import data as data_stage
from frugalrec.stages.artefacts import load_json, load_selection, save_json, save_selection
from frugalrec.stages.data import Prepared, noun_of
from frugalrec.types import FloatArray, Selection

CACHE = "cache"
"""Folder of an unfinished selection from which a killed one goes on."""

AUTO_BUDGET = 64
"""Rows that the budget `auto` stands for."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The training samples that were kept, and the candidates they were chosen from."""

    stage: Stage
    selection: Selection
    candidates: Examples


def select_samples(run: Run, config: RunConfig, data: Prepared, *, name: str = "selection") -> Samples:
    """Choose the training samples for the LLM from the train fold, in the stage called `name`."""
    section = config.selection
    candidates, size = candidate_rows(config, data)
    most = _scorer(run, config, data, name, run.folder, size).scorable(len(candidates))
    if size > most:
        raise ConfigError(
            f"the budget of {size} rows exceeds the {most} rows that {section.scorer} scores (its pool); "
            f"lower selection.budget or raise selection.options.pool."
        )

    def build(folder: Path, meter: Meter) -> None:
        # What a killed attempt had trained and computed lies in the unfinished stage, and only there.
        scorer = _scorer(run, config, data, name, folder / CACHE, size)
        scores = scorer.score(candidates, data.split.train)
        kept = scorer.choose(scores, size, seed=config.seed)
        parts = getattr(scorer, "parts_", {})
        influence = scores if scorer.name == "influence" else parts.get("influence")
        save_selection(folder / "selection.npz", kept)
        _table(candidates, data.dataset, kept, parts).write_parquet(folder / "selection.parquet")
        save_json(folder / "diagnostics.json", describe(scores, kept.kept, influence=influence))
        save_json(folder / "costs.json", {part: usage.to_dict() for part, usage in scorer.costs_.items()})
        meter.add(sum(scorer.costs_.values(), Usage()))
        shutil.rmtree(folder / CACHE, ignore_errors=True)

    key = {"data": data.key, "selection": section.model_dump(), "seed": config.seed}
    takes = scorers.scorer_class(section.scorer).takes
    if "llm" in takes:
        model = str(section.options.get("llm", config.llm.model))
        if model == "none":
            raise ConfigError(
                f"{section.scorer} asks an LLM, and this run has none; give --option llm=smollm2-135m, or "
                f"take a scorer without one, such as influence."
            )
        key |= {"llm": models.identity(model), "dtype": config.llm.dtype}
    key |= {"noun": noun_of(config, data.dataset)} if "noun" in takes else {}
    stage = run.stage(name, key, build)
    return Samples(stage=stage, selection=load_selection(stage.path / "selection.npz"), candidates=candidates)


def candidate_rows(config: RunConfig, data: Prepared) -> tuple[Examples, int]:
    """Return the rows to choose from, and how many of them the budget allows; nothing slow happens.

    Raises:
        ConfigError: If there is no such scorer, or the budget makes no sense or exceeds the rows.
        DataError: If there are no rows.
    """
    section = config.selection
    scorers.scorer_class(section.scorer)
    rows = examples(data.split.train, window=section.window, min_history=section.min_history)
    if len(rows) == 0:
        raise DataError(
            f"no user has {section.min_history} training interactions before another one, so there are no "
            f"samples to choose from; lower selection.min_history."
        )
    automatic = isinstance(section.budget, str) and section.budget.strip() == "auto"
    return rows, min(AUTO_BUDGET, len(rows)) if automatic else parse_budget(section.budget, len(rows))


def select_from(
    folder: Path,
    *,
    scorer: str,
    budget: str | None = None,
    options: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Choose samples again, from the data of a finished run, into `selections/<scorer>` of its folder.

    Args:
        folder: The run's folder; nothing else in it changes.
        scorer: Name of the scorer.
        budget: As in the configuration; default: the run's.
        options: Options of the scorer.
        observer: Is told of progress.

    Returns:
        The diagnostics, with the paths of the table and of the scores.

    Raises:
        StorageError: If the folder holds no finished run.
    """
    if not (folder / "report.json").is_file():
        raise StorageError(f"{folder} holds no finished run; make one with frugalrec run.")
    config = RunConfig.model_validate(yaml.safe_load(load_json(folder / "report.json")["config_yaml"]))
    change = {"scorer": scorer, "options": dict(options or {})}
    if budget is not None:
        change["budget"] = budget
    section = config.selection.model_copy(update=change)
    config = config.model_copy(update={"selection": section})
    with Run(folder, observer) as run:
        prepared = data_stage.prepare(run, config)
        samples = select_samples(run, config, prepared, name=f"selections/{scorer}")
    about: dict[str, Any] = load_json(samples.stage.path / "diagnostics.json")
    table = samples.stage.path / "selection.parquet"
    return {"scorer": scorer, "seed": config.seed, **about, "table": str(table)}


def _scorer(
    run: Run, config: RunConfig, data: Prepared, name: str, cache: Path, budget: int
) -> scorers.Scorer:
    given = {
        "seed": config.seed,
        "valid": data.split.valid,
        "llm": config.llm.model,
        "dtype": config.llm.dtype,
        "noun": noun_of(config, data.dataset),
        "cache": cache,
        "budget": budget,
        "progress": lambda done, total: run.observer.progressed(name, done, total),
    }
    takes = scorers.scorer_class(config.selection.scorer).takes
    options = {key: value for key, value in given.items() if key in takes} | config.selection.options
    return scorers.create(config.selection.scorer, **options)


def _table(
    candidates: Examples, dataset: Dataset, selection: Selection, parts: Mapping[str, FloatArray]
) -> pl.DataFrame:
    """Return one line per candidate row: who, what, the score and its parts, and whether it was kept."""
    kept = np.zeros(len(candidates), dtype=bool)
    kept[selection.kept] = True
    return pl.DataFrame(
        {
            "row": np.arange(len(candidates)),
            "user": dataset.user_ids[candidates.users],
            "history": np.diff(candidates.indptr),
            "target": dataset.item_ids[candidates.targets],
            "title": [dataset.titles[item] for item in candidates.targets],
            **parts,
            "score": selection.scores,
            "kept": kept,
        }
    )
