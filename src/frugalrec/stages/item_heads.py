"""Distillation of a finished run into an item head: one forward pass of the LLM lists the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.evaluation.compare import difference
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.grounding.questions import known_titles
from frugalrec.ledger import measure
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.recommenders import create
from frugalrec.rng import generator
from frugalrec.runs import Observer, Run, Stage
from frugalrec.stages import cheap, data, selection
from frugalrec.stages.artefacts import save_json
from frugalrec.stages.cheap import CheapArm
from frugalrec.stages.data import Prepared, noun_of
from frugalrec.stages.tuning_rows import run_config
from frugalrec.types import Ranking

if TYPE_CHECKING:
    from frugalrec.data.examples import Examples
    from frugalrec.distillation.catalogue_head import CatalogueHead, HeadConfig
    from frugalrec.distillation.soft_targets import SoftTargets
    from frugalrec.llm.local import LocalLM

ROWS = 512
"""Training rows where no number is asked for."""


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """What `frugalrec distil --head items` is asked for."""

    source: Path
    """The folder of a finished run."""
    out: Path
    """The head's folder."""
    model: str | None = None
    """The model; default: the run's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    rows: int = ROWS
    """Training rows: those that the run selected first, then others at random."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ItemHeadConfig`, and `soft_weight`."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read."""
        if not (self.source / "report.json").is_file():
            raise ConfigError(f"{self.source} is no finished run; an item head is distilled from one.")
        if self.rows < 1:
            raise ConfigError(f"an item head needs at least 1 row to learn from, not {self.rows}.")

    @property
    def config(self) -> HeadConfig:
        """The options of distillation."""
        from frugalrec.distillation.catalogue_head import HeadConfig
        from frugalrec.tuning.item_head import ItemHeadConfig

        known = {entry.name for entry in dataclasses.fields(ItemHeadConfig)} - {"seed"} | {"soft_weight"}
        if unknown := sorted(set(self.settings) - known):
            raise ConfigError(
                f"an item head has no field {unknown[0]!r}; choose from {', '.join(sorted(known))}."
            )
        own = dict(self.settings)
        weight = own.pop("soft_weight", HeadConfig.soft_weight)
        try:
            return HeadConfig(head=ItemHeadConfig(seed=self.seed, **own), soft_weight=weight)
        except TypeError as error:  # such as a text where a number is compared
            raise ConfigError(f"item head: a --set value is of the wrong kind ({error}).") from None


def distil_head_of(request: HeadRequest, observer: Observer | None = None) -> dict[str, Any]:
    """Distil a run's first stage and its users' choices into an item head, and judge it on the test fold.

    Args:
        request: What to distil, and how.
        observer: Is told of the prompts that are read.

    Returns:
        The facts: loss by epoch, tokens, the run's metric beside the first stage's with an interval; also
        written to ``distil.json``.
    """
    from frugalrec.distillation.catalogue_head import distil_head

    watcher, options = observer or Observer(), request.config
    watcher.started("distillation")
    with Run(request.source) as run, measure() as meter:
        config = run_config(request.source)
        prepared, first, rows = _rows(run, config, request)
        lm = _loaded(request, config)
        titles = known_titles(None, prepared.dataset)
        soft = _lists(config, prepared, first, rows)
        student = distil_head(
            lm,
            rows,
            titles,
            request.out,
            prompt=NextTitlePrompt(noun=noun_of(config, prepared.dataset), window=config.selection.window),
            soft=soft,
            config=options,
            progress=lambda done, total: watcher.progressed("distillation", done, total),
        )
        judged = _judged(config, prepared, first, student)
        student.close()
    watcher.finished(Stage(name="distillation", path=request.out, hash="", usage=meter.usage, reused=False))
    facts = {
        "student": str(request.out),
        "rows": len(rows),
        "teacher": None if soft is None else first.name,
        **judged,
    }
    save_json(request.out / "distil.json", facts)
    return facts


def recommend_with_head(folder: Path, histories: Dataset, users: Any, k: int, head: Path) -> Ranking:
    """Return lists of a run's users by an item head.

    Args:
        folder: The run's folder.
        histories: What is known of the users.
        users: User codes.
        k: Length of the lists.
        head: The head's folder.
    """
    from frugalrec.distillation.catalogue_head import CatalogueHead, read_manifest
    from frugalrec.llm.local import LocalLM

    config = run_config(folder)
    name = read_manifest(head)["base"]["name"] if config.llm.model == "none" else config.llm.model
    lm = LocalLM.load(name, dtype=config.llm.dtype)
    student = CatalogueHead.load(lm, head, known_titles(None, histories))
    ranking, _ = student.ground(histories, users, k)
    student.close()
    return ranking


def _rows(run: Run, config: RunConfig, request: HeadRequest) -> tuple[Prepared, CheapArm, Examples]:
    prepared = data.prepare(run, config)
    samples = selection.select_samples(run, config, prepared)
    first = cheap.first_stage(run, config, prepared)
    kept = samples.selection.kept
    rest = generator(request.seed, "distillation", "head").permutation(len(samples.candidates))
    order = np.concatenate([kept, rest[~np.isin(rest, kept)]])[: request.rows]
    rows = samples.candidates.take(np.sort(order))
    filled = np.flatnonzero(np.diff(rows.indptr) > 0)
    return prepared, first, rows.take(filled)


def _lists(config: RunConfig, prepared: Prepared, first: CheapArm, rows: Examples) -> SoftTargets | None:
    """Return a first stage's lists as probabilities; None where it tells no items apart.

    It is fitted anew without the rows' targets (each is its user's last item), which a model that was
    fitted on them would only repeat.
    """
    from frugalrec.distillation.soft_targets import SoftTargets

    train = prepared.split.train
    last = np.arange(train.n) == np.repeat(train.indptr[1:], train.lengths) - 1
    known = train.where(~last)
    options = cheap.run_options(first.name, config.recommenders.options.get(first.name, {}), config.seed)
    model = create(first.name, **options).fit(known, prepared.split.valid)
    lists = model.recommend(rows.users, config.llm.candidates, histories=known)
    scores = np.where(lists.items >= 0, lists.scores, np.nan)
    spread = float(np.nanmean(np.nanstd(scores, axis=1)))
    # Models score in units of their own: one standard deviation within a list becomes one nat.
    return SoftTargets.of_ranking(lists, spread) if spread > 0 else None


def _judged(config: RunConfig, prepared: Prepared, first: CheapArm, student: CatalogueHead) -> dict[str, Any]:
    metric, split = config.evaluation.primary, prepared.split
    users, history = split.users("test"), split.history("test")
    depth = max(int(name.rpartition("@")[2]) for name in config.evaluation.metrics if "@" in name)
    ranking, usage = student.ground(history, users, depth)
    own = evaluate_ranking("item head", ranking, split.targets("test"), [metric], seen=history)
    gap = difference(own, first.evaluations["test"], metric)
    return {
        "metric": metric,
        "value": own.mean(metric),
        "first_stage": first.name,
        "first_stage_value": first.evaluations["test"].mean(metric),
        "difference": [gap.mean, gap.low, gap.high],
        "users": int(users.size),
        "tokens_per_user": usage.tokens_in / max(1, users.size),
        "cpu_ms_per_user": 1000 * usage.cpu_s / max(1, users.size),
    }


def _loaded(request: HeadRequest, config: RunConfig) -> LocalLM:
    from frugalrec.llm.local import LocalLM

    name = request.model or config.llm.model
    if name == "none":
        raise ConfigError(f"the run {request.source} used no LLM; name one with --llm.")
    return LocalLM.load(name, dtype=request.dtype)
