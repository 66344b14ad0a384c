"""The task of distillation: after the vectors, answer as the teacher does after the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frugalrec.distillation.lessons import Lesson
from frugalrec.distillation.teacher import Table
from frugalrec.llm.prefix import Row
from frugalrec.llm.scoring import Query, gathered_logits
from frugalrec.tuning.packing import INPUTS, collate, pack
from frugalrec.tuning.processes import unwrapped
from frugalrec.tuning.task import Task


class DistilTask(Task[Lesson]):
    """Learn a teacher's distributions: KL(teacher || student), and the order of a lesson's candidates."""

    def __init__(
        self,
        table: Table,
        *,
        answers_only: bool,
        packed: bool,
        ranking: float,
        dtype: torch.dtype,
        pad: int,
    ) -> None:
        """Store the options.

        Args:
            table: The teacher's log-probabilities, (n_positions, width).
            answers_only: They are about the answers, the targets of the queries, not about all tokens.
            packed: Compute the shared prefix of a lesson's prompts once.
            ranking: Weight of the ranking term.
            dtype: The type that the network computes in.
            pad: The token that fills rows.
        """
        self.table, self.answers_only, self.packed = table, answers_only, packed
        self.ranking, self.dtype, self.pad = ranking, dtype, pad

    def length(self, item: Lesson) -> int:
        """Return the tokens that a lesson computes."""
        decoded = sum(len(query.decoder) for query in item.queries)
        return sum(row.length for row in self._rows(item)) + decoded

    def weight(self, item: Lesson) -> float:
        """Return the positions that are taught."""
        return float(item.asked)

    def collate(self, items: Sequence[Lesson]) -> dict[str, Tensor]:
        """Return inputs as `packing.collate`, and what is taught where.

        Returns:
            Beside the inputs, `rows`, `columns`, `shares`, `lesson` (n_positions,): place, weight and
            number of the lesson; `taught` (n_positions, width); `last` (n_positions,): true where a
            prompt's own answer is asked; with `answers_only` also `answers` (2,).
        """
        rows: list[Row] = []
        places: list[tuple[int, int]] = []
        for item in items:
            begun = len(rows)
            rows += self._rows(item)
            for number, query in enumerate(item.queries):
                if query.decoder:
                    places += [(begun + number, position) for position in query.positions]
                elif self.packed:
                    places += [(begun, c) for c in rows[begun].columns(number, query.positions)]
                else:
                    places += [(begun + number, position) for position in query.positions]
        queries = [query for item in items for query in item.queries]
        asked = np.array([item.asked for item in items])
        last = np.concatenate([np.arange(len(q.positions)) == len(q.positions) - 1 for q in queries])
        table = np.concatenate([self.table[item.first : item.first + item.asked] for item in items])
        batch = {
            **collate(rows, self.dtype),
            "rows": torch.tensor([row for row, _ in places]),
            "columns": torch.tensor([column for _, column in places]),
            "taught": torch.from_numpy(table.astype(np.float32)).log_softmax(dim=-1),
            "shares": torch.full((len(places),), 1 / len(places)),
            "lesson": torch.from_numpy(np.repeat(np.arange(len(items)), asked)),
            "last": torch.from_numpy(last),
            "answers": torch.from_numpy(queries[0].targets[0]),
        }
        if queries[0].decoder:
            width = max(len(query.decoder) for query in queries)
            filled = [[*query.decoder, *[self.pad] * (width - len(query.decoder))] for query in queries]
            batch["decoder_input_ids"] = torch.tensor(filled)
        return batch

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over taught positions, with the ranking term where it is asked for."""
        student = self._student(model, batch)
        found = self._divergence(student, batch)
        return found + self.ranking * self._ranked(student, batch) if self.ranking else found

    def divergence(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over taught positions of KL(teacher || student), in nats."""
        return self._divergence(self._student(model, batch), batch)

    def log_odds(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return of each prompt's own answer: lesson, teacher's and student's log-odds, (n_prompts, 3)."""
        student, last = self._student(model, batch), batch["last"]
        yes, no = self._answers(batch)
        odds = [table[last, yes] - table[last, no] for table in (batch["taught"], student)]
        return torch.stack([batch["lesson"][last].float(), *odds], dim=1)

    def queries(self, items: Sequence[Lesson]) -> list[Query]:
        """Return what inference reads."""
        return [query for item in items for query in item.queries]

    def _rows(self, item: Lesson) -> list[Row]:
        tokens = [query.tokens for query in item.queries]
        if self.packed:
            return [pack(tokens)]
        return [Row(prefix=(), suffixes=(one,), members=(0,)) for one in tokens]

    def _student(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the student's log-probabilities, (n_positions, width)."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        with gathered_logits(unwrapped(model), batch["rows"], batch["columns"]):
            logits = model(**inputs, use_cache=False).logits[0].float()
        chosen = logits[:, batch["answers"]] if self.answers_only else logits
        return torch.log_softmax(chosen, dim=-1)

    def _divergence(self, student: Tensor, batch: dict[str, Tensor]) -> Tensor:
        each = nn.functional.kl_div(student, batch["taught"], reduction="none", log_target=True).sum(dim=-1)
        return (each * batch["shares"]).sum()

    def _answers(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """Return the columns of both answers."""
        if self.answers_only:
            return 0, 1
        yes, no = batch["answers"].tolist()
        return yes, no

    def _ranked(self, student: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean over taught positions of what their lesson's ranking loses.

        A lesson's candidates are its prompts' own answers; their log-odds make a distribution, the
        teacher's and the student's, and the loss is KL again.
        """
        yes, no = self._answers(batch)
        last, lesson = batch["last"], batch["lesson"]
        total = student.new_zeros(())
        for number in range(int(lesson.max()) + 1):
            mine = (lesson == number) & last
            want, have = (
                torch.log_softmax(table[mine, yes] - table[mine, no], dim=0)
                for table in (batch["taught"], student)
            )
            share = (batch["shares"] * (lesson == number)).sum()
            total = total + share * nn.functional.kl_div(have, want, reduction="sum", log_target=True)
        return total
