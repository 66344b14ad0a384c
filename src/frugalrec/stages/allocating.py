"""Who gets the LLM: which test users a run sends to it, within the budget."""

from __future__ import annotations

from frugalrec.allocation.policies import allocate
from frugalrec.config import RunConfig
from frugalrec.stages.data import Prepared
from frugalrec.types import Allocation


def allocate_users(config: RunConfig, data: Prepared) -> Allocation:
    """Choose which test users get the LLM, within the budget."""
    users = data.split.users("test")
    lengths = data.split.history("test").lengths[users]
    section = config.allocation
    return allocate(section.policy, users, lengths, section.budget_users, seed=config.seed)
