"""Half a forward pass: the layers below a number only, or those from it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass half-way
    """The lower layers are done."""


def run_below(layers: Any, number: int, run: Callable[[], Any]) -> torch.Tensor:
    """Return what would enter a layer; it and those above it do not run.

    Args:
        layers: The network's layers.
        number: The first layer that does not run.
        run: Starts a forward pass of the network.
    """
    seen: list[torch.Tensor] = []

    def stop(_: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Stop

    hook = layers[number].register_forward_pre_hook(stop)
    try:
        run()
    except _Stop:
        pass
    finally:
        hook.remove()
    return seen[0]


@contextmanager
def entering(layers: Any, number: int, states: torch.Tensor, *, pairs: bool) -> Iterator[None]:
    """Let the layers below a number do nothing, and `states` enter that one.

    Args:
        layers: The network's layers.
        number: The first layer that runs.
        states: What it reads.
        pairs: Whether layers wrap their output in a tuple, as older architectures do.
    """

    def enter(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (states, *args[1:])

    def skip(states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (states,) if pairs else states

    with ExitStack() as changes:
        changes.callback(layers[number].register_forward_pre_hook(enter).remove)
        for layer in layers[:number]:
            changes.callback(_give_back, layer, layer.__dict__.get("forward"))
            layer.forward = skip
        yield


def _give_back(layer: Any, forward: Any) -> None:
    """Restore a layer's own `forward`, or that of its class."""
    del layer.forward
    if forward is not None:
        layer.forward = forward
