"""The language model of a run: opened by name, tuned on the chosen samples, asked in one prompt."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.config import LLMConfig, RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.ledger import Meter
from frugalrec.llm import models
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.runs import Run, Stage
from frugalrec.stages.artefacts import load_json, save_json
from frugalrec.stages.cheap import CheapArm, load_model
from frugalrec.stages.data import Prepared, noun_of
from frugalrec.stages.selection import Samples
from frugalrec.types import Adapter, IntArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.base import TrainingRow


def tunes(config: RunConfig) -> bool:
    """Return whether the run tunes its model: yes/no questions to a model in this process."""
    local = not models.is_endpoint(config.llm.model)
    return config.tuning.enabled and local and config.llm.style in ("auto", "pointwise")


class OpenModel:
    """A language model by name: hashed at once, loaded only when a stage has to compute."""

    def __init__(self, config: LLMConfig) -> None:
        self.config = config

    @cached_property
    def key(self) -> str:
        """Return what identifies the weights: a hash of the folder, the hub's id, or the address."""
        name = self.config.model
        return name if models.is_endpoint(name) else models.identity(name)

    @property
    def is_endpoint(self) -> bool:
        """Return whether it answers at an address, and has no weights here."""
        return models.is_endpoint(self.config.model)

    @cached_property
    def base(self) -> LocalLM:
        """Return the untuned model."""
        return self.load(None)

    def load(self, adapter: Path | None) -> LocalLM:
        """Load the model, with an adapter if one is given."""
        from frugalrec.llm.local import LocalLM

        return LocalLM.load(self.config.model, adapter=adapter, dtype=self.config.dtype)


def open_model(config: RunConfig) -> OpenModel:
    """Return the model that the configuration names; a missing one is an error now, not later."""
    model = OpenModel(config.llm)
    _ = model.key
    return model


def tune(
    run: Run, config: RunConfig, data: Prepared, first: CheapArm, samples: Samples, model: OpenModel
) -> tuple[Stage, Adapter] | None:
    """Tune a LoRA adapter on the kept samples, or return None where tuning is switched off."""
    if not tunes(config):
        return None
    from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner

    section = config.tuning
    prompt = prompt_for(config, data.dataset)

    def build(folder: Path, meter: Meter) -> None:
        kept = samples.candidates.take(samples.selection.kept)
        rows = training_rows(config, data, first, kept)
        options = section.model_dump(exclude={"enabled", "negatives"})
        tuner = PointwiseTuner(PointwiseConfig(**options, seed=config.seed), answers=prompt.answers)
        adapter = tuner.tune(
            model.base,
            rows,
            None,
            folder / "adapter",
            progress=lambda done, total: run.observer.progressed("tuning", done, total),
        )
        meter.add_tokens(trained=int(adapter.evidence["tokens_trained"]))
        save_json(folder / "adapter.json", {"sha256": adapter.sha256, "evidence": adapter.evidence})

    key = {
        "selection": samples.stage.hash,
        "first": first.stage.hash,
        "model": model.key,
        "tuning": section.model_dump(),
        "prompt": prompt_key(config),
        "dtype": config.llm.dtype,
        "candidates": config.llm.candidates,
    }
    stage = run.stage("tuning", key, build)
    about = load_json(stage.path / "adapter.json")
    return stage, Adapter(path=stage.path / "adapter", base=config.llm.model, **about)


def training_rows(
    config: RunConfig, data: Prepared, first: CheapArm, kept: Examples, prompt: RerankPrompt | None = None
) -> list[TrainingRow]:
    """Return the yes/no rows of some samples: the target, and candidates of the cheap model.

    Args:
        config: The run's configuration.
        data: Its data.
        first: The cheap model.
        kept: The samples.
        prompt: How rows are written; default: as the run writes them.
    """
    from frugalrec.tuning.rows import build_rows

    return build_rows(
        kept,
        data.split.train,
        _negatives(config, data, first, kept),
        prompt or prompt_for(config, data.dataset),
        n_negatives=config.tuning.negatives,
        seed=config.seed,
    )


def prompt_for(config: RunConfig, dataset: Dataset) -> RerankPrompt:
    """Return the prompt that tuning and re-ranking share."""
    noun = noun_of(config, dataset)
    return RerankPrompt(noun=noun, window=config.selection.window, min_like=config.llm.min_like)


def _negatives(config: RunConfig, data: Prepared, first: CheapArm, kept: Examples) -> IntArray:
    """Return the cheap model's list for each sample, as it would be before the target was known."""
    train = data.split.train
    last = np.arange(train.n) == np.repeat(train.indptr[1:], train.lengths) - 1
    model = load_model(first.stage.path, config, first.name, train, fitted_on="train")
    lists = model.recommend(kept.users, config.llm.candidates, histories=train.where(~last))
    return lists.items


def prompt_key(config: RunConfig) -> dict[str, Any]:
    """Return what decides the words of the prompt; enters the keys of stages that ask or tune."""
    return {
        **config.llm.model_dump(include={"noun", "min_like"}),
        "window": config.selection.window,
    }
