"""Packed batches for training: a positive and its negatives share one computation of their prefix.

They differ only in the last title, about a tenth of the prompt. The packing itself is the one of
inference (`frugalrec.llm.prefix`), so a prompt has the same tokens and the same logits in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frugalrec.llm import prefix
from frugalrec.llm.prefix import Row

if TYPE_CHECKING:
    import torch

ONE_ROW = 1 << 30
INPUTS = ("input_ids", "position_ids", "attention_mask", "decoder_input_ids")


def pack(prompts: Sequence[Sequence[int]]) -> Row:
    """Return the tokens of one group's prompts as one row."""
    (row,) = prefix.pack(prompts, max_row=ONE_ROW)
    return row


def collate(rows: Sequence[Row], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return model inputs for a batch of packed groups, padded at the end.

    Returns:
        `input_ids` (batch, length); `rows`, `columns` (n_prompts,): where each prompt's last token
        is; and `attention_mask`: (batch, length) where every group is one prompt, so that any causal
        network will do, else (batch, 1, length, length), additive in `dtype`, with `position_ids`.
    """
    import torch

    tokens, positions, sees = prefix.layout(rows, pad=0)
    ends = [
        (number, row.columns(s, [len(row.prefix) + len(suffix) - 1])[0])
        for number, row in enumerate(rows)
        for s, suffix in enumerate(row.suffixes)
    ]
    batch = {
        "input_ids": torch.from_numpy(tokens),
        "rows": torch.tensor([number for number, _ in ends]),
        "columns": torch.tensor([column for _, column in ends]),
    }
    if all(len(row.suffixes) == 1 for row in rows):
        lengths = torch.tensor([row.length for row in rows])
        batch["attention_mask"] = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).long()
    else:
        batch["position_ids"] = torch.from_numpy(positions)
        batch["attention_mask"] = prefix.additive_mask(sees, dtype, torch.device("cpu"))
    return batch


def answer_logits(model: Any, batch: dict[str, torch.Tensor], answers: Sequence[int]) -> torch.Tensor:
    """Return the logits (n, n_answers), float32, of the answers' tokens after some tokens of a batch.

    Only the states of these tokens go through the output matrix.

    Args:
        model: A causal network or an encoder-decoder.
        batch: Its inputs, and `rows`, `columns`, (n,): the tokens that are followed by an answer.
        answers: Token ids.
    """
    from frugalrec.llm.scoring import gathered_logits

    inputs = {name: batch[name] for name in INPUTS if name in batch}
    with gathered_logits(getattr(model, "module", model), batch["rows"], batch["columns"]):
        logits = model(**inputs, use_cache=False).logits[0]
    chosen: torch.Tensor = logits[:, list(answers)].float()
    return chosen
