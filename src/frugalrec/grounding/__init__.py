"""From LLM output to a ranking of real catalogue items."""

from __future__ import annotations

from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.fusion import WeightChoice, choose_weight, fuse

__all__ = ["CandidateReranker", "WeightChoice", "choose_weight", "fuse"]
