"""What an audit check sees and says: a `View` of the data goes in, a `Finding` comes out.

Counts depend on the data alone, never on the random codes, so two data sets built from the same
files with different seeds agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.data.splits import Fold, Split
from frugalrec.types import LongArray

Severity = Literal["error", "warning", "info"]
FOLDS: tuple[Fold, ...] = ("valid", "test")
LARGE_SHARE = 0.2
"""Above this share of a fold, cold items, cold users or tied times are worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing the audit saw, with its size and what to do about it."""

    name: str
    """Name of the check; what `--allow` takes."""
    severity: Severity
    """`error` stops a run unless allowed by name; `warning` and `info` never do."""
    count: int
    """How many interactions, items or users are concerned (the message says which)."""
    share: float | None
    """`count` as a share of what was looked at, 0 to 1, or None where none makes sense."""
    message: str
    """What was found, with its figures."""
    examples: tuple[str, ...] = ()
    """A few cases in the user's own ids and titles."""
    remedy: str = ""
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the checks look at: a data set, a split of it where there is one, and the texts."""

    dataset: Dataset
    split: Split | None = None

    @cached_property
    def titles(self) -> pl.Series:
        """Title of each item code as text, stripped; null where missing, (n_items,)."""
        return self.dataset.item_text[TITLE].cast(pl.String).str.strip_chars()

    @cached_property
    def folds(self) -> dict[Fold, tuple[Dataset, Dataset]]:
        """What is known before each held-out fold, and the fold; empty without a split."""
        if self.split is None:
            return {}
        return {fold: (self.split.history(fold), self.split.targets(fold)) for fold in FOLDS}

    def item_examples(self, codes: NDArray[Any], limit: int = 3) -> tuple[str, ...]:
        """Show some items as `id: title`, in the order of their external ids."""
        chosen = first_by_id(self.dataset.item_ids, codes, limit)
        titles = [self.titles[int(code)] for code in chosen]
        ids = self.dataset.item_ids[chosen].tolist()
        return tuple(f"{i}: {shorten(t)}" if t else str(i) for i, t in zip(ids, titles, strict=True))

    def user_examples(self, codes: NDArray[Any], limit: int = 3) -> tuple[str, ...]:
        """Show some users by external id, in the order of those ids."""
        chosen = first_by_id(self.dataset.user_ids, codes, limit)
        return tuple(f"user {user}" for user in self.dataset.user_ids[chosen].tolist())


def first_by_id(ids: NDArray[np.str_], codes: NDArray[Any], limit: int) -> LongArray:
    """Return at most `limit` distinct codes, shortest id first, then by text: 2 before 10."""
    unique = np.unique(np.asarray(codes, dtype=np.int64))
    names = ids[unique]
    return unique[np.lexsort((names, np.char.str_len(names)))][:limit]


def shorten(text: str, width: int = 80) -> str:
    """Cut a long text for display."""
    return text if len(text) <= width else text[: width - 1] + "…"


def percent(share: float) -> str:
    """Format a share as a percentage, small ones with one more digit."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.2%}"


def share_of(count: int, total: int) -> float:
    """Return `count / total`, and 0 of nothing."""
    return count / total if total else 0.0
