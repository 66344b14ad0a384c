"""Which users get the LLM, under a budget."""

from __future__ import annotations

from frugalrec.allocation.costs import Budget, UserCosts, user_costs
from frugalrec.allocation.policies import POLICIES, Evidence, allocate

__all__ = ["POLICIES", "Budget", "Evidence", "UserCosts", "allocate", "user_costs"]
