"""Policies: who gets the LLM, by one score a user, under a hard budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.allocation.alignment import look_up
from frugalrec.allocation.budget import greedy
from frugalrec.allocation.costs import Budget, UserCosts, one_each
from frugalrec.allocation.gain import GainEstimate, Gains
from frugalrec.allocation.signals import Signals
from frugalrec.allocation.weakness import Weakness
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.segments import activity_groups
from frugalrec.rng import derive_seed
from frugalrec.types import Allocation, DoubleArray, FloatArray, IntArray, LongArray

ROUTED, FLOOR, BUDGET, POLICY = "routed", "routed by the floor", "over budget", "ruled out by the policy"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What policies may look at beside history lengths; each needs only its own part."""

    weakness: Weakness | None = None
    """For `weak-quantile`: a label from the calibration fold. Users it does not hold are not weak."""
    published: Weakness | None = None
    """For `paper-weak`."""
    signals: Signals | None = None
    """For `uncertainty`: its `entropy`. A user without signals counts as certain."""
    gain: GainEstimate | None = None
    """For `gain-per-cost`; must hold every candidate."""
    gains: Gains | None = None
    """For `oracle`: the outcomes themselves. A user without one gains nothing."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The users to choose from."""

    users: IntArray
    lengths: LongArray
    costs: DoubleArray
    seed: int
    evidence: Evidence

    def part(self, name: str) -> Any:
        """Return one part of the evidence."""
        return getattr(self.evidence, name)


def _all(candidates: Candidates) -> DoubleArray:
    """Everyone alike; a smaller budget is filled by the tie-break, at random."""
    return np.zeros(candidates.users.size)


def _random(candidates: Candidates) -> DoubleArray:
    """A uniform draw per user that does not depend on who else is a candidate."""
    seed = candidates.seed
    return np.array(
        [derive_seed(seed, "allocation", "random", int(user)) / 2**63 for user in candidates.users]
    )


def _fewest_interactions(candidates: Candidates) -> DoubleArray:
    """Users with the shortest history first: the cheap model knows least of them."""
    return -candidates.lengths.astype(np.float64)


def _paper_weak(candidates: Candidates) -> DoubleArray:
    return _weakest_first(candidates, candidates.part("published"))


def _weak_quantile(candidates: Candidates) -> DoubleArray:
    return _weakest_first(candidates, candidates.part("weakness"))


def _weakest_first(candidates: Candidates, label: Weakness) -> DoubleArray:
    """Weak users only, the worst served first."""
    return look_up(label.users, np.where(label.weak, -label.shrunk, -np.inf), candidates.users, -np.inf)


def _uncertainty(candidates: Candidates) -> DoubleArray:
    """Users first whose cheap scores are nearest to each other."""
    signals: Signals = candidates.part("signals")
    entropy = look_up(signals.users, signals.column("entropy"), candidates.users, 0.0)
    return np.nan_to_num(entropy, nan=0.0)


def _gain_per_cost(candidates: Candidates) -> DoubleArray:
    """Lower bound of the predicted gain per unit of cost; nobody whose bound is not above 0."""
    gain: GainEstimate = candidates.part("gain")
    return _per_cost(gain.at(candidates.users).lower, candidates.costs)


def _oracle(candidates: Candidates) -> DoubleArray:
    """The true gain per unit of cost."""
    gains: Gains = candidates.part("gains")
    return _per_cost(look_up(gains.users, gains.values, candidates.users, 0.0), candidates.costs)


def _per_cost(gain: DoubleArray, costs: DoubleArray) -> DoubleArray:
    worth = gain > 0
    score = np.where(worth, np.inf, -np.inf)
    with np.errstate(over="ignore"):  # next to nothing for next to nothing: as good as free
        np.divide(gain, costs, out=score, where=worth & (costs > 0))
    return score


@dataclass(frozen=True)
class Policy:
    """One row of the table of policies."""

    score: Callable[[Candidates], DoubleArray]
    """Score of each user, (n,): higher is routed first, -inf never."""
    needs: str = ""
    """The part of `Evidence` that it reads."""
    oracle: bool = False
    """Whether it knows the outcomes."""


POLICIES: Mapping[str, Policy] = {
    "none": Policy(_all),
    "all": Policy(_all),
    "random": Policy(_random),
    "fewest-interactions": Policy(_fewest_interactions),
    "paper-weak": Policy(_paper_weak, "published"),
    "weak-quantile": Policy(_weak_quantile, "weakness"),
    "uncertainty": Policy(_uncertainty, "signals"),
    "gain-per-cost": Policy(_gain_per_cost, "gain"),
    "oracle": Policy(_oracle, "gains", oracle=True),
}
"""Name -> policy. `none` routes nobody."""


def policy_name(name: str) -> str:
    """Return the name as the table spells it; `gain_per_cost` is `gain-per-cost`.

    Raises:
        ConfigError: If there is no such policy.
    """
    known = name.replace("_", "-")
    if known not in POLICIES:
        raise ConfigError(f"unknown policy {name!r}; choose one of {', '.join(sorted(POLICIES))}.")
    return known


def least_active(lengths: NDArray[Any], groups: int = 10) -> NDArray[np.bool_]:
    """Return who is in the least active tenth, (n,): the users a floor is usually for."""
    group = activity_groups(lengths, groups)
    return np.asarray(group == group.min(initial=groups))


def allocate(
    policy: str,
    users: NDArray[Any],
    lengths: NDArray[Any],
    budget_users: int | None = None,
    seed: int = 0,
    *,
    budget: Budget | None = None,
    costs: UserCosts | None = None,
    evidence: Evidence | None = None,
    floor: float = 0.0,
    worst: NDArray[np.bool_] | None = None,
) -> Allocation:
    """Choose the users who get the LLM; never spends more than the budget.

    Args:
        policy: Name in `POLICIES`, with - or _.
        users: Codes of the candidate users, (n,), each once.
        lengths: Known interactions of those users, (n,), in the same order.
        budget_users: At most so many users; None means no limit. Short for a `budget` in users.
        seed: Seed of `random` and of the tie-break. The choice does not depend on the order of `users`.
        budget: The most that may be spent.
        costs: What each user costs, in the budget's unit; default: 1 each.
        evidence: What the policy looks at.
        floor: At least this share of the budget for the `worst` users, as far as the policy allows them.
        worst: Users of the floor, (n,); default: the least active tenth.

    Raises:
        ConfigError: On an unknown policy, a negative budget, evidence that is missing, or other units.
        DataError: If users repeat, or lengths do not match them.
    """
    name = policy_name(policy)
    codes, known = _checked(users, lengths)
    cap = _budget(budget, budget_users)
    prices = (one_each(codes) if costs is None else costs).at(codes)
    limit = 0.0 if name == "none" else cap.limit(prices)
    given = evidence or Evidence()
    needs = POLICIES[name].needs
    if needs and getattr(given, needs) is None:
        raise ConfigError(f"the policy {name} needs evidence.{needs}; see frugalrec.allocation.Evidence.")
    scores = POLICIES[name].score(
        Candidates(users=codes, lengths=known, costs=prices.values, seed=seed, evidence=given)
    )
    ties = np.array([derive_seed(seed, "allocation", "ties", int(user)) for user in codes], dtype=np.int64)
    routed, by_floor = greedy(
        scores,
        prices.values,
        limit,
        ties=ties,
        floor=floor,
        worst=least_active(known) if worst is None else np.asarray(worst, dtype=bool),
    )
    if name == "none":
        routed[:] = False  # users who cost nothing fit into a budget of 0
    reasons = np.select([by_floor, routed, scores == -np.inf], [FLOOR, ROUTED, POLICY], BUDGET)
    return Allocation(
        users=codes,
        routed=routed,
        scores=_single(scores),
        policy=name,
        budget_users=_as_users(cap, codes.size, routed, name),
        costs=prices.values,
        limit=limit,
        budget=str(cap),
        reasons=reasons,
        evaluation_only=POLICIES[name].oracle or _looks_at_test(getattr(given, needs) if needs else None),
    )


def _checked(users: NDArray[Any], lengths: NDArray[Any]) -> tuple[IntArray, LongArray]:
    codes = np.asarray(users, dtype=np.int32)
    known = np.asarray(lengths, dtype=np.int64)
    if codes.ndim != 1 or known.shape != codes.shape:
        raise DataError(f"allocation needs one length per user; got {codes.shape} and {known.shape}.")
    if np.unique(codes).size != codes.size:
        raise DataError("allocation got the same user more than once; give each user once.")
    return codes, known


def _budget(budget: Budget | None, budget_users: int | None) -> Budget:
    if budget is not None and budget_users is not None:
        raise ConfigError(f"give either budget_users ({budget_users}) or a budget ({budget}), not both.")
    if budget_users is not None and budget_users < 0:
        raise ConfigError(f"budget_users must be at least 0, not {budget_users}.")
    if budget is not None:
        return budget
    return Budget(kind="unlimited") if budget_users is None else Budget(kind="users", amount=budget_users)


def _as_users(budget: Budget, n: int, routed: NDArray[np.bool_], name: str) -> int:
    """Return the budget as a number of users: as asked for, or as it turned out."""
    if name == "none":
        return 0
    if budget.kind == "unlimited":
        return n
    return min(int(budget.amount), n) if budget.kind == "users" else int(routed.sum())


def _single(scores: DoubleArray) -> FloatArray:
    """Return scores in single precision; what is too large for it becomes its largest number."""
    largest = float(np.finfo(np.float32).max)
    return np.where(np.isneginf(scores), scores, np.clip(scores, -largest, largest)).astype(np.float32)


def _looks_at_test(part: Any) -> bool:
    return getattr(part, "fold", "valid") == "test"
