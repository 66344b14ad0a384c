"""Which users get the LLM, under a budget."""

from __future__ import annotations

from frugalrec.allocation.policies import POLICIES, allocate

__all__ = ["POLICIES", "allocate"]
