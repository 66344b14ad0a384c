"""Norms of single rows' loss gradients over all parameters of a surrogate, a batch of rows at a time.

With h the state of a row, W the item table and ``e = softmax(W h) - onehot``, the gradient of the softmax
loss by the table is ``e h^T`` plus the gradients d_t of the embeddings that the network looked up, each
in the line of its item x_t. Hence the squared norm needs no table:

    |e|^2 |h|^2 + sum over items i of (2 e_i h . s_i + |s_i|^2),    s_i = sum of d_t with x_t = i

Everything else the network has is small: each row gets its own copy of those parameters (a view, no
memory), and one vectorised backward pass yields all rows' gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from frugalrec.engine import map_batches
from frugalrec.errors import ConfigError
from frugalrec.selection.influence import BATCH, TABLE, Batch, Problem, Progress, Vector
from frugalrec.types import FloatArray

NUMBERS = 1 << 25
"""The most numbers of single rows' gradients, or of scores, held at once."""


def row_gradient_norms(
    problem: Problem, *, batch_size: int = BATCH, progress: Progress | None = None
) -> FloatArray:
    """Return the norm of each row's gradient, (n,) float32, of the softmax loss over the catalogue.

    Args:
        problem: Network and rows; all parameters of the network count.
        batch_size: The most rows at once; the result does not depend on it.
        progress: Is told of the rows done.

    Returns:
        NaN where a row has no history.

    Raises:
        ConfigError: If the network uses its item table otherwise than by look-ups, so that the closed form
            does not hold; one row is computed plainly to find out.
    """
    others = {name: value for name, value in problem.chosen.items() if name != TABLE}
    largest = max(sum(value.numel() for value in others.values()), problem.network.items.num_embeddings)
    size = max(min(batch_size, NUMBERS // largest), 1)
    n = len(problem.examples)
    norms = np.full(n, np.nan, dtype=np.float32)

    def of_batch(batch: Batch) -> FloatArray:
        squares, pull = table_squares(problem, batch)
        squares += other_squares(problem, others, batch, pull)
        found: FloatArray = squares.sqrt().float().numpy()
        return found

    for first in problem.batches(1, np.flatnonzero(np.diff(problem.examples.indptr))[:1]):
        _check(problem, first, float(of_batch(first)[0]))
    for batch, part in map_batches(of_batch, problem.batches(size), rows=n, progress=progress):
        norms[batch.rows] = part
    return norms


def table_squares(problem: Problem, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the squared norm of each row's gradient by the item table, and its gradient by the state.

    Returns:
        squares: (b,) doubles.
        pull: Gradient of each row's loss by its state, (b, width).
    """
    table = problem.network.items.weight.detach()
    with torch.enable_grad(), _lookups(problem) as lookups:
        states = problem.network.next_states(batch.items, batch.lengths)
        hidden = states.detach()
        errors = torch.softmax(hidden @ table.T, dim=1)
        errors[torch.arange(len(errors)), batch.asked.targets] -= 1
        pull = errors @ table
        embedded = [one for _, one in lookups]
        deltas = torch.autograd.grad(states, embedded, pull, allow_unused=True, materialize_grads=True)
    squares = _lengths(errors).square() * _lengths(hidden).square()
    n_items, width = table.shape
    own = torch.arange(len(errors))
    cells = [(own.view(-1, *[1] * (c.dim() - 1)) * n_items + c).flatten() for c, _ in lookups]
    found, place = torch.unique(torch.cat(cells), return_inverse=True)
    sums = torch.zeros(len(found), width, dtype=torch.float64)
    sums.index_add_(0, place, torch.cat([delta.reshape(-1, width) for delta in deltas]).double())
    row, item = found // n_items, found % n_items
    cross = 2 * errors[row, item].double() * (hidden[row].double() * sums).sum(dim=1)
    squares.index_add_(0, row, cross + sums.square().sum(dim=1))
    return squares.clamp(min=0), pull


def other_squares(problem: Problem, others: Vector, batch: Batch, pull: Tensor) -> Tensor:
    """Return the squared norm of each row's gradient by some parameters, (b,) doubles.

    Networks with operations that cannot be vectorised get a pass a row.

    Args:
        problem: The network.
        others: The parameters that count.
        batch: The rows.
        pull: Gradient of each row's loss by its state, (b, width).
    """

    def pulled(parameters: Vector, items: Tensor, length: Tensor, direction: Tensor) -> Tensor:
        named = {f"network.{name}": value for name, value in parameters.items()}
        states, _ = functional_call(problem, named, (items[None], length[None]))
        product: Tensor = (states[0] * direction).sum()
        return product

    if not others:
        return torch.zeros(len(pull), dtype=torch.float64)
    of_row = grad(pulled)
    rows = (batch.items, batch.lengths, pull)
    # Copies of the parameters, not shared ones: recurrent layers write into products of parameters.
    copies = {name: value.expand(len(pull), *value.shape) for name, value in others.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return _squares(vmap(of_row)(copies, *rows))
    except (NotImplementedError, RuntimeError):
        single = (of_row(others, *row) for row in zip(*rows, strict=True))
        return torch.cat([_squares({name: g[None] for name, g in one.items()}) for one in single])


def _check(problem: Problem, batch: Batch, norm: float) -> None:
    """Compare one row's norm with that of a plain backward pass."""
    chosen = {name: value.clone().requires_grad_() for name, value in problem.chosen.items()}
    with torch.enable_grad():
        states, table = problem.at(chosen, batch)
        loss = torch.nn.functional.cross_entropy(states @ table.T, batch.asked.targets)
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    plain = sum(float(one.double().square().sum()) for one in gradients if one is not None) ** 0.5
    if np.isfinite(plain) and abs(norm - plain) > 1e-3 * plain + 1e-6:
        raise ConfigError(
            f"the gradients of {type(problem.network).__name__} have no closed form (norm {norm:g} in place "
            f"of {plain:g}): it must read its item table by calling `items` only; take another surrogate."
        )


@contextmanager
def _lookups(problem: Problem) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record (item codes, embeddings) of all look-ups in the item table, the embeddings as leaves."""
    found: list[tuple[Tensor, Tensor]] = []

    def leaf(_: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        embedded = output.detach().requires_grad_()
        found.append((inputs[0], embedded))
        return embedded

    hook = problem.network.items.register_forward_hook(leaf)
    try:
        yield found
    finally:
        hook.remove()


def _squares(gradients: Vector) -> Tensor:
    return torch.stack([_lengths(gradient.detach()).square() for gradient in gradients.values()]).sum(dim=0)


def _lengths(values: Tensor) -> Tensor:
    """Return the norm of each row, (b,) doubles, in one pass over memory."""
    lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return lengths.double()
