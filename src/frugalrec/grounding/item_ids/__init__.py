"""Item ids without leaks, for models that write recommendations: numbers, titles, neighbours, texts."""

from __future__ import annotations

from frugalrec.grounding.item_ids.base import ItemIds, catalogue_hash, figures
from frugalrec.grounding.item_ids.cooccurrence import collaborative
from frugalrec.grounding.item_ids.digits import random_numbers
from frugalrec.grounding.item_ids.text_codes import semantic, semantic_rqvae
from frugalrec.grounding.item_ids.title_tokens import titles

__all__ = [
    "ItemIds",
    "catalogue_hash",
    "collaborative",
    "figures",
    "random_numbers",
    "semantic",
    "semantic_rqvae",
    "titles",
]
