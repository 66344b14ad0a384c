"""What the report says of the allocation: the evidence, who was routed, and what other rules are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from frugalrec.allocation import Evidence, allocate
from frugalrec.allocation.gain import FEWEST, Gains
from frugalrec.allocation.policies import BUDGET, FLOOR
from frugalrec.allocation.stability import WeakCounts, count_weak, stability
from frugalrec.allocation.weakness import Threshold, weak_users
from frugalrec.config import RunConfig
from frugalrec.errors import DataError
from frugalrec.evaluation.compare import Interval, interval
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.evaluation.frontier import Curve, Frontier, Trial, frontier
from frugalrec.evaluation.ranks import ranks_from_ranking
from frugalrec.evaluation.segments import activity_groups
from frugalrec.reporting.facts import AllocationFacts, GroupFacts, PolicyFacts
from frugalrec.reporting.words import metric_name
from frugalrec.stages.allocating import ANSWERED, Measured, Routing
from frugalrec.stages.asking import Served, Variant
from frugalrec.stages.cheap import CheapArm
from frugalrec.stages.data import Prepared
from frugalrec.stages.reranking import fused
from frugalrec.types import DoubleArray, LongArray, Ranking

UNBIASED = ("random", "all")
"""Policies whose routed users stand for all, so that every other policy can be judged on them."""
RULES = ("gain-per-cost", "uncertainty", "weak-quantile", "fewest-interactions", "random", "oracle")
GROUPS = 10


def allocation_facts(
    config: RunConfig, data: Prepared, first: CheapArm, routing: Routing, served: Served
) -> AllocationFacts:
    """Return what is known of the choice of users."""
    allocation, room = routing.allocation, routing.headroom
    main = list(served.variants.values())[-1]
    effect = interval(routing.measured.gains.values, seed=config.seed)
    curves = _curves(config, data, first, routing, served, main)
    facts: AllocationFacts = {
        "policy": allocation.policy,
        "budget": allocation.budget,
        "unit": routing.costs.currency or routing.costs.unit,
        "users": int(allocation.users.size),
        "routed": int(allocation.routed.sum()),
        "spent": allocation.spent,
        "whole": routing.costs.total,
        "metric": config.evaluation.primary,
        "calibration_users": int(routing.measured.gains.users.size),
        "effect": _ends(effect),
        "headroom": [room.current, room.ceiling],
        "reachable": room.share_with_hit,
        "decision": tuple(_sentences(config, data, first, routing, served, main, curves)),
        "groups": _groups(routing, data),
    }
    if places := main.answers.get("places"):
        facts["places"] = places
    if routing.measured.model is not None:
        facts["foresight"] = _ends(routing.measured.model.evidence.rank_correlation)
        weights = getattr(routing.measured.model.learned, "weights", None)  # trees have none
        if weights is not None:
            names = routing.measured.model.standardiser.names
            order = np.argsort(-np.abs(weights))
            facts["signals"] = [[names[i], float(weights[i])] for i in order.tolist()]
    if curves is not None:
        facts["measured_users"] = curves.n
        proven = curves.gap.low > 0
        facts["policies"] = [_policy(name, curve, proven) for name, curve in curves.curves.items()]
    return facts


def _sentences(
    config: RunConfig,
    data: Prepared,
    first: CheapArm,
    routing: Routing,
    served: Served,
    main: Variant,
    curves: Frontier | None,
) -> list[str]:
    """Return what was decided and why."""
    said = [_who(routing)]
    if routing.measured.model is None:
        n = routing.measured.gains.users.size
        said.append(f"{n} calibration users are too few to predict gains; give {FEWEST}.")
    else:
        said.append(_capital(str(routing.measured.model.evidence)))
        said.append(_proof(routing.measured))
    if routing.measured.proven and routing.allocation.policy != "gain-per-cost":
        paying = int((routing.estimate.lower > 0).sum())
        said.append(
            f"The policy gain-per-cost would ask for {paying:,} of {routing.estimate.users.size:,} test "
            f"users, those for whom the lower bound of the expected gain is above 0."
        )
    said.append(_capital(str(routing.headroom)))
    if curves is not None:
        said.append(_capital(str(curves)))
    said += [_capital(str(label)) for label in _labels(config, data, first, routing, served, main)]
    metric = config.evaluation.primary
    return [text.replace(metric, metric_name(metric)) for text in said]


def _who(routing: Routing) -> str:
    allocation = routing.allocation
    n, m = int(allocation.routed.sum()), allocation.users.size
    if n:
        return (
            f"{n:,} of {m:,} test users get the LLM by the policy {allocation.policy}, within a budget of "
            f"{allocation.budget}."
        )
    if allocation.policy == "gain-per-cost":
        why = "for no test user is the lower bound of the expected gain above 0"
        if routing.measured.answered < ANSWERED:
            why = "too few calibration users were answered, so that nothing is known of the gain"
        elif not routing.measured.proven:
            why = "no gain is proven on calibration users, neither on average nor for some of them"
        elif np.any(allocation.reasons == BUDGET):
            why = f"a budget of {allocation.budget} is too small for any of those whom it would help"
        return f"Nothing is spent on test users: {why}."
    return f"Nobody gets the LLM: the policy is {allocation.policy}, the budget {allocation.budget}."


def _proof(measured: Measured) -> str:
    """Return what is sure of the mean gain, the choice of the weight allowed for."""
    gate = measured.gate
    return (
        f"At the best weight, {gate.best_weight:g}, the mean gain is {gate.gain:+.4f}, and surely above "
        f"{gate.lower:+.4f} (95 %, allowing for the choice of the weight)."
    )


def _labels(
    config: RunConfig, data: Prepared, first: CheapArm, routing: Routing, served: Served, main: Variant
) -> list[object]:
    """Return whether the label of weak users repeats itself, and what a random order does to their number."""
    metric, whole = config.evaluation.primary, first.rankings["test"]
    targets, seen = data.split.targets("test"), data.split.history("test")
    label = routing.weakness
    later = weak_users(
        ranks_from_ranking(whole, targets, seen=seen),
        seen.lengths,
        fold="test",
        metric=metric,
        t_s=Threshold.value(label.t_s),
        t_p=Threshold.quantile(0.2),
    )
    said: list[object] = []
    try:
        said.append(stability(label, later, seed=config.seed))
    except DataError as error:
        said.append(f"whether the label of weak users repeats itself cannot be said: {error}")
    if served.rows.size:
        said.append(_weak_counts(config, data, first, served, main, later))
    return said


def _weak_counts(
    config: RunConfig, data: Prepared, first: CheapArm, served: Served, main: Variant, later: object
) -> WeakCounts:
    whole = first.rankings["test"]
    treated = np.zeros(whole.users.size, dtype=bool)
    treated[served.rows] = True
    items = whole.items.copy()
    items[served.rows] = fused(config, whole.take(served.rows), main.odds, main.weight).items
    return count_weak(
        f"the LLM, {main.name}",
        whole,
        Ranking(users=whole.users, items=items, scores=whole.scores),
        later,  # type: ignore[arg-type]
        treated,
        data.split.targets("test"),
        seen=data.split.history("test"),
        m=min(config.llm.candidates, whole.k),
        metric=config.evaluation.primary,
        seed=config.seed,
    )


def _curves(
    config: RunConfig, data: Prepared, first: CheapArm, routing: Routing, served: Served, main: Variant
) -> Frontier | None:
    """Return what policies are worth on users drawn at random, or None where nobody was."""
    rows = _drawn_at_random(routing, served)
    weight = next(iter(known for known in (main.weight, routing.weight) if known > 0), 0.0)
    if rows.size < FEWEST or weight == 0:
        return None
    metric, head = config.evaluation.primary, first.rankings["test"].take(served.rows[rows])
    targets, seen = data.split.targets("test"), data.split.history("test")
    asked = fused(config, head, main.odds[rows], weight)
    cheap = evaluate_ranking("cheap", head, targets, [metric], seen=seen)
    llm = evaluate_ranking("llm", asked, targets, [metric], seen=seen)
    costs = routing.costs.at(head.users)
    prices = dict(zip(costs.users.tolist(), costs.values.tolist(), strict=True))
    trial = Trial.of(cheap, llm, metric, prices)
    gains = Gains.between(llm, cheap, metric, "test")
    scores = {name: [score] for name, score in _scores(config, data, routing, trial, gains).items()}
    return frontier([trial], scores, level=config.evaluation.level, seed=config.seed)


def _drawn_at_random(routing: Routing, served: Served) -> LongArray:
    """Return which of the routed users stand for all: those before the first whom the budget passed over."""
    allocation = routing.allocation
    none = np.empty(0, dtype=np.int64)
    if allocation.policy not in UNBIASED or np.any(allocation.reasons == FLOOR):
        return none
    order = np.argsort(-allocation.scores, kind="stable")
    if allocation.policy == "random":
        order = order[: int(np.argmin(allocation.routed[order])) or order.size]
    chosen = allocation.users[order][allocation.routed[order]]
    return np.flatnonzero(np.isin(routing.signals.users[served.rows], chosen))


def _scores(
    config: RunConfig, data: Prepared, routing: Routing, trial: Trial, gains: Gains
) -> Mapping[str, DoubleArray]:
    """Return each rule's score of the trial's users."""
    evidence = Evidence(
        weakness=routing.weakness, signals=routing.signals, gain=routing.estimate, gains=gains
    )
    lengths = data.split.history("test").lengths[trial.users]
    found = {}
    for name in RULES:
        if name == "gain-per-cost" and not routing.measured.proven:
            continue
        if name == "random":  # no order: the mean over all of them, a straight line
            found[name] = np.zeros(trial.users.size)
            continue
        chosen = allocate(
            name,
            trial.users,
            lengths,
            seed=config.seed,
            costs=routing.costs.at(trial.users),
            evidence=evidence,
        )
        found[name] = chosen.scores.astype(np.float64)
    return found


def _policy(name: str, curve: Curve, proven: bool) -> PolicyFacts:
    facts: PolicyFacts = {
        "name": name,
        "curve": [[float(x), float(y)] for x, y in zip(curve.shares, curve.quality, strict=True)],
        "area": _ends(curve.area),
        "oracle": name == "oracle",
    }
    if proven:  # parts of a gain that may be none are no figures
        share = curve.needed.get(0.95)
        facts["recovered"] = _ends(curve.apgr)
        facts["share_95"] = share if share is not None and np.isfinite(share) else None
    return facts


def _groups(routing: Routing, data: Prepared) -> list[GroupFacts]:
    users = routing.allocation.users
    lengths = data.split.history("test").lengths[users]
    group = activity_groups(lengths, GROUPS)
    estimate = routing.estimate.at(users).mean if routing.measured.proven else None
    found = []
    for number in np.unique(group).tolist():
        rows = group == number
        own = lengths[rows]
        low, high = int(own.min()), int(own.max())
        facts = {
            "label": str(low) if low == high else f"{low} to {high}",
            "users": int(rows.sum()),
            "routed": int(routing.allocation.routed[rows].sum()),
            "expected": None if estimate is None else float(estimate[rows].mean()),
        }
        found.append(cast(GroupFacts, facts))
    return found


def _ends(found: Interval) -> list[float]:
    return [found.mean, found.low, found.high]


def _capital(text: str) -> str:
    """Return a sentence with a capital; a metric's name at its beginning keeps its own."""
    return text if "@" in text.split(" ", 1)[0] else text[:1].upper() + text[1:]
