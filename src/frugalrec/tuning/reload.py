"""The reload check: an adapter counts only once a fresh copy of the model answers with it alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.tuning.base import TrainingRow
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def fresh_copy(base: LocalLM, adapter: Path | None = None) -> LocalLM:
    """Return another copy of the base model; the caller's stays as it is."""
    return type(base).load(
        base.source or base.model,
        adapter=adapter,
        dtype=cast(Any, base.dtype),
        device=base.device,
        max_batch_tokens=base.max_batch_tokens,
    )


def check_reload(
    base: LocalLM, adapter: Path, rows: Sequence[TrainingRow], answers: tuple[str, str], odds: FloatArray
) -> float:
    """Load the adapter from disk on a fresh base model, ask as inference asks, and compare.

    Args:
        base: The model that was tuned.
        adapter: The adapter's folder.
        rows: Some training rows.
        answers: The answers' texts.
        odds: The trained model's log-odds of those rows, (n,).

    Returns:
        The largest absolute difference of log-odds.

    Raises:
        ModelError: If it exceeds what rounding explains.
    """
    groups = [
        PromptGroup(prefix="", suffixes=tuple(row.prompt for row in part))
        for _, part in groupby(rows, key=lambda row: row.group)
    ]
    answered, _ = fresh_copy(base, adapter).choose(groups, answers)
    again = np.concatenate([pair[:, 0] - pair[:, 1] for pair in answered])
    difference = float(np.abs(again - odds).max())
    tolerance = (1e-3 if base.dtype == "float32" else 0.1) * max(1.0, float(np.abs(odds).max()))
    if not difference <= tolerance:
        raise ModelError(
            f"the saved adapter in {adapter} gives other answers than the trained model (log-odds differ "
            f"by up to {difference:.3g}). Tune again; if it recurs, report your peft version."
        )
    return difference
