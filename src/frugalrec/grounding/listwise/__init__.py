"""Listwise re-ranking: one question a user for an order of all candidates, checked and bounded."""

from __future__ import annotations

from frugalrec.grounding.listwise.aggregation import AGGREGATES, aggregate, agreement, kendall_tau
from frugalrec.grounding.listwise.first_token import FirstTokenReranker
from frugalrec.grounding.listwise.parsing import ParseReport, parse_ranking
from frugalrec.grounding.listwise.probes import PositionProbe, position_probe
from frugalrec.grounding.listwise.prompt import ListwisePrompt, reads_like_instruction
from frugalrec.grounding.listwise.reranker import ListwiseReranker
from frugalrec.grounding.listwise.result import ListReason, ListwiseResult, cautions

__all__ = [
    "AGGREGATES",
    "FirstTokenReranker",
    "ListReason",
    "ListwisePrompt",
    "ListwiseReranker",
    "ListwiseResult",
    "ParseReport",
    "PositionProbe",
    "aggregate",
    "agreement",
    "cautions",
    "kendall_tau",
    "parse_ranking",
    "position_probe",
    "reads_like_instruction",
]
