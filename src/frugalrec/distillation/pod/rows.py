"""The rows of a whole POD run: which batches there will be, and each row's tokens when its batch comes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.distillation.pod.batches import epoch_batches, weighted_rows
from frugalrec.distillation.pod.encoding import Encoder, Row
from frugalrec.distillation.pod.model import PodConfig
from frugalrec.distillation.pod.samples import Draw, explanation_draw, sequential_draw, top_n_draw
from frugalrec.distillation.pod.templates import EXPLANATION, SEQUENTIAL
from frugalrec.errors import DataError
from frugalrec.rng import generator
from frugalrec.types import LongArray

if TYPE_CHECKING:
    from frugalrec.data.readers.p5 import Explanations

STRIDE = 1 << 32
"""Rows of an epoch are numbered from a multiple of it."""


class PodRows(Sequence[Row]):
    """Samples of all epochs by number; those of an epoch and task are drawn when the first is asked for."""

    def __init__(
        self,
        encoder: Encoder,
        config: PodConfig,
        train: Dataset,
        explanations: Explanations | None,
        met: Dataset | None = None,
    ) -> None:
        """Store what samples are drawn from; `met` as in `top_n_draw`."""
        self.met = met
        self.encoder, self.config, self.train, self.explanations = encoder, config, train, explanations
        self._drawn: dict[tuple[int, str], Draw] = {}

    def __len__(self) -> int:
        """Return a bound of the row numbers."""
        return self.config.epochs * STRIDE

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | Sequence[Row]:
        """Return a sample."""
        if isinstance(number, slice):
            raise DataError("rows are asked for one by one.")
        epoch, rest = divmod(number, STRIDE)
        which, row = divmod(rest, STRIDE >> 4)
        task = self.config.tasks[which]
        if (epoch, task) not in self._drawn:
            self._drawn = {key: draw for key, draw in self._drawn.items() if key[0] == epoch}
            self._drawn[epoch, task] = self.draw(task, epoch)
        return self.encoder.row(self._drawn[epoch, task], row)

    def draw(self, task: str, epoch: int) -> Draw:
        """Return the samples of a task in an epoch: as many passes as its weight says, one by one."""
        weight = self.config.weights[task]
        passes = math.ceil(weight)
        draws = [self._pass(task, epoch * passes + number) for number in range(passes)]
        n = len(draws[0])
        rows = weighted_rows(n, weight, seed=self.config.seed, task=task, epoch=epoch)
        taken = [draw.take(rows[rows // n == number] % n) for number, draw in enumerate(draws)]
        return taken[0] if passes == 1 else _joined(taken)

    def _pass(self, task: str, number: int) -> Draw:
        config = self.config
        given: dict[str, Any] = {"seed": config.seed, "epoch": number, "worded": config.worded}
        if task == SEQUENTIAL:
            found = sequential_draw(self.train, window=config.window, **given)
        elif task == EXPLANATION:
            if self.explanations is None:
                raise DataError("the task of explanations needs explanations; give some, or leave it out.")
            found = explanation_draw(self.explanations, **given)
        else:
            found = top_n_draw(self.train, negatives=config.negatives, met=self.met, **given)
        if not len(found):
            raise DataError(
                f"the training data hold no sample of the task {task}: its users have too few items."
            )
        return found

    def order(self) -> tuple[list[list[int]], list[int]]:
        """Return the batches of all epochs, as row numbers, and after how many of them an epoch ends."""
        config = self.config
        found: list[list[int]] = []
        ends: list[int] = []
        for epoch in range(config.epochs):
            for task, rows in self._batches(epoch, self._lengths(epoch)):
                start = epoch * STRIDE + config.tasks.index(task) * (STRIDE >> 4)
                found.append((start + rows).tolist())
            ends.append(len(found))
        if not found:
            raise DataError(
                f"the training rows fill no batch of {config.batch_size}, and published ones are full; "
                "lower batch_size."
            )
        return found, ends

    def _lengths(self, epoch: int) -> Mapping[str, LongArray]:
        lengths = {}
        for task in self.config.tasks:
            prompts, answers = self.encoder.lengths(self.draw(task, epoch))
            lengths[task] = prompts + answers
        return lengths

    def _batches(self, epoch: int, lengths: Mapping[str, LongArray]) -> list[tuple[str, LongArray]]:
        config = self.config
        if config.faults.equal_turns:
            return equal_turns(
                {task: len(n) for task, n in lengths.items()}, config.batch_size, epoch, config.seed
            )
        return epoch_batches(
            lengths,
            max_tokens=config.batch_tokens,
            max_rows=config.batch_size,
            seed=config.seed,
            epoch=epoch,
        )


def equal_turns(counts: Mapping[str, int], size: int, epoch: int, seed: int) -> list[tuple[str, LongArray]]:
    """Return an epoch as published: as many batches as rows allow in all, shared alike among the tasks.

    A task with many rows is seen in part, one with few rows several times; the first pass over each is in
    the order of the data, later ones are shuffled. What is left of a pass is carried into the next epoch.
    """
    total = sum(n // size for n in counts.values())
    tasks, orders = list(counts), {}
    found = []
    for turn in range(epoch * total, (epoch + 1) * total):
        task = tasks[turn % len(tasks)]
        n, at = counts[task], (turn // len(tasks)) * size
        rows = []
        for place in range(at, at + size):
            done, rank = divmod(place, n)
            if (task, done) not in orders:
                shuffled = generator(seed, "pod", "published-order", task, done).permutation(n)
                orders[task, done] = shuffled if done else np.arange(n)
            rows.append(int(orders[task, done][rank]))
        found.append((task, np.array(rows, dtype=np.int64)))
    return found


class RowWeights(Sequence[float]):
    """How much rows count in their batch; only asked for where a batch is split."""

    def __init__(self, rows: PodRows, by_tokens: bool) -> None:
        """Store the rows, and whether answers count by their tokens."""
        self.rows, self.by_tokens = rows, by_tokens

    def __len__(self) -> int:
        """Return a bound of the row numbers."""
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> float: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[float]: ...
    def __getitem__(self, number: int | slice) -> float | Sequence[float]:
        """Return the weight of a row."""
        if isinstance(number, slice):
            raise DataError("rows are asked for one by one.")
        return float(self.rows[number].answer.size) if self.by_tokens else 1.0


def _joined(draws: Sequence[Draw]) -> Draw:
    first = draws[0]
    sizes = np.concatenate([np.diff(draw.indptr) for draw in draws])
    return Draw(
        task=first.task,
        users=np.concatenate([draw.users for draw in draws]),
        templates=np.concatenate([draw.templates for draw in draws]),
        indptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        items=np.concatenate([draw.items for draw in draws]),
        targets=np.concatenate([draw.targets for draw in draws]),
    )
