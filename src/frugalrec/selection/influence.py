"""Influence of training samples on a surrogate's risk, by one directional derivative per batch.

DEALRec (Lin et al., SIGIR 2024, arXiv 2401.17197, Equations 4 to 11): removing sample s changes the
risk by ``(1/n) grad L(s) . q`` with ``q = H^-1 v``, v the gradient of the risk. q is one vector for all
samples, so a score is the slope of the sample's loss along q: forward-mode differentiation gives it
for a whole batch in about the time of three forward passes, for any subset of the parameters. Scores of one
surrogate are exact; what they hang on is its seed, and the mean over several seeds takes that away.

A positive score is a helpful sample: without it, the risk would rise.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from frugalrec.data.examples import Examples
from frugalrec.engine import map_batches
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.batching import cells, ranges
from frugalrec.recommenders.networks import SequenceNetwork
from frugalrec.selection.catalogue_losses import Asked, TransitionLoss
from frugalrec.selection.duals import NoRule, both, dual
from frugalrec.types import FloatArray, LongArray

Vector = dict[str, Tensor]
"""One tensor per chosen parameter, by name."""
TABLE = "items.weight"
"""Name of the parameter that embeds and scores items."""
Progress = Callable[[int, int], None]
"""Is told of (rows done, rows in all)."""

BATCH = 1024
"""The most rows whose states are computed at once."""
CELLS = 8192
"""The most padded positions of a batch, one row aside: few enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of the examples, padded at the end."""

    rows: LongArray
    """Row numbers, (b,)."""
    items: Tensor
    """History items, (b, longest)."""
    lengths: Tensor
    """History lengths, (b,)."""
    asked: Asked


class Problem(nn.Module):
    """A trained network, the parameters that count, and rows to look at."""

    def __init__(
        self, network: SequenceNetwork, examples: Examples, *, parameters: str = ".*", max_length: int = 50
    ) -> None:
        """Keep the parameters whose names match `parameters` (a regular expression, whole name).

        Raises:
            ConfigError: If no parameter matches.
        """
        super().__init__()
        self.network = network
        self.examples, self.max_length = examples, max_length
        named = dict(network.named_parameters())
        self.names = [name for name in named if re.fullmatch(parameters, name)]
        if not self.names:
            raise ConfigError(f"no parameter matches {parameters!r}; the network has {', '.join(named)}.")

    @cached_property
    def chosen(self) -> Vector:
        """The chosen parameters, detached, by name."""
        named: Vector = dict(self.network.named_parameters())
        return {name: named[name].detach() for name in self.names}

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (b, width) after the histories, and the item table."""
        return self.network.next_states(items, lengths), self.network.items.weight

    def at(self, parameters: Vector, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return states and item table with other values of the chosen parameters."""
        named = {f"network.{name}": value for name, value in parameters.items()}
        found: tuple[Tensor, Tensor] = functional_call(self, named, (batch.items, batch.lengths))
        return found

    def batches(self, size: int = BATCH, rows: LongArray | None = None) -> Iterator[Batch]:
        """Yield the rows with a history, those of similar length together.

        Args:
            size: The most rows in a batch; results do not depend on it.
            rows: Some rows only.
        """
        lengths = np.minimum(np.diff(self.examples.indptr), self.max_length)
        rows = np.arange(lengths.size) if rows is None else rows
        rows = rows[lengths[rows] > 0]
        order = rows[np.argsort(lengths[rows], kind="stable")]
        start = 0
        while start < order.size:
            longest = np.maximum.accumulate(lengths[order[start : start + size]])
            fits = longest * np.arange(1, longest.size + 1) <= CELLS
            part = order[start : start + max(int(fits.sum()), 1)]
            start += part.size
            _, positions = ranges(self.examples.indptr[part + 1] - lengths[part], lengths[part])
            take, _ = cells(lengths[part])
            yield Batch(
                rows=part,
                items=torch.from_numpy(self.examples.items[positions][take].astype(np.int64)),
                lengths=torch.from_numpy(lengths[part]),
                asked=Asked(
                    users=self.examples.users[part],
                    targets=torch.from_numpy(self.examples.targets[part].astype(np.int64)),
                    rows=part,
                ),
            )


def risk_gradient(problem: Problem, loss: TransitionLoss, *, progress: Progress | None = None) -> Vector:
    """Return the gradient of the mean loss over the rows with a history, by the chosen parameters.

    Raises:
        DataError: If no row has a history.
    """
    parameters = {name: value.clone().requires_grad_() for name, value in problem.chosen.items()}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    done = 0
    for batch in problem.batches():
        states, table = problem.at(parameters, batch)
        to_states, to_table = loss.gradients(states.detach(), table.detach(), batch.asked)
        outputs = [(states, to_states), (table, to_table)]
        outputs = [pair for pair in outputs if pair[0].requires_grad]
        found = torch.autograd.grad(
            [output for output, _ in outputs],
            list(parameters.values()),
            [gradient for _, gradient in outputs],
            allow_unused=True,
        )
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient
        done += batch.rows.size
        if progress is not None:
            progress(done, len(problem.examples))
    if done == 0:
        raise DataError("no row has a history, so there is no risk; lower min_history or give other rows.")
    return {name: value / done for name, value in total.items()}


@torch.no_grad()
def moved_along(
    problem: Problem, batch: Batch, direction: Vector
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """Return states and item table, and their derivatives along a direction; None where it is zero.

    Networks of linear, normalisation and attention layers take `duals`, others torch's own forward mode.
    """
    moves = {name: direction[name].to(value.dtype) for name, value in problem.chosen.items()}
    try:
        found = problem.at({name: dual(value, moves[name]) for name, value in problem.chosen.items()}, batch)
        (states, d_states), (table, d_table) = (both(one) for one in found)
    except NoRule:
        with warnings.catch_warnings():
            # The first use compiles torch's own rules with a compiler that torch itself calls deprecated.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
            outputs = partial(problem.at, batch=batch)
            (states, table), derivatives = cast(Any, jvp)(outputs, (problem.chosen,), (moves,))
            d_states, d_table = derivatives
    moved = TABLE in problem.names
    return (states, table), (
        torch.zeros_like(states) if d_states is None else d_states,
        d_table if moved else None,
    )


@torch.no_grad()
def slopes(
    problem: Problem,
    loss: TransitionLoss,
    direction: Mapping[str, Tensor],
    *,
    batch_size: int = BATCH,
    rows: LongArray | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    """Return the slope of every row's loss along a direction of the chosen parameters, (n,) float32.

    It equals the inner product of the row's gradient with the direction, but no gradient is formed.

    Args:
        problem: Network and rows.
        loss: The loss of a row.
        direction: One tensor per chosen parameter.
        batch_size: Rows at once; the result does not depend on it.
        rows: Some rows only; the others stay undefined.
        progress: Is told of the rows done.

    Returns:
        NaN where a row has no history, or was not asked for.
    """
    moves = {name: direction[name].to(value.dtype) for name, value in problem.chosen.items()}
    found = np.full(len(problem.examples), np.nan, dtype=np.float32)
    n = len(problem.examples) if rows is None else rows.size
    of_states = loss.slopes(problem.network.items.weight.detach(), moves.get(TABLE))

    def along(batch: Batch) -> FloatArray:
        (states, _), (d_states, _) = moved_along(problem, batch, moves)
        part: FloatArray = of_states(states, d_states, batch.asked).numpy()
        return part

    for batch, part in map_batches(along, problem.batches(batch_size, rows), rows=n, progress=progress):
        found[batch.rows] = part
    return found
