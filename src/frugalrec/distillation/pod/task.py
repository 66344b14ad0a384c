"""What a POD batch is and what it loses: answer tokens alone, whatever stands beside a row in its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from frugalrec.distillation.pod.encoding import Row
from frugalrec.distillation.pod.model import Mean
from frugalrec.llm.scoring import CausalScorer, Query, Seq2SeqScorer, gathered_logits
from frugalrec.tuning.processes import unwrapped
from frugalrec.tuning.task import Task
from frugalrec.types import IntArray, LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

TOP = 10


class PodTask(Task[Row]):
    """Learn the answers of rows, all of one task in a batch."""

    def __init__(
        self,
        lm: LocalLM,
        *,
        mean: Mean = "rows",
        pads_in_loss: bool = False,
        candidates: Sequence[Sequence[IntArray]] = (),
    ) -> None:
        """Store how to compute.

        Args:
            lm: The model whose network is trained.
            mean: See `PodConfig.mean`.
            pads_in_loss: See `Faults.pads_in_loss`.
            candidates: Answers of each validation row, the right one first: epochs are judged by NDCG@10
                over them; default: by the loss.
        """
        from frugalrec.llm.queries import decoder_start

        self.pad, self.mean, self.pads_in_loss, self.candidates = lm.pad_id, mean, pads_in_loss, candidates
        self.start = decoder_start(lm) if lm.is_encoder_decoder else None
        self.max_batch_tokens = lm.max_batch_tokens

    def length(self, item: Row) -> int:
        """Return the tokens of prompt and answer."""
        return item.tokens.size + item.answer.size

    def weight(self, item: Row) -> float:
        """Return how much a row counts: all alike, or by its answer tokens."""
        return float(item.answer.size) if self.mean == "tokens" else 1.0

    def collate(self, items: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return padded inputs, and where answers are read; see `ResponseTask.collate`."""
        answers = [row.answer for row in items]
        if self.pads_in_loss:
            width = max(answer.size for answer in answers)
            answers = [np.pad(a, (0, width - a.size), constant_values=self.pad) for a in answers]
        if self.start is None:
            ids, mask = self._padded(
                [np.concatenate([row.tokens, a[:-1]]) for row, a in zip(items, answers, strict=True)]
            )
            starts = np.array([row.tokens.size - 1 for row in items])
            batch = {"input_ids": ids, "attention_mask": mask}
        else:
            ids, mask = self._padded([row.tokens for row in items])
            given, _ = self._padded([np.concatenate([[self.start], answer[:-1]]) for answer in answers])
            starts = np.zeros(len(items), dtype=np.int64)
            batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}
        sizes = np.array([answer.size for answer in answers])
        total = np.full(len(items), sizes.sum()) if self.mean == "tokens" else sizes * len(items)
        columns = np.concatenate([start + np.arange(n) for start, n in zip(starts, sizes, strict=True)])
        return {
            **batch,
            "rows": torch.from_numpy(np.repeat(np.arange(len(items)), sizes)),
            "columns": torch.from_numpy(columns),
            "targets": torch.from_numpy(np.concatenate(answers).astype(np.int64)),
            "shares": torch.from_numpy(np.repeat(1 / total, sizes).astype(np.float32)),
        }

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of a batch; only states that predict an answer reach the output layer."""
        inputs = {n: t for n, t in batch.items() if n not in ("rows", "columns", "targets", "shares")}
        with gathered_logits(unwrapped(model), batch["rows"], batch["columns"]):
            logits = model(**inputs, use_cache=False).logits[0]
        each = torch.nn.functional.cross_entropy(logits.float(), batch["targets"], reduction="none")
        return (each * batch["shares"]).sum()

    def judge(self, model: Any, items: Sequence[Row]) -> dict[str, float]:
        """Return the mean loss; with candidates, `loss` is 1 - NDCG@10, and the mean loss `answer_loss`."""
        found = super().judge(model, items)
        if not self.candidates:
            return found
        ndcg = float(self.gains(model, items).mean())
        return {"loss": 1 - ndcg, "ndcg@10": ndcg, "answer_loss": found["loss"]}

    @torch.no_grad()
    def gains(self, model: Any, items: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the NDCG@10 of each row's right answer among its candidates, (n,)."""
        groups = [
            self.queries([Row(task=row.task, tokens=row.tokens, answer=answer) for answer in answers])
            for row, answers in zip(items, self.candidates, strict=True)
        ]
        kind: Any = CausalScorer if self.start is None else Seq2SeqScorer
        scorer = kind(unwrapped(model), pad=self.pad, max_batch_tokens=self.max_batch_tokens)
        was_training = model.training
        model.eval()
        try:
            scores, _ = scorer.score(groups)
        finally:
            model.train(was_training)
        sums = [np.array([float(values.sum()) for values in group]) for group in scores]
        ranks = np.array([(found[1:] >= found[0]).sum() for found in sums])
        return np.where(ranks < TOP, 1 / np.log2(ranks + 2), 0.0)

    def queries(self, items: Sequence[Row]) -> list[Query]:
        """Return what inference reads of rows."""
        return [self._query(row) for row in items]

    def _query(self, row: Row) -> Query:
        tokens, answer = row.tokens.tolist(), row.answer.tolist()
        targets: LongArray = row.answer[:, None].astype(np.int64)
        if self.start is not None:
            decoder = (self.start, *answer[:-1])
            return Query(
                tokens=tuple(tokens), positions=tuple(range(len(answer))), targets=targets, decoder=decoder
            )
        places = tuple(range(len(tokens) - 1, len(tokens) + len(answer) - 1))
        return Query(tokens=(*tokens, *answer[:-1]), positions=places, targets=targets)

    def _padded(self, sequences: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = np.array([len(sequence) for sequence in sequences])
        mask = np.arange(sizes.max())[None] < sizes[:, None]
        ids = np.full(mask.shape, self.pad, dtype=np.int64)
        ids[mask] = np.concatenate(sequences)
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
