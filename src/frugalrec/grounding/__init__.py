"""From LLM output to a ranking of real catalogue items."""

from __future__ import annotations

from frugalrec.grounding.base import Grounder
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.fusion import WeightChoice, choose_weight, fuse
from frugalrec.grounding.trie import TitleTrie, title_trie

__all__ = [
    "CandidateReranker",
    "Grounder",
    "TitleTrie",
    "TrieGrounder",
    "WeightChoice",
    "choose_weight",
    "fuse",
    "title_trie",
]
