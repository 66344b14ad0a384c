"""How near a student comes to its teacher: by what it answers, and by the order it puts prompts in.

Both are needed: a student can learn how often the teacher says yes, at a small divergence, and not to whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import spearmanr

from frugalrec.distillation.learning import DistilTask
from frugalrec.distillation.lessons import Lesson
from frugalrec.llm.batching import token_batches
from frugalrec.tuning.task import VALIDATION_TOKENS, evaluated
from frugalrec.types import DoubleArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def divergence(task: DistilTask, student: LocalLM, items: Sequence[Lesson]) -> float:
    """Return the mean KL(teacher || student) over all taught positions, in nats."""
    total = 0.0
    for part, batch in _batches(task, items):
        total += float(evaluated(student.network, batch, task.divergence)) * sum(item.asked for item in part)
    return total / sum(item.asked for item in items)


def order(task: DistilTask, student: LocalLM, items: Sequence[Lesson]) -> float | None:
    """Return the rank correlation of teacher and student over prompts, by log-odds of yes.

    Where lessons hold several prompts, a user's candidates, it is the mean over lessons of the correlation
    inside them; otherwise that over all prompts. None if there are no two prompts that the teacher and the
    student tell apart.
    """
    lessons: list[DoubleArray] = []
    for part, batch in _batches(task, items):
        found = evaluated(student.network, batch, task.log_odds).double().cpu().numpy()
        lessons += [found[found[:, 0] == number, 1:] for number in range(len(part))]
    several = [lesson for lesson in lessons if len(lesson) > 1]
    compared = [
        float(spearmanr(*lesson.T).statistic)
        for lesson in several or [np.concatenate(lessons)]
        if len(lesson) > 1 and np.ptp(lesson, axis=0).all()
    ]
    return float(np.mean(compared)) if compared else None


def _batches(
    task: DistilTask, items: Sequence[Lesson]
) -> Iterator[tuple[list[Lesson], dict[str, torch.Tensor]]]:
    for rows in token_batches([task.length(item) for item in items], VALIDATION_TOKENS):
        part = [items[row] for row in rows]
        yield part, task.collate(part)
