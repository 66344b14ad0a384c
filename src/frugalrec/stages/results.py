"""The last stage: every arm and every control over the same users, with intervals and costs."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from frugalrec import __version__
from frugalrec.config import RunConfig
from frugalrec.data.splits import Split
from frugalrec.errors import StorageError
from frugalrec.evaluation import compare, segments
from frugalrec.evaluation.ranks import ranks_from_ranking
from frugalrec.ledger import Prices, Usage
from frugalrec.reporting import verdict
from frugalrec.reporting.document import (
    Arm,
    DatasetFacts,
    DecileTable,
    Difference,
    Interval,
    Report,
    SelectionFacts,
    StageCost,
    TuningFacts,
    WarmthRow,
    WeightFacts,
)
from frugalrec.runs import Run
from frugalrec.stages.allocating import Routing, second_stage
from frugalrec.stages.arms import Candidate, cheap_arm, llm_arms, rival_arm, second_arm
from frugalrec.stages.artefacts import load_json
from frugalrec.stages.asking import TUNED, Served, Variant
from frugalrec.stages.cheap import CONTROLS, CheapArm
from frugalrec.stages.choice import selection_facts
from frugalrec.stages.data import Prepared
from frugalrec.stages.notes import notes
from frugalrec.stages.rivals import LAMBDARANK, Rival
from frugalrec.stages.routing_facts import allocation_facts

PACKAGES = ("numpy", "scipy", "polars", "implicit", "lightgbm", "torch", "transformers", "peft")
GROUPS = 10


def load_report(folder: Path) -> Report:
    """Read the report of a finished run.

    Raises:
        StorageError: If there is none.
    """
    try:
        return Report.from_dict(load_json(folder / "report.json"))
    except FileNotFoundError:
        raise StorageError(f"{folder} holds no report.json: the run is not finished. Run it again.") from None


def assemble(
    run: Run,
    config: RunConfig,
    data: Prepared,
    arms: list[CheapArm],
    first: CheapArm,
    served: Served | None,
    routing: Routing | None,
    rival: Rival | None,
    command: str,
    pointless: str | None = None,
) -> Report:
    """Compare all arms on the test users, and say what each costs, and why no LLM was asked if it was not."""
    prices = config.price_table()
    candidates = [cheap_arm(config, data, arm, arm.name == first.name) for arm in arms]
    if rival is not None:
        candidates.append(rival_arm(config, data, first, rival))
    if served is not None:
        second = second_stage(config, arms, first)
        if second is not None and served.rows.size:
            candidates.append(second_arm(config, data, first, second, served))
        candidates += llm_arms(config, data, first, served, prices)
    reference = next(c for c in candidates if c.name == first.name)
    chosen = served.variants.get(TUNED) or next(iter(served.variants.values())) if served else None
    shown = _shown(candidates, first, arms, config)
    report = Report(
        title=f"{data.dataset.name}: does an LLM pay?",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        dataset=_facts(data),
        primary=config.evaluation.primary,
        reference=first.name,
        arms=tuple(_arm(c, reference, config) for c in candidates),
        confidence=config.evaluation.level,
        deciles=_deciles(shown, data.split, config),
        warmth=tuple(_warmth(c, data.split, config) for c in shown),
        audit=tuple(data.audit),  # type: ignore[arg-type]
        stages=_stages(run, prices),
        currency=prices.currency if prices else None,
        prices_as_of=prices.as_of if prices else None,
        selection=_selection(config, served) if served else None,
        tuning=_tuning(served, config) if served else None,
        weights=_weights(chosen, config) if chosen else None,
        allocation=allocation_facts(config, data, first, routing, served) if served and routing else None,
        notes=notes(config, data, served, rival, pointless),
        versions=_versions(),
        seeds={"run": config.seed},
        hashes=_hashes(data, served),
        config_yaml=config.to_yaml(),
    )
    return replace(report, verdict=verdict(report))


def _arm(candidate: Candidate, reference: Candidate, config: RunConfig) -> Arm:
    options: dict[str, Any] = {
        "level": config.evaluation.level,
        "resamples": config.evaluation.resamples,
        "seed": config.seed,
    }
    metrics, differences = {}, {}
    for metric, values in candidate.evaluation.values.items():
        found = compare.interval(values, **options)
        metrics[metric] = Interval(found.mean, found.low, found.high)
        if candidate is not reference:
            gap = compare.difference(candidate.evaluation, reference.evaluation, metric, **options)
            differences[metric] = Difference(gap.mean, gap.low, gap.high, gap.p_value)
    return Arm(
        name=candidate.name,
        label=candidate.label,
        kind=candidate.kind,
        description=candidate.description,
        users=int(candidate.evaluation.users.size),
        metrics=metrics,
        difference=differences or None,
        cost=candidate.cost,
        oracle=candidate.oracle,
    )


def _shown(
    candidates: list[Candidate], first: CheapArm, arms: list[CheapArm], config: RunConfig
) -> list[Candidate]:
    """Return the arms that the tables by segment show: the first stage, its LLM arms and a rival."""
    primary = config.evaluation.primary
    rivals = [a for a in arms if a.name != first.name and a.name not in CONTROLS]
    rival = max(rivals, key=lambda a: a.evaluations["valid"].mean(primary), default=None)
    llm = [c.name for c in candidates if c.kind in ("llm", "fusion")]
    wanted = {first.name, "popularity", LAMBDARANK, *llm[-2:], "random-permutation"}
    if rival is not None:
        wanted.add(rival.name)
    return [c for c in candidates if c.name in wanted]


def _deciles(shown: list[Candidate], split: Split, config: RunConfig) -> DecileTable:
    lengths = split.history("test").lengths
    rows = {
        c.name: segments.by_decile(
            c.evaluation,
            lengths,
            config.evaluation.primary,
            groups=GROUPS,
            level=config.evaluation.level,
            resamples=config.evaluation.resamples,
            seed=config.seed,
        )
        for c in shown
    }
    some = next(iter(rows.values()))
    return DecileTable(
        metric=config.evaluation.primary,
        labels=tuple(_span(row["shortest"], row["longest"]) for row in some),
        users=tuple(row["n_users"] for row in some),
        arms={name: tuple(_interval(row) for row in part) for name, part in rows.items()},
    )


def _warmth(candidate: Candidate, split: Split, config: RunConfig) -> WarmthRow:
    history = split.history("test")
    ranks = ranks_from_ranking(candidate.ranking, split.targets("test"), seen=history)
    rows = segments.by_warmth(
        ranks,
        history.item_counts,
        config.evaluation.primary,
        level=config.evaluation.level,
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )
    by_name = {row["segment"]: row for row in rows}
    cold, warm = by_name["cold"], by_name["warm"]
    return WarmthRow(
        arm=candidate.name,
        cold=_interval(cold) if cold["n_targets"] else None,
        warm=_interval(warm) if warm["n_targets"] else None,
        cold_targets=cold["n_targets"],
        warm_targets=warm["n_targets"],
    )


def _interval(row: dict[str, Any]) -> Interval:
    return Interval(*(float("nan") if row[key] is None else row[key] for key in ("mean", "low", "high")))


def _span(shortest: int, longest: int) -> str:
    return str(shortest) if shortest == longest else f"{shortest} to {longest}"


def _stages(run: Run, prices: Prices | None) -> tuple[StageCost, ...]:
    rows = []
    for stage in run.stages:
        usage: Usage = stage.usage
        money = None if prices is None else prices.money(usage)
        fields = {k: v for k, v in usage.to_dict().items() if k != "accelerator_s"}
        rows.append(StageCost(name=stage.name, money=money, reused=stage.reused, **fields))  # type: ignore[arg-type]
    return tuple(rows)


def _facts(data: Prepared) -> DatasetFacts:
    dataset, split = data.dataset, data.split
    facts = DatasetFacts(
        name=dataset.name,
        users=dataset.n_users,
        items=dataset.n_items,
        interactions=dataset.n,
        density=dataset.n / (dataset.n_users * dataset.n_items),
        split=split.method,
        train=split.train.n,
        valid=split.valid.n,
        test=split.test.n,
    )
    if dataset.times is not None:
        ends = (dataset.times.min(), dataset.times.max())
        facts["span"] = " to ".join(str(datetime.fromtimestamp(int(t), UTC).date()) for t in ends)
    return facts


def _selection(config: RunConfig, served: Served) -> SelectionFacts:
    tuning = None if served.tuning is None else served.tuning.usage
    evidence = {} if served.adapter is None else served.adapter.evidence
    return selection_facts(config, served.samples, tuning, evidence)


def _tuning(served: Served, config: RunConfig) -> TuningFacts | None:
    if served.adapter is None:
        return None
    evidence = served.adapter.evidence
    return TuningFacts(
        base=config.llm.model,
        samples=int(evidence["rows"]),
        epochs=config.tuning.epochs,
        samples_per_s=float(evidence["samples_per_second"]),
        adapter_sha256=served.adapter.sha256,
        loss=[[float(step), float(loss)] for step, loss in evidence["loss_curve"]],
    )


def _weights(variant: Variant, config: RunConfig) -> WeightFacts:
    return WeightFacts(
        name=variant.name,
        metric=config.evaluation.primary,
        chosen=variant.weight,
        grid=[[weight, value] for weight, value in sorted(variant.choice.values.items())],
    )


def _versions() -> dict[str, str]:
    found = {"frugalrec": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hashes(data: Prepared, served: Served | None) -> dict[str, str]:
    hashes = {"data": data.dataset.fingerprint}
    if served is not None:
        hashes["model"] = served.model_key
        if served.adapter is not None:
            hashes["adapter"] = served.adapter.sha256
    return hashes
