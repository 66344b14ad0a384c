"""Asking for numbers: every (question, answer) pair once, in batches of users, kept in a file if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.answers import AnswerCache
from frugalrec.grounding.base import Progress
from frugalrec.ledger import Usage
from frugalrec.llm.base import LanguageModel
from frugalrec.types import BoolArray, DoubleArray

Pair = tuple[str, str]
"""A question, and an answer or whatever else it is asked about."""
Ask = Callable[[Mapping[str, Sequence[str]]], tuple[Sequence[NDArray[Any]], Usage]]
"""Question -> what to ask it about; returns a number for each, by question, and what that cost."""


class Asker:
    """Asks a language model for a number about each pair, none twice; use it in a with block."""

    def __init__(
        self, lm: LanguageModel, ask: Ask, key: Callable[[str, Pair], bytes], cache: Path | None
    ) -> None:
        """Store what is asked.

        Args:
            lm: The model; its name and fingerprint alone are used here.
            ask: Asks it.
            key: (fingerprint, pair) -> the key of the pair's number in the file.
            cache: An SQLite file of earlier numbers, which is read and extended.
        """
        self.lm = lm
        self.usage = Usage()
        """What was spent so far; numbers from the file cost nothing."""
        self.asked: set[str] = set()
        """Questions that were sent; numbers from the file are about others."""
        self._ask = ask
        self._key = key
        self._cache = nullcontext() if cache is None else AnswerCache(cache)
        self._store: AnswerCache | None = None
        self._fingerprint = "" if cache is None else lm.fingerprint  # once: it may hash files

    def __enter__(self) -> Self:
        """Open the file."""
        self._store = self._cache.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._cache.__exit__(kind, error, trace)

    def values(self, pairs: Iterable[Pair]) -> dict[Pair, float]:
        """Return the number of each pair.

        Raises:
            ModelError: If one is not finite.
        """
        wanted = list(dict.fromkeys(pairs))
        keys = {} if self._store is None else {pair: self._key(self._fingerprint, pair) for pair in wanted}
        stored = {} if self._store is None else self._store.get(keys.values())
        known = {pair: stored[key] for pair, key in keys.items() if key in stored}
        missing: dict[str, list[str]] = {}
        for question, answer in wanted:
            if (question, answer) not in known:
                missing.setdefault(question, []).append(answer)
        if not missing:
            return known
        rows, usage = self._ask(missing)
        fresh = {
            (question, answer): float(value)
            for (question, answers), row in zip(missing.items(), rows, strict=True)
            for answer, value in zip(answers, row, strict=True)
        }
        if not np.isfinite(list(fresh.values())).all():
            raise ModelError(f"{self.lm.model} gave answers that are not finite numbers; try float32.")
        if self._store is not None:
            self._store.put({keys[pair]: value for pair, value in fresh.items()}, usage)
        self.usage = self.usage + usage
        self.asked |= missing.keys()
        return known | fresh


def ask_rows(
    asker: Asker,
    asked: BoolArray,
    pairs: Callable[[int], Sequence[Pair]],
    *,
    users_per_batch: int,
    progress: Progress | None,
) -> DoubleArray:
    """Return the numbers of all users' candidates, (n_users, k); NaN where nothing is asked.

    Args:
        asker: Who asks.
        asked: Candidates to ask about, (n_users, k).
        pairs: Row -> the pairs of its candidates that are asked about, in order.
        users_per_batch: Rows asked about together.
        progress: Is told of the users.
    """
    if users_per_batch < 1:
        raise ConfigError(f"users_per_batch must be at least 1, not {users_per_batch}.")
    found, n = np.full(asked.shape, np.nan), len(asked)
    for start in range(0, n, users_per_batch):
        rows = range(start, min(start + users_per_batch, n))
        own = [pairs(row) for row in rows]
        known = asker.values(pair for some in own for pair in some)
        for row, some in zip(rows, own, strict=True):
            found[row, asked[row]] = [known[pair] for pair in some]
        if progress is not None:
            progress(rows.stop, n)
    return found
