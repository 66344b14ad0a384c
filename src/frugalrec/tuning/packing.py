"""Packing: prompts that share a prefix become one sequence, and the prefix is computed once.

A positive and its negatives differ only in the last title, about a tenth of the prompt. The packed
sequence holds the shared tokens once and then each prompt's own tokens; a block mask lets own tokens
see the shared ones and themselves only, and positions restart after the prefix, so every prompt gets
the logits it would get alone. Text and tokens are those of the whole prompts: the shared part is
found among the *tokens*, never by tokenising prefix and suffix apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Several prompts as one sequence."""

    tokens: NDArray[np.int64]
    """Token ids, (length,): the shared prefix, then each prompt's own tokens."""
    positions: NDArray[np.int64]
    """Position of each token in its own prompt, (length,)."""
    segments: NDArray[np.int64]
    """0 for the shared prefix, else 1 + the prompt's number, (length,)."""
    last: NDArray[np.int64]
    """Where each prompt's last token stands, (n_prompts,)."""
    n_tokens_alone: int
    """Tokens of the prompts without sharing."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.tokens.size)


def pack(prompts: Sequence[Sequence[int]]) -> Packed:
    """Pack the tokens of prompts that (usually) begin alike; each keeps at least one own token."""
    shared = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for other in prompts[1:]:
        same = next((i for i in range(shared) if first[i] != other[i]), shared)
        shared = min(shared, same)
    if len(prompts) == 1:
        shared = 0
    own = [np.asarray(prompt[shared:], dtype=np.int64) for prompt in prompts]
    lengths = np.array([len(part) for part in own])
    return Packed(
        tokens=np.concatenate([np.asarray(first[:shared], dtype=np.int64), *own]),
        positions=np.concatenate([np.arange(shared), *(shared + np.arange(n) for n in lengths)]),
        segments=np.concatenate(
            [np.zeros(shared, dtype=np.int64), np.repeat(1 + np.arange(len(own)), lengths)]
        ),
        last=shared + np.cumsum(lengths) - 1,
        n_tokens_alone=sum(len(prompt) for prompt in prompts),
    )


def collate(groups: Sequence[Packed], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return model inputs for a batch of packed groups, padded at the end.

    Returns:
        `input_ids` and `position_ids` (batch, length), `attention_mask` (batch, 1, length, length)
        additive in `dtype`, and `rows`, `columns` (n_prompts,): where each prompt's last token is.
    """
    import torch

    length = max(len(group) for group in groups)

    def padded(field: str, fill: int) -> NDArray[np.int64]:
        out = np.full((len(groups), length), fill, dtype=np.int64)
        for row, group in zip(out, groups, strict=True):
            row[: len(group)] = getattr(group, field)
        return out

    segments = padded("segments", -1)
    visible = segments[:, :, None] == segments[:, None, :]  # same prompt, or both in the prefix
    visible |= (segments[:, None, :] == 0) & (segments[:, :, None] >= 0)  # everyone sees the prefix
    visible &= np.tri(length, dtype=bool)
    mask = torch.zeros(visible.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~visible), torch.finfo(dtype).min)
    return {
        "input_ids": torch.from_numpy(padded("tokens", 0)),
        "position_ids": torch.from_numpy(padded("positions", 0)),
        "attention_mask": mask[:, None],
        "rows": torch.from_numpy(np.repeat(np.arange(len(groups)), [group.last.size for group in groups])),
        "columns": torch.from_numpy(np.concatenate([group.last for group in groups])),
    }


def answer_logits(model: Any, batch: dict[str, torch.Tensor], answers: Sequence[int]) -> torch.Tensor:
    """Return the logits (n_prompts, n_answers), float32, of the answer tokens after each prompt.

    Only the positions of the last tokens go through the output matrix.
    """
    import torch

    keep, where = torch.unique(batch["columns"], return_inverse=True)
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=keep,
        use_cache=False,
    ).logits
    return logits[batch["rows"], where][:, list(answers)].float()
