"""From LLM output to a ranking of real catalogue items."""

from __future__ import annotations

from frugalrec.grounding.base import Grounder, filled
from frugalrec.grounding.beam_decoding import BeamGrounder, Outputs
from frugalrec.grounding.candidate_decoding import CandidateGrounder
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.fusion import WeightChoice, choose_weight, fuse
from frugalrec.grounding.item_head import ItemHeadGrounder
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.measuring import Cost, measure_grounders
from frugalrec.grounding.nearest import NearestGrounder
from frugalrec.grounding.promotion import cap_promotions
from frugalrec.grounding.reranking import Reranked, Reranker, ScoreReranker
from frugalrec.grounding.reweighting import (
    GAMMAS,
    choose_gamma,
    gamma_ranks,
    popularity_weights,
    reweight,
    score_weights,
)
from frugalrec.grounding.trie import TitleTrie, title_trie

__all__ = [
    "GAMMAS",
    "BeamGrounder",
    "CandidateGrounder",
    "CandidateReranker",
    "Cost",
    "Grounder",
    "ItemHeadGrounder",
    "NearestGrounder",
    "Outputs",
    "Reranked",
    "Reranker",
    "ScoreReranker",
    "TitleLikelihood",
    "TitleTrie",
    "TrieGrounder",
    "WeightChoice",
    "cap_promotions",
    "choose_gamma",
    "choose_weight",
    "filled",
    "fuse",
    "gamma_ranks",
    "measure_grounders",
    "popularity_weights",
    "reweight",
    "score_weights",
    "title_trie",
]
