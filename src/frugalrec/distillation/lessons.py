"""Lessons: the same prompts in words and with learned vectors, and where in both an answer comes.

One function writes both texts (`llm.prompts.written`), so a student reads in training what it reads at
inference. A lesson is one user's prompts: they share their prefix, and the ranking term compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from frugalrec.errors import DataError, ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.queries import answer_queries, known_places, response_query
from frugalrec.llm.scoring import Query
from frugalrec.tuning.base import TitleRow, TrainingRow

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Prompts of one user as the student reads them, and where the teacher's answers lie."""

    queries: tuple[Query, ...]
    """Their targets are the answers' tokens."""
    first: int
    """Row of the teacher's table that the first position of the first query is taught by."""

    @property
    def asked(self) -> int:
        """Positions after which a distribution is learned."""
        return sum(len(query.positions) for query in self.queries)


def yes_no_queries(lm: LocalLM, rows: Sequence[TrainingRow], answers: tuple[str, str]) -> list[Query]:
    """Return a query a row: both answers, wherever one comes; labels are not looked at."""
    prompts = PromptGroup(prefix="", suffixes=tuple(row.prompt for row in rows))
    (queries,) = answer_queries(lm, [prompts], answers)
    found = []
    for row, query in zip(rows, queries, strict=True):
        if row.known and not lm.is_encoder_decoder:
            yes, no = query.targets[0].tolist()
            places = known_places(lm, row.prompt, query.tokens, row.known, (yes, no))
            targets = np.repeat(query.targets, len(places) + 1, axis=0)
            query = replace(query, positions=(*places, *query.positions), targets=targets)
        found.append(query)
    return found


def title_queries(lm: LocalLM, prompt: NextTitlePrompt, rows: Sequence[TitleRow]) -> list[Query]:
    """Return a query a row: every token of the title, and the end of text."""
    return [response_query(lm, prompt.question(shown), prompt.answer(title)) for shown, title in rows]


def lessons(
    taught: Sequence[Query], read: Sequence[Query], groups: Sequence[int], *, first: int = 0
) -> list[Lesson]:
    """Pair what the teacher answers with what the student reads.

    Args:
        taught: The teacher's queries.
        read: The student's, one a query of the teacher.
        groups: Number of the user of each; neighbours of one number make a lesson.
        first: Row of the teacher's table that the first query begins at.

    Raises:
        ModelError: If an answer has other tokens behind the vectors than behind the words.
    """
    for number, (long, short) in enumerate(zip(taught, read, strict=True)):
        if not np.array_equal(long.targets, short.targets):
            raise ModelError(
                f"the answer of prompt {number} has other tokens behind the learned vectors "
                f"({short.targets.tolist()}) than behind the words ({long.targets.tolist()}); begin answers "
                "with a blank, or leave that row out."
            )
    found, at = [], first
    for _, part in groupby(range(len(read)), key=lambda row: groups[row]):
        lesson = Lesson(queries=tuple(read[row] for row in part), first=at)
        found.append(lesson)
        at += lesson.asked
    return found


def check_lengths(queries: Sequence[Query], max_tokens: int) -> None:
    """Refuse prompts that are too long.

    Raises:
        DataError: If one is, or there is none at all.
    """
    if not queries:
        raise DataError("distillation needs at least one prompt; give more rows.")
    longest = max(max(len(query.tokens), len(query.decoder)) for query in queries)
    if longest > max_tokens:
        raise DataError(
            f"a prompt has {longest} tokens, more than max_tokens={max_tokens}: shorten the window or the "
            "titles, or raise max_tokens."
        )
