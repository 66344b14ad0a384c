"""Curvature of the surrogate's risk: products with its matrix, its largest eigenvalue, damped solves.

``q = (C + damping * largest eigenvalue * I)^-1 v`` by conjugate gradients; C is the Hessian of the mean
loss or its Gauss-Newton part, which has no negative eigenvalue. The damping is relative to the
spectrum, because an absolute one says nothing: DEALRec's published 0.25 is some twenty times the largest
eigenvalue of its matrix, and so leaves v as it was but for a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalrec.errors import ConfigError
from frugalrec.rng import derive_seed
from frugalrec.selection.catalogue_losses import CatalogueLoss, TransitionLoss
from frugalrec.selection.influence import Problem, Vector, moved_along
from frugalrec.types import LongArray

Product = Callable[[Vector], Vector]
"""Multiplies a vector of parameters with the curvature."""

BLOCK = 128
"""Rows of one step: the Hessian needs the logits' whole graph."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What the solver found, with the evidence that it is one."""

    q: Vector
    largest_eigenvalue: float
    damping: float
    """Absolute damping that was added to the diagonal."""
    iterations: int
    residual: float
    """``|v - (C + damping I) q| / |v|``."""
    cosine: float
    """Cosine between q and v: near 1, the curvature changed nothing."""


def hessian_product(problem: Problem, loss: TransitionLoss, rows: LongArray) -> Product:
    """Return products with the Hessian of the mean loss over some rows (double backward)."""
    chosen = problem.chosen

    def product(vector: Vector) -> Vector:
        total = {name: torch.zeros_like(value) for name, value in chosen.items()}
        for batch in problem.batches(BLOCK, rows):
            parameters = {name: value.clone().requires_grad_() for name, value in chosen.items()}
            states, table = problem.at(parameters, batch)
            value = loss.values(states, table, batch.asked).sum()
            first = torch.autograd.grad(
                value,
                list(parameters.values()),
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,  # some parameters serve training only (DCRec)
            )
            slope = torch.stack([(g * vector[n]).sum() for n, g in zip(parameters, first, strict=True)]).sum()
            second = torch.autograd.grad(slope, list(parameters.values()), allow_unused=True)
            _add(total, parameters, second)
        return _scaled(total, 1 / rows.size)

    return product


def gauss_newton_product(problem: Problem, loss: TransitionLoss, rows: LongArray) -> Product:
    """Return products with ``(1/n) sum J^T H J``: J of the scores, H of the loss by the scores.

    Raises:
        ConfigError: If the loss does not look at the whole catalogue.
    """
    if not isinstance(loss, CatalogueLoss):
        raise ConfigError(
            f"curvature 'gauss-newton' needs a deterministic loss, not {loss.name}; take 'hessian'."
        )
    chosen = problem.chosen

    def product(vector: Vector) -> Vector:
        total = {name: torch.zeros_like(value) for name, value in chosen.items()}
        for batch in problem.batches(BLOCK, rows):
            with torch.no_grad():
                (states, table), (d_states, d_table) = moved_along(problem, batch, vector)
                moves = table @ d_states.T
                if d_table is not None:
                    moves += d_table @ states.T
                curved = loss.curve(table @ states.T, moves, batch.asked)
                pulls = ((table.T @ curved).T, curved @ states)
            parameters = {name: value.clone().requires_grad_() for name, value in chosen.items()}
            pairs = [p for p in zip(problem.at(parameters, batch), pulls, strict=True) if p[0].requires_grad]
            found = torch.autograd.grad(
                [output for output, _ in pairs],
                list(parameters.values()),
                [pull for _, pull in pairs],
                allow_unused=True,
            )
            _add(total, parameters, found)
        return _scaled(total, 1 / rows.size)

    return product


def largest_eigenvalue(
    product: Product, like: Vector, *, seed: int = 0, iterations: int = 50, tolerance: float = 1e-3
) -> float:
    """Return the eigenvalue of largest magnitude, by power iteration from a seeded start.

    Args:
        product: Multiplies with the matrix, which is symmetric.
        like: A vector of the right shapes.
        seed: Seed of the start.
        iterations: Products at most.
        tolerance: Relative change at which to stop.
    """
    draw = torch.Generator().manual_seed(derive_seed(seed, "curvature") % 2**63)
    vector = {
        name: torch.randn(value.shape, generator=draw, dtype=torch.float32).to(value.dtype)
        for name, value in like.items()
    }
    vector, value = _scaled(vector, 1 / _norm(vector)), 0.0
    for _ in range(iterations):
        image = product(vector)
        previous, value = value, _dot(vector, image)
        size = _norm(image)
        if size == 0 or abs(value - previous) <= tolerance * abs(value):
            break
        vector = _scaled(image, 1 / size)
    return value


def solve(
    product: Product,
    v: Vector,
    *,
    damping: float = 0.1,
    absolute: bool = False,
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Solution:
    """Return ``q = (C + d I)^-1 v`` by conjugate gradients.

    Args:
        product: Multiplies with C.
        v: The gradient of the risk.
        damping: d as a share of C's largest eigenvalue.
        absolute: Take `damping` itself as d.
        iterations: Products at most.
        tolerance: Relative residual at which to stop.
        seed: Seed of the power iteration.

    Raises:
        ConfigError: If the damping is not above 0, or the damped matrix has a negative direction.
    """
    if not damping > 0:
        raise ConfigError(f"damping must be above 0, not {damping}.")
    top = largest_eigenvalue(product, v, seed=seed)
    added = damping if absolute else damping * abs(top)
    q = {name: torch.zeros_like(value) for name, value in v.items()}
    left, size = dict(v), _norm(v)
    step, before, done = dict(left), _dot(left, left), 0
    while done < iterations and before**0.5 > tolerance * size and size > 0:
        image = _plus(product(step), step, added)
        bend = _dot(step, image)
        if bend <= 0:
            raise ConfigError(
                f"the curvature has a direction below -{added:.3g}, so there is no damped inverse: raise "
                f"damping (now {damping}), or take curvature 'gauss-newton', which has none."
            )
        length = before / bend
        q, left = _plus(q, step, length), _plus(left, image, -length)
        after = _dot(left, left)
        step, before, done = _plus(left, step, after / before), after, done + 1
    share = _norm(q) * size
    return Solution(
        q=q,
        largest_eigenvalue=top,
        damping=added,
        iterations=done,
        residual=before**0.5 / size if size else 0.0,
        cosine=_dot(q, v) / share if share else 1.0,
    )


def _add(total: Vector, names: Vector, found: tuple[Tensor | None, ...]) -> None:
    for name, value in zip(names, found, strict=True):
        if value is not None:
            total[name] += value


def _dot(a: Vector, b: Vector) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def _norm(a: Vector) -> float:
    return math.sqrt(_dot(a, a))


def _scaled(a: Vector, factor: float) -> Vector:
    return {name: value * factor for name, value in a.items()}


def _plus(a: Vector, b: Vector, factor: float) -> Vector:
    return {name: a[name] + factor * b[name] for name in a}
