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
from frugalrec.allocation.costs import Budget, UserCosts, user_costs
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
from frugalrec.grounding.fusion import fuse
from frugalrec.ledger import Usage
from frugalrec.rng import generator
from frugalrec.stages.asking import Calibration
from frugalrec.stages.cheap import CONTROLS, CheapArm
from frugalrec.stages.data import Prepared
from frugalrec.stages.reranking import chars_read
from frugalrec.types import Allocation, DoubleArray, Evaluation, LongArray, Ranking

FOLDS = 5
"""Folds between which the fusion weight is chosen and its gain measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What calibration users say of the LLM's gain."""

    gains: Gains
    """What each gained; the fusion weight of each was chosen on others."""
    gate: Gate
    """The mean gain of the best weight, and its lower bound, which allows for the choice."""
    model: GainModel | None
    """None with too few calibration users."""

    @property
    def proven(self) -> bool:
        """Return whether the LLM surely helps on average, or surely helps some more than others."""
        return self.model is not None and (self.gate.open or self.model.evidence.predictable)

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
    """Of all test users."""


def budget_of(config: RunConfig) -> Budget:
    """Return the run's budget; a plain number counts users."""
    given = config.allocation.budget
    if isinstance(given, str) and not given.strip().isdigit():
        return Budget.parse(given)
    return Budget(kind="users", amount=float(given))


def check(config: RunConfig) -> None:
    """Refuse a policy, a budget or a price table that cannot be used, before anything is computed."""
    budget = budget_of(config)
    name = policy_name(config.allocation.policy)
    if POLICIES[name].oracle or POLICIES[name].needs == "published":
        known = ", ".join(n for n, p in sorted(POLICIES.items()) if not p.oracle and p.needs != "published")
        raise ConfigError(f"the policy {name} is for evaluation alone; a run can use {known}.")
    if budget.kind == "money" and config.price_table() is None:
        raise ConfigError(f"a budget of {budget} needs prices; give a price table, or a budget such as 20%.")


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
    costs = costs_of(config, data, histories, ranking, first, main)
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
    head = first.rankings["valid"].take(main.rows)
    room = check_headroom(
        head,
        data.split.targets("valid"),
        min(config.llm.candidates, head.k),
        config.evaluation.primary,
        seen=data.split.history("valid"),
    )
    return Routing(
        allocation=allocation,
        costs=costs,
        headroom=room,
        measured=measured,
        estimate=estimate,
        weakness=weakness,
        signals=signals,
    )


def second_stage(config: RunConfig, arms: Sequence[CheapArm], first: CheapArm) -> CheapArm | None:
    """Return the best other cheap model on validation: a second opinion, and a rival."""
    primary = config.evaluation.primary
    others = [arm for arm in arms if arm is not first and arm.name not in CONTROLS]
    return max(others, key=lambda arm: arm.evaluations["valid"].mean(primary), default=None)


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
    cheap = _fused(config, data, "valid", head, main, 0.0)
    weights = sorted({0.0, *config.llm.weights})
    values = {weight: _fused(config, data, "valid", head, main, weight).values[primary] for weight in weights}
    order = generator(config.seed, "calibration", "folds").permutation(head.users.size)
    honest = cross_fitted(np.stack([values[weight] for weight in weights]), order % FOLDS)
    gains = Gains.between(replace(cheap, values={primary: honest}), cheap, primary, "valid")
    gates = fit_gates(np.zeros(head.users.size, dtype=np.int64), values, seed=config.seed)
    model = None
    if gains.users.size >= FEWEST:
        other = None if second is None else second.rankings["valid"]
        signals = signals_of(config, data.split.history("valid"), head, other)
        # The same people may be served in the test, with later targets: folds differ, not users.
        none = np.empty(0, dtype=np.int32)
        model = GainModel(z=config.allocation.z, seed=config.seed).fit(signals, gains, test_users=none)
    return Measured(gains=gains, gate=gates.gates[0], model=model)


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


def costs_of(
    config: RunConfig,
    data: Prepared,
    histories: Dataset,
    ranking: Ranking,
    first: CheapArm,
    main: Calibration,
) -> UserCosts:
    """Estimate what asking about each user costs, in the budget's unit.

    Prompts are measured in characters, and what a character costs comes from the calibration users.
    """
    asked = first.rankings["valid"].take(main.rows)
    usage = main.stage.usage
    known = chars_read(config, data.split.history("valid"), asked).sum()
    chars = chars_read(config, histories, ranking)
    return scaled_costs(config, ranking, usage, chars / max(known, 1), main.rows.size)


def scaled_costs(
    config: RunConfig, ranking: Ranking, usage: Usage, shares: DoubleArray, asked: int
) -> UserCosts:
    """Return costs of users from what calibration spent in all, and each user's share of its text."""
    kind = budget_of(config).kind
    return user_costs(
        ranking.users,
        "tokens" if kind == "share" or kind == "unlimited" else kind,
        tokens_in=usage.tokens_in * shares,
        tokens_out=usage.tokens_out * shares,
        tokens_cached=usage.tokens_cached * shares,
        calls=usage.llm_calls / max(asked, 1),
        seconds=usage.wall_s * shares,
        prices=config.price_table(),
    )


def _fused(
    config: RunConfig, data: Prepared, fold: Fold, ranking: Ranking, main: Calibration, weight: float
) -> Evaluation:
    lists = fuse(ranking, main.odds, weight, config.llm.candidates)
    targets, seen = data.split.targets(fold), data.split.history(fold)
    return evaluate_ranking(main.name, lists, targets, [config.evaluation.primary], seen=seen)
