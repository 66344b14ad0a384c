"""Root-mean-square norms with frozen weights, in half the passes over memory, forward and backward.

Transformers writes such a norm as five tensor operations; autograd keeps four of their results and
takes nine more to go back. As one function of autograd it keeps its input and one number for each token.
A norm is found by what it computes, not by its name: a module with one weight vector and a small
constant is taken only if its own code gives the same values and gradients on random states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""What architectures call the constant below the root."""
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@contextmanager
def fast_norms(model: Any) -> Iterator[int]:
    """Let the frozen root-mean-square norms of a network compute the fast way, on the CPU, for a while.

    Args:
        model: Any network; what is not such a norm is left alone.

    Yields:
        The number of norms that may compute the fast way.
    """
    norms = [(module, eps) for module in model.modules() if (eps := _epsilon(module)) is not None]
    with ExitStack() as changes:
        for norm, eps in norms:
            own = norm.forward
            changes.callback(give_back, norm, norm.__dict__.get("forward"))
            norm.forward = partial(_forward, norm, own, eps)
        yield len(norms)


def give_back(module: Any, forward: Any) -> None:
    """Restore a module's own `forward`, or, for None, that of its class."""
    del module.forward
    if forward is not None:
        module.forward = forward


class _Norm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps) over the last dimension, for frozen w; bfloat16 in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Compute y in the type of x."""
        states = _wide(x)
        norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (states * inverse).to(x.dtype).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        x, weight, inverse = ctx.saved_tensors
        states, upper = _wide(x), _wide(grad * weight)
        along = (upper * states).sum(dim=-1, keepdim=True)
        along = along.mul_(inverse).mul_(inverse).div_(-x.shape[-1])
        return upper.addcmul_(states, along).mul_(inverse).to(x.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _forward(norm: Any, own: Any, eps: float, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute a norm the fast way, or its own way where the fast one does not apply."""
    plain = not args and not kwargs and isinstance(x, Tensor) and x.device.type == "cpu"
    if not plain or norm.weight.requires_grad or torch.is_autocast_enabled("cpu"):
        return own(x, *args, **kwargs)
    if x.dtype != norm.weight.dtype:
        return own(x)
    return _Norm.apply(x, norm.weight, eps)  # type: ignore[no-untyped-call]


def _epsilon(module: Any) -> float | None:
    """Return the constant below the root if the module is a frozen root-mean-square norm, else None."""
    eps = next((value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    own = dict(module.named_parameters())
    weight = own.get("weight")
    if eps is None or len(own) != 1 or weight is None or weight.ndim != 1 or weight.requires_grad:
        return None
    if weight.device.type != "cpu" or weight.dtype not in TOLERANCES or next(module.children(), None):
        return None
    return eps if _agrees(module, weight, eps) else None


def _agrees(module: Any, weight: Tensor, eps: float) -> bool:
    """Try the module on random states: does it give the values and gradients of the fast way?"""
    rng = torch.Generator().manual_seed(0)
    states, grad = (torch.randn(3, weight.numel(), generator=rng).to(weight.dtype) for _ in range(2))
    states[0] *= 0.01  # small enough that the constant counts
    found = []
    with torch.enable_grad():
        for run in (module.forward, lambda x: _Norm.apply(x, weight, eps)):  # type: ignore[no-untyped-call]
            x = states.clone().requires_grad_()
            try:
                y = run(x)
                found.append((y.detach(), *torch.autograd.grad(y, x, grad)))
            except (RuntimeError, TypeError, AttributeError):  # it wants something else than states
                return False
    near = TOLERANCES[weight.dtype]
    return all(
        theirs.dtype == ours.dtype
        and torch.allclose(theirs, ours, rtol=near, atol=near * float(theirs.abs().max()))
        for theirs, ours in zip(*found, strict=True)
    )
