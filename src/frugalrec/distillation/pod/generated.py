"""Lists from generated texts: what is no item is counted, and what comes twice counts once.

The published evaluation replaces a text that is no number by an item drawn at random, and counts a right
item as often as it was written; `published_lists` and `published_hits` do the same, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.distillation.pod.templates import IdWriter
from frugalrec.errors import DataError
from frugalrec.types import PAD, IntArray


@dataclass(frozen=True, kw_only=True)
class GeneratedLists:
    """Item lists of some users, and what was wrong with the texts."""

    items: IntArray
    """(n_users, k), no item twice, padded with -1."""
    invalid: int
    """Texts that name no item."""
    duplicates: int
    """Texts that name an item which stands further up."""

    @property
    def texts(self) -> int:
        """Number of texts."""
        return self.invalid + self.duplicates + int((self.items != PAD).sum())


def listed(texts: Sequence[Sequence[str]], writer: IdWriter) -> GeneratedLists:
    """Return the items that generated texts name.

    Args:
        texts: Texts of each user, best first, as many for each.
        writer: How items are written.
    """
    known = {answer: item for item, answer in enumerate(writer.answers)}
    widths = {len(row) for row in texts}
    if len(widths) > 1:
        raise DataError(f"each user needs as many texts; got {min(widths)} to {max(widths)}.")
    items = np.full((len(texts), max(widths, default=0)), PAD, dtype=np.int32)
    invalid = duplicates = 0
    for row, said in enumerate(texts):
        found: list[int] = []
        for text in said:
            item = known.get(text.strip())
            if item is None:
                invalid += 1
            elif item in found:
                duplicates += 1
            else:
                found.append(item)
        items[row, : len(found)] = found
    return GeneratedLists(items=items, invalid=invalid, duplicates=duplicates)


def published_lists(
    texts: Sequence[Sequence[str]], writer: IdWriter, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Return the items as the published evaluation reads them: an item at random for a text without number.

    The first word counts, as a whole number; a number that is no item stays in the list as no item, -1.
    """
    numbers = {int(answer): item for item, answer in enumerate(writer.answers) if answer.isdecimal()}
    found = np.full((len(texts), max(map(len, texts), default=0)), PAD, dtype=np.int32)
    for row, said in enumerate(texts):
        for place, text in enumerate(said):
            first = text.split(" ")[0]
            drawn = rng.integers(len(writer.answers)) if not first.isdecimal() else None
            found[row, place] = numbers.get(int(first), PAD) if drawn is None else drawn
    return found


def published_hits(items: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the published hit rate: every time a right item is written counts, so it may exceed 1."""
    return float((items == np.asarray(targets)[:, None]).sum(axis=1).mean())
