"""Samples as tokens: every user, item and phrase is tokenised once, and prompts are put together from them.

That this gives the tokens of whole texts, which is what inference tokenises, is checked for every id and
every template before training begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from frugalrec.distillation.pod.samples import Draw
from frugalrec.distillation.pod.templates import EXPLANATION, ITEMS, TEMPLATES, USER, IdWriter, bare, parts
from frugalrec.errors import ModelError
from frugalrec.types import IntArray, LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

CUE = " ->"
"""What a causal network's prompts end with, lest answers be taken for more of the history."""
CHAIN = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample, as a network reads it."""

    task: str
    tokens: IntArray
    """The prompt, learned vectors' tokens included."""
    answer: IntArray
    """What is to be written, the end of text included."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Token sequences in one array."""

    indptr: LongArray
    flat: IntArray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """Return sequences as one array."""
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(sizes.sum()))
        return cls(indptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), flat=flat)

    @property
    def lengths(self) -> LongArray:
        """Tokens of each sequence."""
        return np.diff(self.indptr)

    def __getitem__(self, row: int) -> IntArray:
        """Return one sequence."""
        found: IntArray = self.flat[self.indptr[row] : self.indptr[row + 1]]
        return found

    def joined(self, rows: NDArray[Any]) -> IntArray:
        """Return some sequences, one after the other."""
        start, sizes = self.indptr[rows], self.lengths[rows]
        ends = np.cumsum(sizes)
        at = np.arange(ends[-1] if sizes.size else 0) + np.repeat(start - ends + sizes, sizes)
        found: IntArray = self.flat[at]
        return found


class Encoder:
    """Turns draws into token rows for one model."""

    def __init__(self, lm: LocalLM, writer: IdWriter, openings: Mapping[str, str]) -> None:
        """Tokenise all pieces.

        Args:
            lm: The model, with its learned prompt.
            writer: How users and items are written.
            openings: What each task's prompts begin with: the text of its learned vectors.

        Raises:
            ModelError: If whole texts have other tokens than their pieces.
        """
        self.lm, self.writer, self.openings = lm, writer, dict(openings)
        self.cue = "" if lm.is_encoder_decoder else CUE
        between = f" {writer.separator}" if writer.separator else ""
        self.items = Ragged.of(self._tokens([f" {item}" for item in writer.items]))
        self.later = Ragged.of(self._tokens([f"{between} {item}" for item in writer.items]))
        self.users = (
            None if writer.users is None else Ragged.of(self._tokens([f" {u}" for u in writer.users]))
        )
        end = lm.tokenizer.eos_token_id
        self.end = [] if end is None else [end]
        self.answers = Ragged.of([[*r, *self.end] for r in self._tokens([f" {a}" for a in writer.answers])])
        self.words = {task: [self._words(template) for template in TEMPLATES[task]] for task in self.openings}
        self.frames = {task: self._frame(opening) for task, opening in self.openings.items()}
        self.texts = Ragged.of([])
        self._check()

    def set_texts(self, texts: Sequence[str], max_tokens: int) -> None:
        """Tokenise the sentences that explanations are learned from, each cut to `max_tokens` and the end."""
        rows = self._tokens([f" {text.strip()}" for text in texts])
        self.texts = Ragged.of([[*row[:max_tokens], *self.end] for row in rows])

    def text(self, task: str, template: int, user: int, items: Sequence[int]) -> str:
        """Return the whole text of a prompt."""
        return f"{self.openings[task]}{self.writer.text(task, template, user, items)}{self.cue}"

    def prompt(self, draw: Draw, number: int) -> IntArray:
        """Return the tokens of a sample's prompt."""
        shown, user = draw.shown(number), int(draw.users[number])
        before, after = self.frames[draw.task]
        pieces = [before]
        for part in self.words[draw.task][int(draw.templates[number])]:
            pieces += self._slot(part, user, shown) if isinstance(part, str) else [part]
        return np.concatenate([*pieces, after])

    def row(self, draw: Draw, number: int) -> Row:
        """Return one sample of a draw."""
        answer = self._answers(draw.task)[int(draw.targets[number])]
        return Row(task=draw.task, tokens=self.prompt(draw, number), answer=answer)

    def lengths(self, draw: Draw) -> tuple[LongArray, LongArray]:
        """Return the tokens of each prompt of a draw, and of each answer, without putting them together."""
        sizes = np.concatenate([[0], np.cumsum(self.later.lengths[draw.items])])
        found = sizes[draw.indptr[1:]] - sizes[draw.indptr[:-1]]
        first = draw.items[np.minimum(draw.indptr[:-1], max(draw.items.size - 1, 0))]
        found = found + np.where(
            np.diff(draw.indptr) > 0, (self.items.lengths - self.later.lengths)[first], 0
        )
        if self.users is not None:
            found = found + self.users.lengths[draw.users]
        own = [
            sum(len(part) for part in words if not isinstance(part, str)) for words in self.words[draw.task]
        ]
        found = found + np.array(own)[draw.templates] + sum(map(len, self.frames[draw.task]))
        return found, self._answers(draw.task).lengths[draw.targets]

    def spans(self, draw: Draw, number: int) -> list[int]:
        """Return the whole-word row of each token of a prompt: k for the k-th entity, 0 for the others."""
        (before, after), shown, count = self.frames[draw.task], draw.shown(number), 0
        rows = [0] * len(before)
        for part in self.words[draw.task][int(draw.templates[number])]:
            if isinstance(part, str):
                for piece in self._entity_sizes(part, int(draw.users[number]), shown):
                    count += 1
                    rows += [count] * piece
            else:
                rows += [0] * len(part)
        return [*rows, *([0] * len(after))]

    def _entity_sizes(self, part: str, user: int, shown: IntArray) -> list[int]:
        if part == USER:
            return [] if self.users is None else [int(self.users.lengths[user])]
        return [int(self.items.lengths[item]) for item in shown]

    def entities(self) -> list[list[int]]:
        """Return the tokens of each item and user as they stand in prompts."""
        tables = [self.items] if self.users is None else [self.items, self.users]
        return [table[row].tolist() for table in tables for row in range(table.indptr.size - 1)]

    def _answers(self, task: str) -> Ragged:
        return self.texts if task == EXPLANATION else self.answers

    def _slot(self, part: str, user: int, shown: IntArray) -> list[IntArray]:
        if part == USER:
            return [] if self.users is None else [self.users[user]]
        if not shown.size:
            return []
        return [self.items[int(shown[0])], self.later.joined(shown[1:])]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.lm.tokenizer(list(texts), add_special_tokens=False).input_ids
        return found

    def _words(self, template: str) -> list[str | IntArray]:
        said = parts(template, users=self.writer.users is not None)
        return [
            part if part in (USER, ITEMS) else np.array(self._tokens([part])[0], dtype=np.int32)
            for part in said
        ]

    def _frame(self, opening: str) -> tuple[IntArray, IntArray]:
        """Return the tokens before a text's own ones and after them."""
        own = self._tokens([" x"])[0]
        (whole,) = self.lm.encode([f"{opening} x"])
        starts = [at for at in range(len(whole)) if whole[at : at + len(own)] == own]
        if not starts:
            raise self._mixed(f"{opening} x")
        cue = self._tokens([self.cue])[0] if self.cue else []
        before, after = whole[: starts[-1]], [*cue, *whole[starts[-1] + len(own) :]]
        return np.array(before, dtype=np.int32), np.array(after, dtype=np.int32)

    def _check(self) -> None:
        """Compare the tokens of whole texts with those of their pieces, over all ids and templates."""
        n, users = len(self.writer.items), len(self.writer.users or ())
        first = next(iter(self.openings))
        self._compare(first, bare(first), np.arange(-(-n // CHAIN) * CHAIN) % n, CHAIN)
        self._compare(first, bare(first), np.arange(users) % n, 1)
        for task in self.openings:
            for template in range(len(TEMPLATES[task])):
                self._compare(task, template, np.arange(2 * CHAIN) % n, CHAIN)
        if not self.lm.is_encoder_decoder:
            task = next(iter(self.openings))
            question = self.text(task, bare(task), 0, [0])
            (own,) = self.lm.encode([question])
            whole = self.lm.encode([f"{question} {answer}" for answer in self.writer.answers])
            for item, row in enumerate(whole):
                wanted = self.answers[item][: self.answers.lengths[item] - len(self.end)].tolist()
                if row != [*own, *wanted]:
                    raise self._mixed(f"{CUE} {self.writer.answers[item]}")

    def _compare(self, task: str, template: int, items: NDArray[Any], each: int) -> None:
        """Compare prompts of so many items each, users in turn."""
        rows, n_users = items.size // each, len(self.writer.users or ()) or 1
        draw = Draw(
            task=task,
            users=(np.arange(rows) % n_users).astype(np.int32),
            templates=np.full(rows, template, dtype=np.int64),
            indptr=np.arange(rows + 1, dtype=np.int64) * each,
            items=items.astype(np.int32),
            targets=np.zeros(rows, dtype=np.int32),
        )
        texts = [self.text(task, template, int(draw.users[r]), draw.shown(r).tolist()) for r in range(rows)]
        for number, whole in enumerate(self.lm.encode(texts)):
            if self.prompt(draw, number).tolist() != whole:
                raise self._mixed(texts[number][-60:])

    def _mixed(self, text: str) -> ModelError:
        return ModelError(
            f"the tokenizer of {self.lm.model} joins ids with what stands beside them, or splits them "
            f"otherwise there, in {text!r}; write items as numbers or as codes that are tokens of their own."
        )
