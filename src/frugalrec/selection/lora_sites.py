"""LoRA layers in a network: which ones are chosen, and hooks that turn their gradients into norms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from frugalrec.errors import ConfigError, ModelError


@dataclass
class _Call:
    """One use of a layer in a forward pass."""

    inputs: torch.Tensor
    """The layer's input x, or A x where x itself is not needed."""
    delta: torch.Tensor | None = None


@dataclass
class Site:
    """One LoRA layer with chosen matrices of one adapter."""

    name: str
    module: Any
    adapter: str
    wants_a: bool = False
    wants_b: bool = False
    calls: list[_Call] = field(default_factory=list)

    @property
    def a(self) -> torch.Tensor:
        """The matrix A, (rank, inputs) float32."""
        return self.module.lora_A[self.adapter].weight.float()  # type: ignore[no-any-return]

    @property
    def b(self) -> torch.Tensor:
        """The matrix B, (outputs, rank) float32."""
        return self.module.lora_B[self.adapter].weight.float()  # type: ignore[no-any-return]

    def squares(self) -> torch.Tensor:
        """Return the squared gradient norms, (batch,) float64, and forget the calls."""
        used = [call for call in self.calls if call.delta is not None]
        self.calls = []
        delta = torch.cat([call.delta for call in used if call.delta is not None], dim=1)
        inputs = torch.cat([call.inputs for call in used], dim=1)
        total = torch.zeros(delta.shape[0], dtype=torch.float64, device=delta.device)
        if self.wants_b:
            total += squared_norms(delta, inputs @ self.a.T if self.wants_a else inputs)
        if self.wants_a:
            total += squared_norms(delta @ self.b, inputs)
        squares: torch.Tensor = total * float(self.module.scaling[self.adapter]) ** 2
        return squares


def squared_norms(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the squared Frobenius norm of ``sum_t left_t right_t^T`` of each sample, (b,) float64.

    The matrix itself is formed, or the two (t, t) Gram matrices are, whichever costs less.

    Args:
        left: (b, t, m).
        right: (b, t, n).
    """
    (_, t, m), n = left.shape, right.shape[2]
    if m * n <= t * (m + n):
        return torch.bmm(left.transpose(1, 2), right).double().square().sum(dim=(1, 2))
    grams = torch.bmm(left, left.transpose(1, 2)).double() * torch.bmm(right, right.transpose(1, 2)).double()
    return grams.sum(dim=(1, 2)).clamp_min(0)


def chosen_parameters(network: Any, pattern: str) -> dict[str, torch.Tensor]:
    """Return the parameters whose name a regular expression finds something in.

    Raises:
        ConfigError: If there is none.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"parameters={pattern!r} is not a regular expression: {error}.") from None
    named = dict(network.named_parameters())
    chosen = {name: parameter for name, parameter in named.items() if compiled.search(name)}
    if not chosen:
        lora = [name for name in named if "lora_" in name]
        hint = f"try lora_, or a part of {lora[-1]!r}" if lora else "the network has no LoRA layers; add some"
        raise ConfigError(f"parameters={pattern!r} matches none of the network's parameters; {hint}.")
    return chosen


def find_sites(network: Any, chosen: dict[str, torch.Tensor]) -> tuple[list[Site], list[str]]:
    """Return the plain LoRA layers with chosen matrices, and the chosen parameters elsewhere."""
    rest = {id(parameter): name for name, parameter in chosen.items()}
    sites = []
    for name, module in network.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if module.merged:
            raise ModelError(f"the LoRA layer {name} is merged into its base weights; unmerge it first.")
        for adapter in module.active_adapters:
            if not _is_plain(module, adapter):
                continue
            wants_a = rest.pop(id(module.lora_A[adapter].weight), None) is not None
            wants_b = rest.pop(id(module.lora_B[adapter].weight), None) is not None
            # Where B is zero, so is the gradient of A.
            wants_a = wants_a and bool(module.lora_B[adapter].weight.any())
            if wants_a or wants_b:
                sites.append(Site(name, module, adapter, wants_a, wants_b))
    return sites, list(rest.values())


def _is_plain(module: Any, adapter: str) -> bool:
    """Return whether an adapter of a layer is two matrices between a linear layer's input and output."""
    return (
        adapter in module.lora_A
        and adapter not in module.lora_variant
        and isinstance(module.lora_A[adapter], torch.nn.Linear)
        and isinstance(module.lora_B[adapter], torch.nn.Linear)
        and module.lora_B[adapter].bias is None
    )


def idle_layers(network: Any) -> list[Any]:
    """Return the LoRA layers that add nothing: all their matrices B are zero."""
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    return [
        layer
        for layer in layers
        if not layer.disable_adapters
        and all(
            _is_plain(layer, name) and not bool(layer.lora_B[name].weight.any())
            for name in layer.active_adapters
        )
    ]


def by_module(sites: Sequence[Site]) -> dict[Any, list[Site]]:
    """Return the sites of each layer."""
    found: dict[Any, list[Site]] = {}
    for site in sites:
        found.setdefault(site.module, []).append(site)
    return found


def capture(
    sites: Sequence[Site],
    batch: int,
    starts: list[torch.Tensor],
    total: torch.Tensor,
    module: Any,
    inputs: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> torch.Tensor:
    """Note a layer's input, and let its output's gradient report back; a forward hook."""
    if not output.requires_grad:  # nothing below is tuned: the graph begins here
        starts.append(output.detach().requires_grad_())
        output = starts[-1].clone()  # networks may change an output in place, but not a leaf
    with torch.no_grad():
        x = _grid(inputs[0], batch, sites[0].name).float()
        for site in sites:
            call = _Call(x if site.wants_a else x @ site.a.T)
            site.calls.append(call)
            report: Any = partial(_arrived, site, call, batch, total)
            output.register_hook(report)  # type: ignore[no-untyped-call]
    return output


def _arrived(site: Site, call: _Call, batch: int, total: torch.Tensor, delta: torch.Tensor) -> None:
    """Note an output's gradient; with the last one of a layer, its norm is complete."""
    with torch.no_grad():
        call.delta = _grid(delta, batch, site.name).float()
        if all(other.delta is not None for other in site.calls):
            total += site.squares().to(total.device)


def _grid(tensor: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """Return a layer's input or gradient as (batch, tokens, width)."""
    if batch > 1 and (tensor.ndim < 3 or tensor.shape[0] != batch):
        raise ModelError(
            f"the layer {name} sees the tokens of all samples in one heap, {tuple(tensor.shape)}. Leave it "
            "out of the LoRA targets, or give max_batch_tokens=1 (one sample a pass)."
        )
    return tensor.reshape(batch, -1, tensor.shape[-1])
