"""The yes/no task: packed prompts of one user, and a loss over the answers Yes and No."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frugalrec.evaluation.pointwise import auc
from frugalrec.llm.batching import token_batches
from frugalrec.llm.prefix import Row
from frugalrec.llm.scoring import Query
from frugalrec.tuning.losses import LOSSES
from frugalrec.tuning.packing import answer_logits, collate
from frugalrec.tuning.task import VALIDATION_TOKENS, Task, evaluated


@dataclass(frozen=True, kw_only=True)
class LabelledGroup:
    """Prompts of one user, packed, and the answers to learn."""

    packed: Row
    asked: tuple[tuple[int, int], ...]
    """(prompt, token of the prompt) after which each answer comes; a prompt may hold several."""
    labels: NDArray[np.bool_]
    """True where the right answer is Yes, (n_answers,)."""

    @property
    def columns(self) -> list[int]:
        """Where the packed row holds the tokens before the answers."""
        return [self.packed.columns(prompt, [token])[0] for prompt, token in self.asked]


class YesNoTask(Task[LabelledGroup]):
    """Learn to answer Yes or No; only these two tokens are looked at."""

    def __init__(
        self, answers: tuple[int, int], loss: str, dtype: torch.dtype, *, decoder_start: int | None = None
    ) -> None:
        """Store the options.

        Args:
            answers: Token ids of Yes and No.
            loss: Name in `LOSSES`.
            dtype: The type that the network computes in.
            decoder_start: Where an encoder reads the prompts, the token that the answer follows.
        """
        self.answers, self.loss_name, self.dtype = answers, loss, dtype
        self.decoder_start = decoder_start

    def length(self, item: LabelledGroup) -> int:
        """Return the tokens of the packed row."""
        return item.packed.length

    def weight(self, item: LabelledGroup) -> float:
        """Return the number of answers, or for the listwise loss whether there is a positive one."""
        return float(item.labels.any()) if self.loss_name == "listwise" else float(item.labels.size)

    def collate(self, items: Sequence[LabelledGroup]) -> dict[str, torch.Tensor]:
        """Return inputs as `packing.collate`, and `rows`, `columns`, `labels` (n_answers,)."""
        sizes = [group.labels.size for group in items]
        batch = {
            **collate([group.packed for group in items], self.dtype),
            "rows": torch.from_numpy(np.repeat(np.arange(len(items)), sizes)),
            "columns": torch.tensor([column for group in items for column in group.columns]),
            "labels": torch.from_numpy(np.concatenate([group.labels for group in items])),
        }
        if self.decoder_start is not None:
            batch["decoder_input_ids"] = torch.full((len(items), 1), self.decoder_start)
            batch["columns"] = torch.zeros_like(batch["columns"])
        return batch

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss over the batch's answers or groups."""
        logits = answer_logits(model, batch, self.answers)
        return LOSSES[self.loss_name](logits, batch["labels"], batch["rows"])

    def queries(self, items: Sequence[LabelledGroup]) -> list[Query]:
        """Return one query a prompt: both answers after its last token."""
        targets = np.array([self.answers], dtype=np.int64)
        prompts = [g.packed.prefix + suffix for g in items for suffix in g.packed.suffixes]
        if self.decoder_start is not None:
            return [
                Query(tokens=tokens, positions=(0,), targets=targets, decoder=(self.decoder_start,))
                for tokens in prompts
            ]
        return [Query(tokens=tokens, positions=(len(tokens) - 1,), targets=targets) for tokens in prompts]

    def judge(self, model: Any, items: Sequence[LabelledGroup]) -> dict[str, float]:
        """Return the loss and the pooled AUC of Yes against No over all answers of labelled groups."""
        logits = torch.cat(self.answered(model, items))
        labels = torch.from_numpy(np.concatenate([group.labels for group in items]))
        sizes = torch.tensor([group.labels.size for group in items])
        numbers = torch.repeat_interleave(torch.arange(len(items)), sizes)
        odds = (logits[:, 0] - logits[:, 1]).numpy()
        loss = float(LOSSES[self.loss_name](logits, labels, numbers))
        return {"loss": loss, "auc": auc(odds, labels.numpy())}

    def answered(self, model: Any, items: Sequence[LabelledGroup]) -> list[torch.Tensor]:
        """Return the answer logits of each group, (n_answers, 2) on the CPU, without dropout."""

        def compute(network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return answer_logits(network, batch, self.answers)

        found: dict[int, torch.Tensor] = {}
        for part in token_batches([self.length(item) for item in items], VALIDATION_TOKENS):
            logits = evaluated(model, self.collate([items[i] for i in part]), compute).cpu()
            found.update(zip(part, torch.split(logits, [items[i].labels.size for i in part]), strict=True))
        return [found[i] for i in range(len(items))]
