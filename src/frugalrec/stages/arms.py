"""The arms of a run before their intervals: cheap models, the LLM, fusions, and the controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from frugalrec.config import RunConfig
from frugalrec.evaluation import controls
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.ledger import Prices
from frugalrec.recommenders.second_opinions import second_opinion
from frugalrec.reporting.document import ArmCost, Kind
from frugalrec.rng import generator
from frugalrec.stages.asking import TUNED, Served, Variant
from frugalrec.stages.cheap import CONTROLS, CheapArm
from frugalrec.stages.data import Prepared
from frugalrec.stages.reranking import fused
from frugalrec.stages.rivals import Rival
from frugalrec.types import Evaluation, Ranking

ORACLE = "oracle"
LABELS = {
    "als": "ALS",
    "bert4rec": "BERT4Rec",
    "bpr": "BPR",
    "caser": "Caser",
    "dcrec": "DCRec",
    "dros": "DROS",
    "ease": "EASE",
    "gru4rec": "GRU4Rec",
    "item-knn": "Item kNN",
    "max-id": "Largest id + 1",
    "recent-popularity": "Recent popularity",
    "sasrec": "SASRec",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An arm before its intervals are computed."""

    name: str
    label: str
    kind: Kind
    description: str
    ranking: Ranking
    evaluation: Evaluation
    cost: ArmCost
    oracle: bool = False


def cheap_arm(config: RunConfig, data: Prepared, arm: CheapArm, is_first: bool) -> Candidate:
    """Return a cheap model as an arm."""
    evaluation = arm.evaluations["test"]
    if is_first:
        # The LLM's arms are evaluated from lists, so the reference they are paired with is, too.
        listed = _evaluated(config, data, arm.name, arm.rankings["test"])
        evaluation = replace(evaluation, values={**evaluation.values, **listed.values})
    return Candidate(
        name=arm.name,
        label=label_of(arm.name),
        kind="control" if arm.name in CONTROLS else "cheap",
        description="the first stage: its list is what the LLM re-ranks" if is_first else "",
        ranking=arm.rankings["test"],
        evaluation=evaluation,
        cost=ArmCost(fit_s=arm.fit_s, ms_per_user=arm.ms_per_user),
    )


def rival_arm(config: RunConfig, data: Prepared, first: CheapArm, rival: Rival) -> Candidate:
    """Return the boosted trees as an arm."""
    heard = ", ".join(label_of(name) for name in rival.opinions) or "no further model"
    kept = f"{rival.trees} trees" if rival.trees else "no trees, so its order is the first stage's"
    return Candidate(
        name=rival.name,
        label=f"{label_of(first.name)} + boosted trees",
        kind="cheap",
        description=f"LambdaRank on the same {config.llm.candidates} candidates, with the scores of {heard}; "
        f"validation kept {kept}",
        ranking=rival.ranking,
        evaluation=_evaluated(config, data, rival.name, rival.ranking),
        cost=ArmCost(fit_s=rival.fit_s, ms_per_user=rival.ms_per_user),
    )


def second_arm(
    config: RunConfig, data: Prepared, first: CheapArm, second: CheapArm, served: Served
) -> Candidate:
    """Return another cheap model for the users who were routed: what the LLM must beat for them."""
    whole, routed = first.rankings["test"], np.zeros(first.rankings["test"].users.size, dtype=bool)
    routed[served.rows] = True
    ranking = second_opinion(whole, second.rankings["test"], routed)
    return Candidate(
        name="second-opinion",
        label=f"{label_of(second.name)} for those users",
        kind="cheap",
        description=f"the users that the LLM got have the lists of {label_of(second.name)} instead",
        ranking=ranking,
        evaluation=_evaluated(config, data, "second-opinion", ranking),
        cost=ArmCost(fit_s=first.fit_s + second.fit_s, ms_per_user=first.ms_per_user + second.ms_per_user),
    )


def llm_arms(
    config: RunConfig, data: Prepared, first: CheapArm, served: Served, prices: Prices | None
) -> Iterator[Candidate]:
    """Yield every way to use the LLM's answers, and the controls beside them."""
    whole, free = first.rankings["test"], ArmCost(fit_s=first.fit_s, ms_per_user=first.ms_per_user)
    for variant in served.variants.values():
        paid = _llm_cost(first, served, variant, whole.users.size, prices)
        for name, label, kind, why, part in _variant_lists(config, first, served, variant):
            cost = free if kind == "control" else paid
            yield _candidate(config, data, whole, served, name, label, kind, why, part, cost)
    for name, label, why, part in _control_lists(config, data, first, served):
        arm = _candidate(config, data, whole, served, name, label, "control", why, part, free)
        yield replace(arm, oracle=name == ORACLE)


def label_of(name: str) -> str:
    """Return a model's name as people write it."""
    return LABELS.get(name, name.replace("-", " ").capitalize())


def _variant_lists(
    config: RunConfig, first: CheapArm, served: Served, variant: Variant
) -> Iterator[tuple[str, str, Kind, str, Ranking]]:
    head = first.rankings["test"].take(served.rows)
    depth = min(config.llm.candidates, head.k)
    label, weight, kept = label_of(first.name), variant.weight, served.samples.selection.kept.size
    how = f"tuned on {kept} samples" if variant.name == TUNED else "untuned"
    yield (
        f"llm-{variant.name}",
        f"LLM, {variant.name}",
        "llm",
        f"{how}; orders the {depth} candidates alone",
        fused(config, head, variant.odds, 1.0),
    )
    yield (
        f"fused-{variant.name}",
        f"{label} + LLM, {variant.name}",
        "fusion",
        f"weight of the LLM {weight:g}, chosen on {served.calibration_users} validation users",
        fused(config, head, variant.odds, weight),
    )
    noise = generator(config.seed, "noise", variant.name).permutation(variant.odds.ravel())
    yield (
        f"noise-{variant.name}",
        f"{label} + shuffled answers, {variant.name}",
        "control",
        "the same weight, with the LLM's answers shuffled over users and candidates",
        fused(config, head, noise.reshape(variant.odds.shape), weight),
    )


def _control_lists(
    config: RunConfig, data: Prepared, first: CheapArm, served: Served
) -> Iterator[tuple[str, str, str, Ranking]]:
    head = first.rankings["test"].take(served.rows)
    depth = min(config.llm.candidates, head.k)
    top, counts = f"{label_of(first.name)}, top {depth}", data.split.history("test").item_counts
    yield (
        "random-permutation",
        f"{top} shuffled",
        "the same users, their candidates in random order",
        controls.random_permutation(head, depth, config.seed),
    )
    yield (
        "popularity-rerank",
        f"{top} by popularity",
        "the same users, their candidates by popularity",
        controls.popularity_rerank(head, counts, depth),
    )
    yield (
        ORACLE,
        f"{top} by the answers",
        "the ceiling of any re-ranking: it reads the test answers",
        controls.oracle_rerank(head, data.split.targets("test"), depth),
    )


def _candidate(
    config: RunConfig,
    data: Prepared,
    whole: Ranking,
    served: Served,
    name: str,
    label: str,
    kind: Kind,
    why: str,
    part: Ranking,
    cost: ArmCost,
) -> Candidate:
    # Everyone who is not routed keeps the cheap list.
    items, scores = whole.items.copy(), whole.scores.copy()
    items[served.rows], scores[served.rows] = part.items, part.scores
    ranking = Ranking(users=whole.users, items=items, scores=scores)
    return Candidate(
        name=name,
        label=label,
        kind=kind,
        description=why,
        ranking=ranking,
        evaluation=_evaluated(config, data, name, ranking),
        cost=cost,
    )


def _evaluated(config: RunConfig, data: Prepared, name: str, ranking: Ranking) -> Evaluation:
    # A list is cut, so metrics of the full ranking (AUC) are undefined for it.
    metrics = [m for m in config.evaluation.metrics if parse_metric(m).k is not None]
    history = data.split.history("test")
    return evaluate_ranking(name, ranking, data.split.targets("test"), metrics, seen=history)


def _llm_cost(
    first: CheapArm, served: Served, variant: Variant, n_users: int, prices: Prices | None
) -> ArmCost:
    usage, users = variant.test.usage, max(1, n_users)
    fit_s = first.fit_s + variant.valid.usage.wall_s
    if variant.name == TUNED and served.tuning is not None:
        fit_s += served.samples.stage.usage.wall_s + served.tuning.usage.wall_s
    return ArmCost(
        fit_s=fit_s,
        ms_per_user=first.ms_per_user + 1000 * usage.wall_s / users,
        tokens_per_user=(usage.tokens_in + usage.tokens_out) / users,
        money_per_1000_users=None if prices is None else 1000 * prices.money(usage) / users,
    )
