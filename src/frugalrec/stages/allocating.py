"""Who gets the LLM: calibration users say what it gains and for whom, and the budget says for how many.

On calibration users, drawn from validation, both sides are known: the cheap list and the list fused with the
LLM's answers. What the LLM gained each of them is predicted for the test users from signals that need no
answer of theirs, and the budget goes where the lower bound of the gain per unit of cost is largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from frugalrec.allocation import Evidence, allocate
from frugalrec.allocation.costs import UserCosts
from frugalrec.allocation.gain import FEWEST, GainEstimate, GainModel, Gains
from frugalrec.allocation.gates import Gate, fit_gates
from frugalrec.allocation.headroom import Headroom, check_headroom
from frugalrec.allocation.policies import POLICIES, policy_name
from frugalrec.allocation.signals import Signals, user_signals
from frugalrec.allocation.weakness import Weakness, weak_users
from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Fold
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.evaluation.ranks import ranks_from_ranking
from frugalrec.grounding.listwise.result import GIVEN
from frugalrec.ledger import Usage
from frugalrec.llm.models import is_endpoint
from frugalrec.rng import generator
from frugalrec.stages.asking import Calibration
from frugalrec.stages.cheap import CheapArm, other_models
from frugalrec.stages.costs import budget_of, costs_of
from frugalrec.stages.data import Prepared
from frugalrec.stages.reranking import fused
from frugalrec.types import Allocation, DoubleArray, Evaluation, LongArray, Ranking

ANSWERED = 0.8
"""Share of the calibration users below which answers say nothing of the gain."""
FOLDS = 5
"""Folds between which the fusion weight is chosen and its gain measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What calibration users say of the LLM's gain."""

    gains: Gains
    """What each gained at a weight above 0 that others chose."""
    gate: Gate
    """The mean gain of the best weight, and its lower bound, which allows for the choice."""
    model: GainModel | None
    """None with too few calibration users."""
    answered: float
    """Share of the calibration users whom the LLM answered."""

    @property
    def proven(self) -> bool:
        """Return whether the LLM surely helps on average, or surely helps some more than others."""
        if self.model is None or self.answered < ANSWERED:
            return False
        return self.gate.open or self.model.evidence.predictable

    def expected(self, signals: Signals) -> GainEstimate:
        """Return the expected gains of any users; none of anybody where no gain is proven."""
        if self.model is not None and self.proven:
            return self.model.predict(signals)
        none = np.zeros(signals.users.size)
        return GainEstimate(users=signals.users, mean=none, se=none, z=0.0)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which test users get the LLM, and all that was known when it was decided."""

    allocation: Allocation
    costs: UserCosts
    """Estimated cost of every test user, in the budget's unit."""
    headroom: Headroom
    measured: Measured
    estimate: GainEstimate
    """Expected gains of all test users."""
    weakness: Weakness
    signals: Signals
    """Of all test users, in the order of the first stage's lists."""
    weight: float
    """The fusion weight of users who are chosen because the LLM helps them."""


def check(config: RunConfig) -> None:
    """Refuse a policy, a budget or a price table that cannot be used, before anything is computed."""
    budget = budget_of(config)
    name = policy_name(config.allocation.policy)
    if POLICIES[name].oracle or POLICIES[name].needs == "published":
        known = ", ".join(n for n, p in sorted(POLICIES.items()) if not p.oracle and p.needs != "published")
        raise ConfigError(f"the policy {name} is for evaluation alone; a run can use {known}.")
    prices = config.price_table()
    if budget.kind == "money":
        if prices is None:
            raise ConfigError(
                f"a budget of {budget} needs prices; give a price table, or a budget such as 20%."
            )
        if budget.currency != prices.currency:
            raise ConfigError(
                f"the budget is {budget}, but prices are in {prices.currency}; use one currency."
            )
    if prices is not None and config.llm.model != "none":  # an unknown price is said now, not in the report
        # an endpoint's cached tokens count as others where they have no price of their own
        cached = 0 if is_endpoint(config.llm.model) else 1
        prices.money(Usage(tokens_in=1, tokens_out=1, tokens_cached=cached, wall_s=1.0))


def allocate_users(
    config: RunConfig,
    data: Prepared,
    arms: Sequence[CheapArm],
    first: CheapArm,
    calibrated: Mapping[str, Calibration],
) -> Routing:
    """Choose which test users get the LLM, within the budget."""
    main = list(calibrated.values())[-1]
    second = second_stage(config, arms, first)
    ranking = first.rankings["test"]
    histories = data.split.history("test")
    signals = signals_of(config, histories, ranking, None if second is None else second.rankings["test"])
    measured = measure_gain(config, data, first, second, main)
    weakness = weakness_of(config, data, first)
    estimate = measured.expected(signals)
    section = config.allocation
    # every way to use the LLM is tried on the users of the test, so all of them are paid for
    costs = costs_of(config, data, histories, ranking, first, list(calibrated.values()))
    allocation = allocate(
        section.policy,
        ranking.users,
        histories.lengths[ranking.users],
        seed=config.seed,
        budget=budget_of(config),
        costs=costs,
        evidence=Evidence(weakness=weakness, signals=signals, gain=estimate),
        floor=section.floor,
    )
    return Routing(
        allocation=allocation,
        costs=costs,
        headroom=_headroom(config, data, first.rankings["valid"].take(main.rows)),
        measured=measured,
        estimate=estimate,
        weakness=weakness,
        signals=signals,
        weight=main.weight,
    )


def why_pointless(config: RunConfig, data: Prepared, first: CheapArm) -> str | None:
    """Return why no LLM should be asked at all, before anything is paid; None if it should.

    Only `gain-per-cost` looks first: other policies are told whom to ask. All validation users count, since
    looking costs no call.
    """
    if policy_name(config.allocation.policy) != "gain-per-cost":
        return None
    room = _headroom(config, data, first.rankings["valid"])
    return None if room.worthwhile else str(room)


def second_stage(config: RunConfig, arms: Sequence[CheapArm], first: CheapArm) -> CheapArm | None:
    """Return the best other cheap model on validation: a second opinion, and a rival."""
    return next(iter(other_models(config, arms, first)), None)


def signals_of(config: RunConfig, histories: Dataset, ranking: Ranking, second: Ranking | None) -> Signals:
    """Return the signals of the users of a ranking."""
    return user_signals(histories, ranking, m=min(config.llm.candidates, ranking.k), second=second)


def weakness_of(config: RunConfig, data: Prepared, first: CheapArm) -> Weakness:
    """Return who is served badly, measured on validation by the primary metric."""
    history = data.split.history("valid")
    ranks = ranks_from_ranking(first.rankings["valid"], data.split.targets("valid"), seen=history)
    return weak_users(ranks, history.lengths, fold="valid", metric=config.evaluation.primary)


def measure_gain(
    config: RunConfig, data: Prepared, first: CheapArm, second: CheapArm | None, main: Calibration
) -> Measured:
    """Compare the cheap and the fused lists of calibration users, and learn for whom the LLM helps."""
    primary = config.evaluation.primary
    head = first.rankings["valid"].take(main.rows)
    weights = sorted({0.0, *config.llm.weights})
    runs = {weight: _fused(config, data, "valid", head, main, weight) for weight in weights}
    cheap, values = runs[0.0], {weight: run.values[primary] for weight, run in runs.items()}
    order = generator(config.seed, "calibration", "folds").permutation(head.users.size)
    # Whether a user is asked at all is decided later, so the weight of 0 is no choice here: it would hide
    # those whom the LLM helps behind those whom it harms.
    table = np.stack([values[weight] for weight in weights if weight > 0 or len(weights) == 1])
    honest = cross_fitted(table, order % FOLDS)
    gains = Gains.between(replace(cheap, values={primary: honest}), cheap, primary, "valid")
    gates = fit_gates(np.zeros(head.users.size, dtype=np.int64), values, seed=config.seed)
    model = None
    if gains.users.size >= FEWEST:
        other = None if second is None else second.rankings["valid"]
        signals = signals_of(config, data.split.history("valid"), head, other)
        # The same people may be served in the test, with later targets: folds differ, not users.
        none = np.empty(0, dtype=np.int32)
        model = GainModel(z=config.allocation.z, seed=config.seed).fit(signals, gains, test_users=none)
    counts = main.answers.get("reasons", {"answered": 1})
    answered = sum(counts.get(reason, 0) for reason in GIVEN) / max(1, sum(counts.values()))
    return Measured(gains=gains, gate=gates.gates[0], model=model, answered=answered)


def cross_fitted(table: DoubleArray, folds: LongArray) -> DoubleArray:
    """Return each user's value at the weight with the best mean over the users of other folds.

    Args:
        table: (n_weights, n_users), weights ascending; ties go to the smaller one.
        folds: Fold of each user, (n_users,).
    """
    found = np.empty(folds.size)
    for fold in np.unique(folds):
        inside = folds == fold
        others = table[:, ~inside] if (~inside).any() else table
        found[inside] = table[int(np.argmax(np.nanmean(others, axis=1))), inside]
    return found


def _headroom(config: RunConfig, data: Prepared, lists: Ranking) -> Headroom:
    """Return what re-ranking could gain at most for the users of some validation lists."""
    return check_headroom(
        lists,
        data.split.targets("valid"),
        min(config.llm.candidates, lists.k),
        config.evaluation.primary,
        seen=data.split.history("valid"),
    )


def _fused(
    config: RunConfig, data: Prepared, fold: Fold, ranking: Ranking, main: Calibration, weight: float
) -> Evaluation:
    lists = fused(config, ranking, main.odds, weight)
    targets, seen = data.split.targets(fold), data.split.history(fold)
    return evaluate_ranking(main.name, lists, targets, [config.evaluation.primary], seen=seen)
