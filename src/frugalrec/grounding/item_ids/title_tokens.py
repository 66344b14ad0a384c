"""Titles as item ids: the tokens in which a model writes them, told apart where titles are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError, ModelError
from frugalrec.grounding.item_ids.assembly import working_order
from frugalrec.grounding.item_ids.base import ItemIds, catalogue_hash
from frugalrec.grounding.trie import answer_tokens
from frugalrec.llm.prompts import has_text

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt


PATIENCE = 100
"""Numbers in a row that may fail to tell any title from another, before the tokenizer is blamed."""


def titles(
    lm: LocalLM,
    prompt: NextTitlePrompt,
    texts: Sequence[str | None],
    item_ids: NDArray[np.str_],
    *,
    seed: int = 0,
) -> ItemIds:
    """Return the tokens of each title, the end-of-text token included where the model has one.

    Symbol s is token s of the model, so `sequences()` needs no offset. Items that share their tokens
    read "Title (2)", "Title (3)", ...; an item without a title is named "Untitled".

    Args:
        lm: The model whose tokenizer counts.
        prompt: How answers are written.
        texts: Title of each item code; None or empty where there is none.
        item_ids: External id of each item code, (n_items,).
        seed: Seed of the order in which items of the same title are numbered.

    Raises:
        DataError: If titles and ids differ in number.
        ModelError: If the tokenizer merges the end of a prompt with the beginning of an answer, or
            cannot tell numbered titles apart.
    """
    if len(texts) != len(item_ids):
        raise DataError(f"there are {len(texts)} titles for {len(item_ids)} items; give one for each.")
    order = working_order(item_ids, "titles", seed).tolist()
    named = [text if text and has_text(text) else "Untitled" for text in texts]
    rows = answer_tokens(lm, prompt.question([]), [prompt.answer(title) for title in named])
    counts = Counter(map(tuple, rows))
    collisions = sum(count for count in counts.values() if count > 1)
    _tell_apart(lm, prompt, named, rows, order)
    codes = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int32)
    for item, row in enumerate(rows):
        codes[item, : len(row)] = row
    vocabulary = lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))
    return ItemIds(
        kind="titles",
        seed=seed,
        codes=codes,
        symbols=tuple(token or "" for token in vocabulary),
        collisions=collisions,
        catalogue=catalogue_hash(item_ids),
        evidence={"model": str(lm.model), "untitled": sum(not (t and has_text(t)) for t in texts)},
    )


def _tell_apart(
    lm: LocalLM, prompt: NextTitlePrompt, named: list[str], rows: list[list[int]], order: list[int]
) -> None:
    """Number the titles of `rows` that come second and later in `order`, until no two rows are alike."""
    owner: dict[tuple[int, ...], int] = {}
    for item in order:
        owner.setdefault(tuple(rows[item]), item)
    pending = [item for item in order if owner[tuple(rows[item])] != item]
    numbers, in_vain = Counter({named[item]: 1 for item in pending}), 0
    while pending:
        numbered = []
        for item in pending:
            numbers[named[item]] += 1
            numbered.append(prompt.answer(f"{named[item]} ({numbers[named[item]]})"))
        again = []
        for item, row in zip(pending, answer_tokens(lm, prompt.question([]), numbered), strict=True):
            if owner.setdefault(tuple(row), item) == item:
                rows[item] = row
            else:
                again.append(item)
        in_vain = in_vain + 1 if len(again) == len(pending) else 0
        if in_vain == PATIENCE:
            raise ModelError(f"{lm.model} reads titles alike that differ in a number; use other item ids.")
        pending = again
