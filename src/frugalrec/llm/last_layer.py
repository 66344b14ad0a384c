"""The last layer's feed-forward part, at the positions that are read and nowhere else.

Attention of the last layer must see all tokens, but behind it every position goes its own way, and only
those whose logits are asked for matter. Exact, forward and backward; about a tenth of a pass with the
gradient of one matrix of the last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_FOUND: WeakKeyDictionary[Any, FeedForward] = WeakKeyDictionary()
"""Network -> feed-forward module of its last layer: whether positions go their own way is tried once."""


class FeedForward:
    """The feed-forward module of a layer: one called `mlp` that treats every position on its own."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._alone: bool | None = None

    @classmethod
    def of(cls, layers: Sequence[Any], chosen: Sequence[Any]) -> FeedForward | None:
        """Return that of the last layer; None where there is none, or a chosen module is a part of it."""
        module = getattr(layers[-1], "mlp", None) if len(layers) else None
        if module is None or {id(part) for part in module.modules()} & {id(one) for one in chosen}:
            return None
        return cls(module)

    @contextmanager
    def only_at(self, rows: Sequence[int], columns: Sequence[int]) -> Iterator[None]:
        """Let the module work at some positions; what it gives at the others is zero.

        Args:
            rows: Samples in the batch, (m,).
            columns: Positions in these samples, (m,).
        """
        forward, own = self.module.forward, self.module.__dict__.get("forward")
        places = torch.tensor(sorted(set(zip(rows, columns, strict=True)))).T

        def narrow(states: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or not self._is_positionwise(forward, states):
                return forward(states, *args, **kwargs)
            at = tuple(places.to(states.device))
            found = forward(states[at][:, None])[:, 0]  # a row each, so that hooks can tell samples apart
            return torch.zeros_like(states).index_put(at, found)

        self.module.forward = narrow
        try:
            yield
        finally:
            del self.module.forward
            if own is not None:
                self.module.forward = own

    def _is_positionwise(self, forward: Any, states: Any) -> bool:
        """Try it once: does a position get the same with others before it and without?"""
        if not isinstance(states, Tensor) or states.ndim != 3 or states.shape[1] < 2:
            return False
        if self._alone is None:
            with torch.no_grad():
                few = states[:1, :4].detach()
                whole, single = forward(few), forward(few[:, -1:])
            near = 1e-4 if states.dtype == torch.float32 else 0.05
            self._alone = isinstance(whole, Tensor) and torch.allclose(
                whole[:, -1:], single, rtol=near, atol=near * float(whole.abs().max())
            )
        return self._alone


def layer_lists(network: Any) -> list[Any]:
    """Return the lists of as many modules as a network has layers; if there is one, these are the layers."""
    n_layers = int(network.config.get_text_config().num_hidden_layers)
    lists = (module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    return [found for found in lists if len(found) == n_layers]


def feed_forward_of(network: Any) -> FeedForward | None:
    """Return that of a network's last layer; None where its layers, or a part called `mlp`, are not found."""
    lists = layer_lists(network)
    module = getattr(lists[0][-1], "mlp", None) if len(lists) == 1 else None
    if module is None:
        return None
    if network not in _FOUND or _FOUND[network].module is not module:
        _FOUND[network] = FeedForward(module)
    return _FOUND[network]
