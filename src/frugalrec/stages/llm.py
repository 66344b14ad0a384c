"""The LLM's part: tune on the chosen samples, choose users, re-rank their candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.allocation.policies import allocate
from frugalrec.config import LLMConfig, RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.data.splits import Fold
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.grounding.answers import AnswerCache
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.fusion import WeightChoice, choose_weight, fuse
from frugalrec.ledger import Meter
from frugalrec.llm import models
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.rng import generator
from frugalrec.runs import Run, Stage
from frugalrec.stages.artefacts import load_arrays, load_json, save_arrays, save_json
from frugalrec.stages.cheap import CheapArm, load_model
from frugalrec.stages.data import Prepared, noun_of
from frugalrec.stages.selection import Samples
from frugalrec.types import Adapter, Allocation, FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.base import TrainingRow

ZERO_SHOT, TUNED = "zero-shot", "tuned"


class OpenModel:
    """A language model by name: hashed at once, loaded only when a stage has to compute."""

    def __init__(self, config: LLMConfig) -> None:
        self.config = config

    @cached_property
    def key(self) -> str:
        """Return what identifies the weights: a hash of the folder, or the hub's id."""
        return models.identity(self.config.model)

    @cached_property
    def base(self) -> LocalLM:
        """Return the untuned model."""
        return self.load(None)

    def load(self, adapter: Path | None) -> LocalLM:
        """Load the model, with an adapter if one is given."""
        from frugalrec.llm.local import LocalLM

        return LocalLM.load(self.config.model, adapter=adapter, dtype=self.config.dtype)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to use the LLM (zero-shot or tuned), with its answers on both folds."""

    name: str
    odds: FloatArray
    """Log-odds of the routed test users' candidates, (n_routed, m)."""
    choice: WeightChoice
    """The fusion weight that calibration users chose."""
    valid: Stage
    test: Stage


@dataclass(frozen=True, kw_only=True)
class Served:
    """Everything the LLM contributed to the run."""

    variants: Mapping[str, Variant]
    allocation: Allocation
    rows: IntArray
    """Rows of the first stage's test ranking that belong to routed users."""
    samples: Samples
    adapter: Adapter | None
    tuning: Stage | None
    model_key: str
    calibration_users: int


def open_model(config: RunConfig) -> OpenModel:
    """Return the model that the configuration names; a missing one is an error now, not later."""
    model = OpenModel(config.llm)
    _ = model.key
    return model


def tune(
    run: Run, config: RunConfig, data: Prepared, first: CheapArm, samples: Samples, model: OpenModel
) -> tuple[Stage, Adapter] | None:
    """Tune a LoRA adapter on the kept samples, or return None where tuning is switched off."""
    if not config.tuning.enabled:
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
        "prompt": _prompt_key(config),
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


def allocate_users(config: RunConfig, data: Prepared) -> Allocation:
    """Choose which test users get the LLM, within the budget."""
    users = data.split.users("test")
    lengths = data.split.history("test").lengths[users]
    section = config.allocation
    return allocate(section.policy, users, lengths, section.budget_users, seed=config.seed)


def serve(
    run: Run,
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    samples: Samples,
    tuned: tuple[Stage, Adapter] | None,
    allocation: Allocation,
    model: OpenModel,
) -> Served:
    """Re-rank calibration users and routed test users; choose the fusion weight on the former."""
    valid_rows = _calibration_rows(config, first)
    test_rows = np.flatnonzero(np.isin(first.rankings["test"].users, allocation.users[allocation.routed]))
    names = [ZERO_SHOT] * config.llm.zero_shot + [TUNED] * (tuned is not None)
    variants = {}
    for name in names or [ZERO_SHOT]:
        adapter = tuned[1] if tuned is not None and name == TUNED else None
        loaded = _Loaded(model, adapter)
        valid, valid_odds = _ask(run, config, data, first, "valid", valid_rows, name, loaded)
        test, odds = _ask(run, config, data, first, "test", test_rows, name, loaded)
        choice = _choose(config, data, first.rankings["valid"].take(valid_rows), valid_odds)
        variants[name] = Variant(name=name, odds=odds, choice=choice, valid=valid, test=test)
    return Served(
        variants=variants,
        allocation=allocation,
        rows=test_rows.astype(np.int32),
        samples=samples,
        adapter=None if tuned is None else tuned[1],
        tuning=None if tuned is None else tuned[0],
        model_key=model.key,
        calibration_users=int(valid_rows.size),
    )


def rerank_live(folder: Path, histories: Dataset, ranking: Ranking, student: Path | None = None) -> Ranking:
    """Re-rank lists with what a finished run left: its tuned model and its fusion weight.

    Args:
        folder: The run's folder.
        histories: What is known of the users.
        ranking: Their lists.
        student: Ask with this distilled prompt (`frugalrec distil`) instead of the run's words.
    """
    import yaml

    report = load_json(folder / "report.json")
    config = RunConfig.model_validate(yaml.safe_load(report["config_yaml"]))
    adapter = folder / "tuning" / "adapter"
    llm, prompt = _asked_with(config, histories, adapter if adapter.is_dir() else None, student)
    head = Ranking(
        users=ranking.users,
        items=ranking.items[:, : config.llm.candidates],
        scores=ranking.scores[:, : config.llm.candidates],
    )
    odds, _ = CandidateReranker(llm, prompt).score(histories, head)
    return fuse(ranking, odds, float(report["weights"]["chosen"]), config.llm.candidates)


def _asked_with(
    config: RunConfig, histories: Dataset, adapter: Path | None, student: Path | None
) -> tuple[LocalLM, RerankPrompt]:
    """Return the model and the prompt of a run, or those of a student."""
    if student is None:
        return OpenModel(config.llm).load(adapter), prompt_for(config, histories)
    from frugalrec.distillation.saving import load_student, read_student

    own = {} if read_student(student).evidence["options"]["mode"] == "lora" else {"adapter": adapter}
    lm, prompt = load_student(student, config.llm.model, dtype=config.llm.dtype, **own)
    if not isinstance(prompt, RerankPrompt):
        raise ConfigError(
            f"{student} was distilled from another kind of prompt than a run's; distil the run."
        )
    return lm, prompt


def prompt_for(config: RunConfig, dataset: Dataset) -> RerankPrompt:
    """Return the prompt that tuning and re-ranking share."""
    noun = noun_of(config, dataset)
    return RerankPrompt(noun=noun, window=config.selection.window, min_like=config.llm.min_like)


class _Loaded:
    """The model with one adapter, loaded on first use and shared by both folds."""

    def __init__(self, model: OpenModel, adapter: Adapter | None) -> None:
        self.model, self.adapter = model, adapter

    @cached_property
    def llm(self) -> LocalLM:
        return self.model.base if self.adapter is None else self.model.load(self.adapter.path)

    @property
    def key(self) -> list[str | None]:
        return [self.model.key, None if self.adapter is None else self.adapter.sha256]


def _ask(
    run: Run,
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    fold: Fold,
    rows: Any,
    name: str,
    loaded: _Loaded,
) -> tuple[Stage, FloatArray]:
    """Ask the LLM about the candidates of some users; a killed run asks nothing twice."""
    ranking = first.rankings[fold].take(rows)
    depth = config.llm.candidates
    head = Ranking(users=ranking.users, items=ranking.items[:, :depth], scores=ranking.scores[:, :depth])
    stage_name = f"llm/{fold}-{name}"

    def build(folder: Path, meter: Meter) -> None:
        reranker = CandidateReranker(loaded.llm, prompt_for(config, data.dataset))
        odds, _ = reranker.score(
            data.split.history(fold),
            head,
            progress=lambda done, total: run.observer.progressed(stage_name, done, total),
            cache=folder / "answers.sqlite",
        )
        with AnswerCache(folder / "answers.sqlite") as cache:
            meter.add(cache.spent())  # killed attempts included
        save_arrays(folder / "odds.npz", users=head.users, items=head.items, odds=odds)

    key = {
        "first": first.stage.hash,
        "model": loaded.key,
        "users": head.users.tolist(),
        "depth": depth,
        "prompt": _prompt_key(config),
        "dtype": config.llm.dtype,
    }
    stage = run.stage(stage_name, key, build)
    return stage, load_arrays(stage.path / "odds.npz")["odds"]


def _choose(config: RunConfig, data: Prepared, ranking: Ranking, odds: FloatArray) -> WeightChoice:
    primary = config.evaluation.primary
    history, targets = data.split.history("valid"), data.split.targets("valid")

    def value(weight: float) -> float:
        fused = fuse(ranking, odds, weight, config.llm.candidates)
        return evaluate_ranking("fused", fused, targets, [primary], seen=history).mean(primary)

    return choose_weight(config.llm.weights, value)


def _calibration_rows(config: RunConfig, first: CheapArm) -> Any:
    users = first.rankings["valid"].users
    order = generator(config.seed, "calibration").permutation(users.size)
    return np.sort(order[: config.llm.calibration_users])


def _negatives(config: RunConfig, data: Prepared, first: CheapArm, kept: Examples) -> IntArray:
    """Return the cheap model's list for each sample, as it would be before the target was known."""
    train = data.split.train
    last = np.arange(train.n) == np.repeat(train.indptr[1:], train.lengths) - 1
    model = load_model(first.stage.path, config, first.name, train, fitted_on="train")
    lists = model.recommend(kept.users, config.llm.candidates, histories=train.where(~last))
    return lists.items


def _prompt_key(config: RunConfig) -> dict[str, Any]:
    return {
        **config.llm.model_dump(include={"noun", "min_like"}),
        "window": config.selection.window,
    }
