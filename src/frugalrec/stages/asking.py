"""Asking the LLM about candidates: calibration users first, then the users that allocation routed to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.allocation.gain import calibration_slice
from frugalrec.config import RunConfig
from frugalrec.data.splits import Fold
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.grounding.answers import AnswerCache
from frugalrec.grounding.fusion import WeightChoice, choose_weight
from frugalrec.ledger import Meter, Usage
from frugalrec.llm.http.accounts import spent
from frugalrec.runs import STAGE_FILE, Run, Stage
from frugalrec.stages.artefacts import load_arrays, load_json, save_arrays, save_json
from frugalrec.stages.cheap import CheapArm
from frugalrec.stages.data import Prepared
from frugalrec.stages.llm import OpenModel
from frugalrec.stages.reranking import JOURNAL, asking_key, endpoint_of, fused, reranker_for
from frugalrec.stages.selection import Samples
from frugalrec.types import Adapter, Allocation, FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

ZERO_SHOT, TUNED = "zero-shot", "tuned"
PASSING = {"unavailable", "deadline", "over-budget"}
"""Reasons of users without an answer for which the next run asks again."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One way to use the LLM (zero-shot or tuned), with its answers on calibration users."""

    name: str
    loaded: Loaded
    rows: IntArray
    """Rows of the first stage's validation ranking that belong to calibration users."""
    odds: FloatArray
    """Log-odds of their candidates, (n, m)."""
    choice: WeightChoice
    """The fusion weight that they chose."""
    stage: Stage
    answers: Mapping[str, Any] = field(default_factory=dict)
    """How many of them were answered, and why others were not."""

    @property
    def weight(self) -> float:
        """Return the best weight above 0: for users who were chosen because the LLM helps them."""
        values = {weight: value for weight, value in self.choice.values.items() if weight > 0}
        return max(values, key=lambda weight: (values[weight], -weight), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to use the LLM, with its answers on both folds."""

    name: str
    odds: FloatArray
    """Log-odds of the routed test users' candidates, (n_routed, m)."""
    choice: WeightChoice
    """The fusion weight that calibration users chose."""
    weight: float
    """The one in use: that one, or the best above 0 where routing decides who is asked at all."""
    valid: Stage
    test: Stage
    answers: Mapping[str, Any] = field(default_factory=dict)
    """How many test users were answered, and why others keep the cheap list."""


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


def calibrate(
    run: Run,
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    tuned: tuple[Stage, Adapter] | None,
    model: OpenModel,
) -> dict[str, Calibration]:
    """Re-rank calibration users, drawn from validation, and let them choose the fusion weight.

    Returns:
        The ways to use the LLM by name; the last one is the one that allocation decides about.
    """
    rows = _calibration_rows(config, data, first)
    names = [ZERO_SHOT] * config.llm.zero_shot + [TUNED] * (tuned is not None)
    found = {}
    for name in names or [ZERO_SHOT]:
        loaded = Loaded(model, tuned[1] if tuned is not None and name == TUNED else None)
        stage, odds = _ask(run, config, data, first, "valid", rows, name, loaded)
        choice = _choose(config, data, first.rankings["valid"].take(rows), odds)
        found[name] = Calibration(
            name=name,
            loaded=loaded,
            rows=rows,
            odds=odds,
            choice=choice,
            stage=stage,
            answers=load_json(stage.path / "answers.json"),
        )
    return found


def serve(
    run: Run,
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    samples: Samples,
    tuned: tuple[Stage, Adapter] | None,
    calibrated: Mapping[str, Calibration],
    allocation: Allocation,
    model: OpenModel,
) -> Served:
    """Re-rank the test users that allocation routed to the LLM."""
    rows = np.flatnonzero(np.isin(first.rankings["test"].users, allocation.users[allocation.routed]))
    variants = {}
    for name, known in calibrated.items():
        stage, odds = _ask(run, config, data, first, "test", rows, name, known.loaded)
        answers = load_json(stage.path / "answers.json")
        variants[name] = Variant(
            name=name,
            odds=odds,
            choice=known.choice,
            weight=known.weight if allocation.policy == "gain-per-cost" else known.choice.weight,
            valid=known.stage,
            test=stage,
            answers=answers,
        )
    return Served(
        variants=variants,
        allocation=allocation,
        rows=rows.astype(np.int32),
        samples=samples,
        adapter=None if tuned is None else tuned[1],
        tuning=None if tuned is None else tuned[0],
        model_key=model.key,
        calibration_users=int(next(iter(calibrated.values())).rows.size),
    )


class Loaded:
    """The model with one adapter, loaded on first use and shared by both folds."""

    def __init__(self, model: OpenModel, adapter: Adapter | None) -> None:
        self.model, self.adapter = model, adapter

    @cached_property
    def llm(self) -> LocalLM:
        """Return the model."""
        return self.model.base if self.adapter is None else self.model.load(self.adapter.path)

    @property
    def key(self) -> list[str | None]:
        """Return what identifies the weights and the adapter."""
        return [self.model.key, None if self.adapter is None else self.adapter.sha256]


def _ask(
    run: Run,
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    fold: Fold,
    rows: Any,
    name: str,
    loaded: Loaded,
) -> tuple[Stage, FloatArray]:
    """Ask the LLM about the candidates of some users; a killed run asks nothing twice."""
    ranking = first.rankings[fold].take(rows)
    depth = config.llm.candidates
    head = Ranking(users=ranking.users, items=ranking.items[:, :depth], scores=ranking.scores[:, :depth])
    stage_name = f"llm/{fold}-{name}"

    def build(folder: Path, meter: Meter) -> None:
        cache = folder / "answers.sqlite"
        chat = endpoint_of(config, run.folder) if loaded.model.is_endpoint else None
        before = _spent_before(folder, run.folder / JOURNAL) if chat else Usage()
        reranker = reranker_for(
            config, data.dataset, lm=None if chat else loaded.llm, chat=chat, cache=None if chat else cache
        )
        found = reranker.rerank(
            data.split.history(fold),
            head,
            progress=lambda done, total: run.observer.progressed(stage_name, done, total),
        )
        journal = run.folder / JOURNAL if chat else None
        meter.add(_spent_in_all(found.usage, cache, journal, before))
        save_json(folder / "answers.json", found.report)
        save_arrays(folder / "odds.npz", users=head.users, items=head.items, odds=found.scores)

    key = {
        "first": first.stage.hash,
        "model": loaded.key,
        "users": head.users.tolist(),
        "depth": depth,
        "prompt": asking_key(config),
        "dtype": config.llm.dtype,
    }
    if not run.read_only:
        _reopen(run.folder / stage_name)
    stage = run.stage(stage_name, key, build)
    return stage, load_arrays(stage.path / "odds.npz")["odds"]


def _reopen(stage: Path) -> None:
    """Let a stage be built again if some users were not answered for reasons that pass; answers are kept."""
    answers = stage / "answers.json"
    if answers.is_file() and PASSING & load_json(answers)["reasons"].keys():
        (stage / STAGE_FILE).unlink(missing_ok=True)


def _spent_before(folder: Path, journal: Path) -> Usage:
    """Return what an endpoint's file had counted when this stage began, killed attempts at it included."""
    note = folder / "spent-before.json"
    if not note.is_file():
        save_json(note, (_spent(journal) if journal.is_file() else Usage()).to_dict())
    return Usage.from_dict(load_json(note))


def _spent_in_all(usage: Usage, cache: Path, journal: Path | None, before: Usage) -> Usage:
    """Return what a stage spent, what killed attempts at it spent included, where a file knows that."""
    if journal is not None:
        now = _spent(journal) if journal.is_file() else before
        return Usage(
            tokens_in=now.tokens_in - before.tokens_in,
            tokens_out=now.tokens_out - before.tokens_out,
            llm_calls=now.llm_calls - before.llm_calls,
        )
    if not cache.is_file():
        return usage
    with AnswerCache(cache) as answers:
        counted = answers.spent()
    return counted if counted.llm_calls else usage  # a chat model's file keeps answers alone


def _spent(journal: Path) -> Usage:
    """Return the tokens and calls that an endpoint's file has counted."""
    found = spent(journal)
    return Usage(tokens_in=found.tokens_in, tokens_out=found.tokens_out, llm_calls=found.calls)


def _choose(config: RunConfig, data: Prepared, ranking: Ranking, odds: FloatArray) -> WeightChoice:
    primary = config.evaluation.primary
    history, targets = data.split.history("valid"), data.split.targets("valid")

    def value(weight: float) -> float:
        lists = fused(config, ranking, odds, weight)
        return evaluate_ranking("fused", lists, targets, [primary], seen=history).mean(primary)

    return choose_weight(config.llm.weights, value)


def _calibration_rows(config: RunConfig, data: Prepared, first: CheapArm) -> IntArray:
    """Return the rows of calibration users: all alike likely, each level of activity by its share."""
    users = first.rankings["valid"].users
    lengths = data.split.history("valid").lengths[users]
    chosen = calibration_slice(users, lengths, config.llm.calibration_users, config.seed)
    return np.flatnonzero(np.isin(users, chosen)).astype(np.int32)
