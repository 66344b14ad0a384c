"""Tensors that carry their derivative along a direction, by the fused kernels of single layers.

`torch.func.jvp` differentiates any network, but takes normalisation and softmax apart into a dozen
passes over memory each, and compiles rules when it is first used. The Jacobians of both are symmetric, so
the fused kernels of their *backward* passes give their forward derivatives too; a linear layer's is two
products that add up in place. The rules here serve networks of linear, normalisation and attention
layers; `NoRule` says that a network holds something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Both = tuple[Tensor, Tensor | None]
"""A value and its derivative; None where it is constant."""


class NoRule(NotImplementedError):  # noqa: N818 - it is a signal, not a fault
    """An operation met a dual tensor and has no rule here."""


class Dual(Tensor):
    """A tensor with a derivative; operations without a rule raise `NoRule`."""

    tangent: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply the rule of `func`."""
        rule = RULES.get(func)
        if rule is None:
            raise NoRule(f"no rule for {getattr(func, '__name__', func)}")
        with torch._C.DisableTorchFunctionSubclass():
            return rule(func, *args, **(kwargs or {}))


def dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    """Return a tensor with a derivative, or as it is where there is none."""
    if tangent is None:
        return value
    found = value.as_subclass(cast(Any, Dual))
    found.tangent = tangent
    return cast(Tensor, found)


def both(tensor: Any) -> Both:
    """Return value and derivative of a tensor that may be dual."""
    if isinstance(tensor, Dual):
        with torch._C.DisableTorchFunctionSubclass():
            return tensor.as_subclass(Tensor), tensor.tangent
    return tensor, None


def _plain(func: Any, tensor: Tensor, *args: Any, **options: Any) -> Any:
    return func(both(tensor)[0], *args, **options)


def _moved(func: Any, tensor: Tensor, *args: Any, **options: Any) -> Any:
    """A rearrangement of the values: the derivatives are rearranged alike."""
    value, tangent = both(tensor)
    if tangent is None:
        raise NoRule(f"no rule for a dual index of {func}")
    found, moved = func(value, *args, **options), func(tangent, *args, **options)
    if isinstance(found, tuple):
        return tuple(dual(*pair) for pair in zip(found, moved, strict=True))
    return dual(found, moved)


def _sum(*parts: Tensor | None) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return None if not found else found[0] if len(found) == 1 else found[0] + found[1]


def _add(_: Any, one: Any, two: Any, alpha: float = 1) -> Tensor:
    if alpha != 1:
        raise NoRule("no rule for a weighted sum")
    (a, da), (b, db) = both(one), both(two)
    value = a + b
    tangent = _sum(da, db)
    return dual(value, None if tangent is None else tangent.expand_as(value))


def _multiply(_: Any, one: Any, two: Any) -> Tensor:
    (a, da), (b, db) = both(one), both(two)
    return dual(a * b, _sum(None if da is None else da * b, None if db is None else a * db))


def _matmul(_: Any, one: Tensor, two: Tensor) -> Tensor:
    (a, da), (b, db) = both(one), both(two)
    tangent = None if da is None else da @ b
    if db is not None:
        tangent = a @ db if tangent is None else tangent.add_(a @ db)
    return dual(a @ b, tangent)


def _linear(_: Any, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (x, dx), (w, dw) = both(states), both(weight)
    b, db = (None, None) if bias is None else both(bias)
    flat = x.reshape(-1, x.shape[-1])
    tangent = None
    if dw is not None:
        tangent = torch.mm(flat, dw.T) if db is None else torch.addmm(db, flat, dw.T)
    elif db is not None:
        tangent = db.expand(flat.shape[0], -1).clone()
    if dx is not None:
        steps = dx.reshape(flat.shape)
        tangent = torch.mm(steps, w.T) if tangent is None else tangent.addmm_(steps, w.T)
    value = functional.linear(x, w, b)
    return dual(value, None if tangent is None else tangent.view(value.shape))


def _normalise(
    _: Any,
    states: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if weight is None or bias is None:
        raise NoRule("no rule for a normalisation without scale and shift")
    (x, dx), (w, dw), (b, db) = both(states), both(weight), both(bias)
    normal, mean, scale = torch.native_layer_norm(x, shape, None, None, eps)
    tangent = None
    if dw is not None:
        tangent = normal * dw if db is None else torch.addcmul(db, normal, dw)
    elif db is not None:
        tangent = db.expand_as(normal).clone()
    if dx is not None:
        backward = torch.ops.aten.native_layer_norm_backward
        step = backward(dx, x, shape, mean, scale, None, None, [True, False, False])[0]
        tangent = step.mul_(w) if tangent is None else tangent.addcmul_(step, w)
    return dual(torch.addcmul(b, normal, w), tangent)


def _softmax(_: Any, logits: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    value, tangent = both(logits)
    if dtype is not None:
        raise NoRule("no rule for a softmax in another number format")
    shares = torch.softmax(value, dim=dim)
    return dual(shares, torch._softmax_backward_data(cast(Tensor, tangent), shares, dim, shares.dtype))


def _relu(_: Any, tensor: Tensor) -> Tensor:
    value, tangent = both(tensor)
    found = torch.relu(value)
    return dual(found, torch.ops.aten.threshold_backward(tangent, found, 0))


def _tanh(_: Any, tensor: Tensor) -> Tensor:
    value, tangent = both(tensor)
    found = torch.tanh(value)
    return dual(found, torch.ops.aten.tanh_backward(tangent, found))


def _masked_fill(_: Any, tensor: Tensor, mask: Tensor, filler: float) -> Tensor:
    value, tangent = both(tensor)
    return dual(value.masked_fill(mask, filler), cast(Tensor, tangent).masked_fill(mask, 0))


def _where(_: Any, condition: Tensor, one: Any, two: Any) -> Tensor:
    (a, da), (b, db) = both(one), both(two)
    found = torch.where(condition, a, b)
    moved = torch.where(condition, 0.0 if da is None else da, 0.0 if db is None else db)
    return dual(found, moved.expand_as(found))


def _embedding(
    _: Any,
    codes: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    **_others: Any,
) -> Tensor:
    if max_norm is not None:
        raise NoRule("no rule for a look-up that shortens vectors")
    table, moves = both(weight)
    return dual(functional.embedding(codes, table), functional.embedding(codes, cast(Tensor, moves)))


def _stack(func: Any, tensors: Any, *args: Any, **options: Any) -> Tensor:
    pairs = [both(tensor) for tensor in tensors]
    moves = [torch.zeros_like(value) if tangent is None else tangent for value, tangent in pairs]
    return dual(func([value for value, _ in pairs], *args, **options), func(moves, *args, **options))


def _pad(func: Any, tensor: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    if mode != "constant":
        return cast(Tensor, _moved(func, tensor, pad, mode))
    found, tangent = both(tensor)
    return dual(func(found, pad, mode, value), func(tangent, pad))


def _rules() -> dict[Any, Callable[..., Any]]:
    properties: Any = [Tensor.shape, Tensor.device, Tensor.dtype, Tensor.ndim, Tensor.is_sparse]
    plain = [one.__get__ for one in properties] + [Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride]
    moved = "__getitem__ view reshape permute transpose unbind flatten unfold contiguous expand sum select"
    rules: dict[Any, Callable[..., Any]] = dict.fromkeys(plain, _plain)
    rules |= dict.fromkeys((getattr(Tensor, name) for name in moved.split()), _moved)
    rules |= {cast(Any, Tensor.T).__get__: _moved}
    rules |= dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add)
    rules |= dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _multiply)
    rules |= dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul)
    rules |= {torch.softmax: _softmax, torch.relu: _relu, torch.tanh: _tanh, torch.where: _where}
    rules |= {torch.stack: _stack, torch.cat: _stack, Tensor.masked_fill: _masked_fill}
    rules |= {functional.linear: _linear, functional.layer_norm: _normalise}
    return rules | {functional.embedding: _embedding, functional.pad: _pad}


RULES = _rules()
"""What is done where an operation meets a dual tensor, by the operation."""
