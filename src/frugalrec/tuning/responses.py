"""The task of writing: the likelihood of an answer's tokens after a prompt, and nothing else.

Prompts are only read; the loss is the mean over rows of the mean negative log-likelihood of a row's
answer tokens, the end of text included. So a row counts the same however long its answer is, and the
loss of a batch does not depend on how it is split. Causal networks and encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frugalrec.llm.scoring import Query, gathered_logits
from frugalrec.tuning.processes import unwrapped
from frugalrec.tuning.task import Task


class ResponseTask(Task[Query]):
    """Learn the answers of queries, each of which names its answer's tokens and where they are read."""

    def __init__(self, pad: int) -> None:
        """Store the token that fills short rows; it is always masked."""
        self.pad = pad

    def length(self, item: Query) -> int:
        """Return the tokens that encoder and decoder read."""
        return len(item.tokens) + len(item.decoder)

    def collate(self, items: Sequence[Query]) -> dict[str, torch.Tensor]:
        """Return padded inputs, and where answers are read.

        Returns:
            `input_ids`, `attention_mask` (batch, length), for an encoder-decoder `decoder_input_ids`;
            `rows`, `columns`, `targets`, `shares` (n_answer_tokens,): place, right token and weight.
        """
        batch = dict(
            zip(("input_ids", "attention_mask"), self._padded([q.tokens for q in items]), strict=True)
        )
        if items[0].decoder:
            batch["decoder_input_ids"], _ = self._padded([query.decoder for query in items])
        sizes = np.array([len(query.positions) for query in items])
        return {
            **batch,
            "rows": torch.from_numpy(np.repeat(np.arange(len(items)), sizes)),
            "columns": torch.from_numpy(np.concatenate([query.positions for query in items])),
            "targets": torch.from_numpy(np.concatenate([query.targets[:, 0] for query in items])),
            "shares": torch.from_numpy(np.repeat(1 / (sizes * len(items)), sizes).astype(np.float32)),
        }

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean over rows of the mean loss of their answer tokens.

        Only the states that predict an answer's token go through the output matrix.
        """
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        with gathered_logits(unwrapped(model), batch["rows"].tolist(), batch["columns"].tolist()):
            logits = model(**inputs, use_cache=False).logits[0]
        each = torch.nn.functional.cross_entropy(logits.float(), batch["targets"], reduction="none")
        return (each * batch["shares"]).sum()

    def queries(self, items: Sequence[Query]) -> list[Query]:
        """Return the items: inference reads what training does."""
        return list(items)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.pad)
        mask = torch.zeros((len(sequences), width), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        return ids, mask
