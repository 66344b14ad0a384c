"""Simple policies: who gets the LLM when the budget is a number of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.rng import derive_seed
from frugalrec.types import Allocation, FloatArray, IntArray, LongArray


def _all(users: IntArray, lengths: LongArray, seed: int) -> FloatArray:
    """Everyone alike; a smaller budget is filled by the tie-break, at random."""
    return np.zeros(users.size, dtype=np.float32)


def _random(users: IntArray, lengths: LongArray, seed: int) -> FloatArray:
    """A uniform draw per user that does not depend on who else is a candidate."""
    draws = [derive_seed(seed, "allocation", "random", int(user)) / 2**63 for user in users]
    return np.array(draws, dtype=np.float32)


def _fewest_interactions(users: IntArray, lengths: LongArray, seed: int) -> FloatArray:
    """Users with the shortest history first: the cheap model knows least of them."""
    return -lengths.astype(np.float32)


POLICIES: dict[str, Callable[[IntArray, LongArray, int], FloatArray]] = {
    "all": _all,
    "fewest-interactions": _fewest_interactions,
    "none": _all,
    "random": _random,
}
"""Name -> score of each user, (n,); higher is routed first. `none` routes nobody."""


def allocate(
    policy: str,
    users: NDArray[Any],
    lengths: NDArray[Any],
    budget_users: int | None = None,
    seed: int = 0,
) -> Allocation:
    """Choose the users who get the LLM; never more than the budget.

    Args:
        policy: Name in `POLICIES`.
        users: Codes of the candidate users, (n,), each once.
        lengths: Known interactions of those users, (n,), in the same order.
        budget_users: At most so many users; None means no limit.
        seed: Seed of `random` and of the tie-break. The choice does not depend on the order of
            `users`.

    Raises:
        ConfigError: On an unknown policy or a negative budget.
        DataError: If users repeat, or lengths do not match them.
    """
    if policy not in POLICIES:
        raise ConfigError(f"unknown policy {policy!r}; choose one of {', '.join(sorted(POLICIES))}.")
    if budget_users is not None and budget_users < 0:
        raise ConfigError(f"budget_users must be at least 0, not {budget_users}.")
    codes = np.asarray(users, dtype=np.int32)
    known = np.asarray(lengths, dtype=np.int64)
    if codes.ndim != 1 or known.shape != codes.shape:
        raise DataError(f"allocation needs one length per user; got {codes.shape} and {known.shape}.")
    if np.unique(codes).size != codes.size:
        raise DataError("allocation got the same user more than once; give each user once.")
    budget = codes.size if budget_users is None else min(budget_users, codes.size)
    budget = 0 if policy == "none" else budget
    scores = POLICIES[policy](codes, known, seed)
    ties = [derive_seed(seed, "allocation", "ties", int(user)) for user in codes]
    order = np.lexsort((codes, np.array(ties, dtype=np.int64), -scores))
    routed = np.zeros(codes.size, dtype=bool)
    routed[order[:budget]] = True
    return Allocation(users=codes, routed=routed, scores=scores, policy=policy, budget_users=budget)
