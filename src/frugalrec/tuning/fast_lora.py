"""Faster LoRA layers on a CPU: PEFT's own loss and gradients (float32), in fewer passes over memory.

A LoRA layer computes y = W x + s B A D(x), with D the dropout. PEFT does it in nine tensor operations,
each with a result of its own, and autograd keeps most of them. Here it is one autograd function: the
base product, a low-rank product added in place, and in the backward pass the same in reverse; only D(x)
and the rank-r states are kept. No weight is copied: to merge W + s B A on the fly was measured to be no
faster, since the low-rank products are needed for the gradients anyway.

Dropout is most of what a plain step loses. PyTorch draws one number for each element that a LoRA layer
reads, on one thread however many there are: with all linear layers of a 135M model tuned, 30 million
draws for 200 tokens, about a quarter of a second. The gaps between dropped elements are geometric, so
drawing the gaps gives the same distribution with 20 times fewer draws at p = 0.05. The draws are others
than PEFT's, as with another seed; with no dropout the results are the same up to rounding in float32.
In bfloat16 they are close, not the same: A and B are rounded to bfloat16 for the low-rank products, where
PEFT computes these in float32.

What is not a plain LoRA layer (DoRA and other variants, several active adapters, biases in the
adapter, merged weights, quantised or tuned base weights, hooks, autocast, GPUs) runs PEFT's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable

from frugalrec.tuning.fast_norm import fast_norms, give_back

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class Replaced(NamedTuple):
    """How many modules may compute the fast way."""

    lora: int
    norms: int


@contextmanager
def fast_lora(model: Any) -> Iterator[Replaced]:
    """Let a PEFT model's LoRA layers and frozen norms compute the fast way; theirs comes back at the end.

    Parameters, their names and what is saved stay PEFT's. What cannot be computed so falls back at
    every call; see the description of this module and of `fast_norm`.

    Args:
        model: A network with PEFT's LoRA layers, on a CPU; on a GPU nothing changes.

    Yields:
        How many modules may compute the fast way.
    """
    layers = [module for module in model.modules() if type(module) is LoraLinear]
    with ExitStack() as changes:
        for layer in layers:
            own = layer.forward
            changes.callback(give_back, layer, layer.__dict__.get("forward"))
            layer.forward = partial(_forward, layer, own)
        yield Replaced(lora=len(layers), norms=changes.enter_context(fast_norms(model)))


def dropped(n: int, p: float) -> Tensor:
    """Return the sorted positions, out of n, that are dropped with probability p each, independently.

    Args:
        n: Number of positions.
        p: Above 0 and below 1.
    """
    per_log = 1.0 / math.log1p(-p)
    parts: list[Tensor] = []
    last = -1
    while last < n - 1:
        expected = (n - 1 - last) * p
        count = int(expected + 6 * math.sqrt(expected) + 8)
        # How many are kept before the next one is dropped: geometric, from a uniform number each.
        kept = torch.rand(count, dtype=torch.float64).neg_().log1p_().mul_(per_log)
        # A gap longer than what is left ends the row all the same; cut off, it cannot overflow.
        parts.append(kept.clamp_(max=n).long().add_(1).cumsum(0).add_(last))
        last = int(parts[-1][-1])
    positions = torch.cat(parts)
    return positions[: int(torch.searchsorted(positions, n))]


class _LoraProduct(torch.autograd.Function):
    """y = W x + b + s B A D(x) for frozen W and b, all tokens of a batch as the rows of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float
    ) -> Tensor:
        """Compute y; `p` is the rate of dropout, 0 for none."""
        rows = x.reshape(-1, x.shape[-1])
        seen, lost = rows, None
        if p:
            lost = dropped(rows.numel(), p)
            seen = rows.flatten().clone().index_fill_(0, lost, 0.0).view(rows.shape)
        low = torch.mm(seen, A.to(x.dtype).t())  # (tokens, rank)
        y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
        ctx.scale = scale / (1.0 - p)
        y.addmm_(low, B.to(x.dtype).t(), alpha=ctx.scale)
        ctx.save_for_backward(seen, weight, A, B, low, lost)
        ctx.shape = x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B, as far as they are asked for."""
        seen, weight, A, B, low, lost = ctx.saved_tensors
        upper = grad.reshape(-1, grad.shape[-1])
        back = torch.mm(upper, B.to(seen.dtype)).mul_(ctx.scale)  # (tokens, rank)
        to_x = to_A = to_B = None
        if ctx.needs_input_grad[4]:
            # This order of factors reads the long matrix row by row; the other takes twice as long.
            to_B = torch.mm(low.t(), upper).t().mul(ctx.scale).to(B.dtype)
        if ctx.needs_input_grad[3]:
            to_A = torch.mm(back.t(), seen).to(A.dtype)
        if ctx.needs_input_grad[0]:
            to_x = torch.mm(back, A.to(seen.dtype))
            if lost is not None:
                to_x.view(-1).index_fill_(0, lost, 0.0)
            to_x = to_x.addmm_(upper, weight).view(ctx.shape)
        return to_x, None, None, to_A, to_B, None, None


def _forward(layer: Any, own: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute a LoRA layer the fast way, or its own way where the fast one does not apply."""
    name = None if args or kwargs else _adapter(layer)
    if name is None or not _is_plain(layer.base_layer, x):
        return own(x, *args, **kwargs)
    base, A, B = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    dropout = layer.lora_dropout[name]
    p = float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0
    factors = (A, B, layer.scaling[name], p)
    return _LoraProduct.apply(x, base.weight, base.bias, *factors)  # type: ignore[no-untyped-call]


def _adapter(layer: Any) -> str | None:
    """Return the name of the layer's one active adapter if it is plain LoRA."""
    if layer.disable_adapters or layer.merged or layer.fan_in_fan_out:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or layer.lora_bias[active[0]]:
        return None
    name: str = active[0]
    low, dropout = (layer.lora_A[name], layer.lora_B[name]), layer.lora_dropout[name]
    if any(type(part) is not torch.nn.Linear for part in low) or any(map(_is_hooked, (*low, dropout))):
        return None
    if type(dropout) is torch.nn.Dropout and 0 <= dropout.p < 1:
        return name
    return name if type(dropout) is torch.nn.Identity else None


def _is_plain(base: Any, x: Any) -> bool:
    """Return whether the base layer is a frozen matrix on the CPU that takes x as it is."""
    return (
        type(base) is torch.nn.Linear
        and not _is_hooked(base)
        and isinstance(x, Tensor)
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype in DTYPES
        and x.dtype == base.weight.dtype
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not torch.is_autocast_enabled("cpu")
    )


def _is_hooked(module: Any) -> bool:
    """Return whether somebody wants to see what the module reads or writes, or has replaced its code."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
