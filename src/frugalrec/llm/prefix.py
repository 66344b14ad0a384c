"""Shared prefixes: one row ``[prefix | suffix 1 | suffix 2 | ...]`` instead of one row per prompt.

A tree attention mask lets each suffix see the prefix and itself only, and its positions continue
after the prefix, so the numbers are those of whole prompts. The prefix is computed once, without a
key-value cache to copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.types import BoolArray, LongArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row; a plain prompt is a row with an empty prefix and one suffix."""

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    members: tuple[int, ...]
    """The caller's number of each suffix."""

    @property
    def length(self) -> int:
        """Tokens that computing this row costs."""
        return len(self.prefix) + sum(map(len, self.suffixes))

    @property
    def depth(self) -> int:
        """Tokens of the longest whole prompt in the row."""
        return len(self.prefix) + max(map(len, self.suffixes))

    def columns(self, suffix: int, positions: Sequence[int]) -> list[int]:
        """Return where the row holds the tokens at `positions` of the given suffix's whole prompt."""
        start = sum(map(len, self.suffixes[:suffix]))
        return [p if p < len(self.prefix) else p + start for p in positions]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all sequences share.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    # All lists lie between the smallest and the largest, so what those two share, all share.
    rows = [tuple(sequence) for sequence in sequences]
    low, high = min(rows), max(rows)
    shared = 0
    for a, b in zip(low, high, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def pack(prompts: Sequence[Sequence[int]], *, max_row: int) -> list[Row]:
    """Pack prompts that share a prefix into rows of at most `max_row` tokens where that is possible.

    A group too long for one row is split evenly, and the prefix is computed once per row. A row never
    holds fewer suffix tokens than prefix tokens unless the group runs out, so at most about half of
    the work of a split group is repeated.

    Args:
        prompts: Token ids of whole prompts.
        max_row: The longest row worth building; attention costs grow with its square.
    """
    shared = common_prefix(prompts)
    prefix = tuple(prompts[0][:shared])
    room = max(max_row - shared, shared, 1)
    total = sum(len(p) - shared for p in prompts)
    share = total / max(1, -(-total // room))
    rows: list[Row] = []
    members: list[int] = []
    held = 0
    for number, prompt in enumerate(prompts):
        if members and held + len(prompt) - shared > max(share, 1) * 1.0001:
            rows.append(_row(prefix, prompts, members))
            members, held = [], 0
        members.append(number)
        held += len(prompt) - shared
    rows.append(_row(prefix, prompts, members))
    return rows


def _row(prefix: tuple[int, ...], prompts: Sequence[Sequence[int]], members: Sequence[int]) -> Row:
    suffixes = tuple(tuple(prompts[m][len(prefix) :]) for m in members)
    return Row(prefix=prefix, suffixes=suffixes, members=tuple(members))


def layout(rows: Sequence[Row], pad: int) -> tuple[LongArray, LongArray, BoolArray]:
    """Return token ids (b, l), position ids (b, l) and who sees whom (b, l, l) of packed rows.

    ``sees[r, i, j]`` is true where token i of row r may attend to token j. Padding stands on the
    right; a padding token sees itself only.
    """
    width = max(row.length for row in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    sees = np.zeros((len(rows), width, width), dtype=np.bool_)
    sees[:] = np.eye(width, dtype=np.bool_)
    for r, row in enumerate(rows):
        n = len(row.prefix)
        ids[r, :n], positions[r, :n] = row.prefix, np.arange(n)
        sees[r, : row.length, :n] = True
        start = n
        for suffix in row.suffixes:
            stop = start + len(suffix)
            ids[r, start:stop], positions[r, start:stop] = suffix, np.arange(n, n + len(suffix))
            sees[r, start:stop, start:stop] = True
            start = stop
        sees[r] &= np.tri(width, dtype=np.bool_)
    return ids, positions, sees


def attention_window(network: Any) -> float:
    """Return how many tokens every layer attends to: shared prefixes and tree masks are right up to there."""
    config = network.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([limit for limit in limits if limit], default=float("inf"))


def additive_mask(sees: BoolArray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the mask (b, 1, l, l) that attention adds to its scores: 0 where seen, else the minimum.

    Additive masks work with every attention implementation; boolean ones only with some.
    """
    import torch

    seen = torch.from_numpy(sees).to(device)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)
