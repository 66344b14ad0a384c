"""Per-sample gradient norms of LoRA matrices: one forward and one backward pass a batch.

A LoRA layer adds ``scale * B A x`` to its output. With ``delta`` the gradient of a sample's loss with
respect to that output, one row a token, the sample's own gradients are

    dL/dB = scale * sum_t delta_t (A x_t)^T        dL/dA = scale * sum_t (B^T delta_t) x_t^T

Samples do not see each other, so one backward pass of the sum of the losses leaves each sample's
deltas in its own rows. Hooks turn them into norms on the spot: no gradient is kept, and none is
computed below the lowest layer with a chosen matrix. A LoRA layer whose B is zero (before tuning)
adds nothing and is left out of the computation. Known as ghost norms (Goodfellow, arXiv 1510.01799).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.scoring import LOGITS_PER_TOKEN, Query, gathered_logits
from frugalrec.types import FloatArray

Reduction = Literal["mean", "sum"]


@dataclass
class _Call:
    """One use of a layer in a forward pass."""

    inputs: torch.Tensor
    """The layer's input x, or A x where x itself is not needed."""
    delta: torch.Tensor | None = None


@dataclass
class _Site:
    """One LoRA layer with chosen matrices of one adapter."""

    name: str
    module: Any
    adapter: str
    wants_a: bool = False
    wants_b: bool = False
    calls: list[_Call] = field(default_factory=list)

    @property
    def a(self) -> torch.Tensor:
        return self.module.lora_A[self.adapter].weight.float()  # type: ignore[no-any-return]

    @property
    def b(self) -> torch.Tensor:
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


class GradientNorms:
    """Computes per-sample gradient norms; a context manager, which leaves the network as it was.

    While it is open the network is in evaluation mode (no dropout) and all its parameters are frozen.
    Parameters that are not the matrices of plain LoRA layers (DoRA, biases, embeddings, unfrozen base
    weights) have no closed form here; where some are chosen, each sample gets a pass of its own.

    >>> with GradientNorms(network, parameters="lora_B") as norms:  # doctest: +SKIP
    ...     norms(samples)
    """

    def __init__(
        self, network: Any, *, parameters: str = "lora_", reduction: Reduction = "mean", pad: int = 0
    ) -> None:
        """Store the options.

        Args:
            network: A transformers causal or encoder-decoder network with LoRA layers (PEFT).
            parameters: Regular expression, searched in parameter names, of the parameters whose
                gradient counts.
            reduction: A sample's loss is the `mean` or the `sum` over its answer's tokens.
            pad: The token that fills short rows.
        """
        self.network = network
        self.parameters = parameters
        self.reduction = reduction
        self.pad = pad

    def __enter__(self) -> Self:
        """Find the chosen parameters and freeze the network.

        Raises:
            ConfigError: If no parameter is chosen.
            ModelError: If a LoRA layer is merged into its base weights.
        """
        if self.reduction not in ("mean", "sum"):
            raise ConfigError(f"unknown reduction {self.reduction!r}; choose mean or sum.")
        chosen = _chosen(self.network, self.parameters)
        self._sites, rest = _sites(self.network, chosen)
        self._alone = list(chosen.values()) if rest else []
        self._stack = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(_frozen(self.network, self._alone))
            if not rest:
                for layer in _idle_layers(self.network):
                    layer.enable_adapters(False)
                    stack.callback(layer.enable_adapters, True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore modes, flags and adapters."""
        self._stack.close()

    @property
    def closed_form(self) -> bool:
        """Whether a batch takes one pass; else each sample takes one."""
        return not self._alone

    def __call__(self, samples: Sequence[Query]) -> FloatArray:
        """Return the gradient norm of each sample's loss, (n,) float32; all samples in one batch.

        A norm is NaN or infinite where the network's numbers are.
        """
        with torch.enable_grad():
            squares = self._batch(samples) if self.closed_form else self._loop(samples)
        norms: FloatArray = squares.sqrt().float().cpu().numpy()
        return norms

    def _batch(self, samples: Sequence[Query]) -> torch.Tensor:
        total = torch.zeros(len(samples), dtype=torch.float64, device=self.network.device)
        starts: list[torch.Tensor] = []
        with ExitStack() as hooks:
            for module, sites in _by_module(self._sites).items():
                hook = partial(_capture, sites, len(samples), starts, total)
                hooks.callback(module.register_forward_hook(hook).remove)
            loss = self._loss(samples)
        if starts:
            torch.autograd.grad(loss, starts, allow_unused=True)
        for site in self._sites:
            if any(call.delta is not None for call in site.calls):  # one of its uses had no effect
                total += site.squares().to(total.device)
            site.calls = []
        return total

    def _loop(self, samples: Sequence[Query]) -> torch.Tensor:
        squares = []
        for sample in samples:
            gradients = torch.autograd.grad(self._loss([sample]), self._alone, allow_unused=True)
            squares.append(sum(g.double().square().sum().cpu() for g in gradients if g is not None))
        return torch.tensor(squares, dtype=torch.float64)

    def _loss(self, samples: Sequence[Query]) -> torch.Tensor:
        """Return the sum of the samples' losses; only the answers' positions reach the output layer."""
        device = self.network.device
        rows = [r for r, sample in enumerate(samples) for _ in sample.positions]
        columns = [position for sample in samples for position in sample.positions]
        targets = torch.from_numpy(np.concatenate([sample.targets[:, 0] for sample in samples])).to(device)
        with gathered_logits(self.network, rows, columns):
            logits = self.network(**self._inputs(samples), use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        if self.reduction == "sum":
            return losses.sum()
        counts = torch.tensor([len(sample.positions) for sample in samples], device=device)
        return (losses / counts[torch.tensor(rows, device=device)]).sum()

    def _inputs(self, samples: Sequence[Query]) -> dict[str, torch.Tensor]:
        ids, mask = _padded([sample.tokens for sample in samples], self.pad)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.network.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = _padded([sample.decoder for sample in samples], self.pad)[0]
        return {name: tensor.to(self.network.device) for name, tensor in inputs.items()}


def gradient_norms(
    network: Any,
    samples: Sequence[Query],
    *,
    parameters: str = "lora_",
    reduction: Reduction = "mean",
    pad: int = 0,
    max_batch_tokens: int = 1024,
) -> FloatArray:
    """Return the gradient norm of each sample's loss, (n,) float32, in the order of `samples`.

    Args:
        network: See `GradientNorms`, as for `parameters`, `reduction` and `pad`.
        samples: Texts, and where their answers stand; `targets` are (n_positions, 1).
        parameters: Which parameters' gradient counts.
        reduction: Mean or sum over the answer's tokens.
        pad: The token that fills short rows.
        max_batch_tokens: Padded tokens in one pass.
    """
    norms = np.full(len(samples), np.nan, dtype=np.float32)
    with GradientNorms(network, parameters=parameters, reduction=reduction, pad=pad) as compute:
        for batch in plan(network, samples, max_batch_tokens):
            norms[batch] = compute([samples[b] for b in batch])
    return norms


def plan(network: Any, samples: Sequence[Query], max_batch_tokens: int) -> list[list[int]]:
    """Return batches of positions: samples of similar length, within a budget of padded tokens."""
    vocabulary = network.get_output_embeddings().weight.shape[0]
    weights = []
    for sample in samples:
        logits = -(-len(sample.positions) * vocabulary // LOGITS_PER_TOKEN)
        weights.append(max(len(sample.tokens) + len(sample.decoder), logits))
    return token_batches(weights, max_batch_tokens)


def _chosen(network: Any, pattern: str) -> dict[str, torch.Tensor]:
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


def _sites(network: Any, chosen: dict[str, torch.Tensor]) -> tuple[list[_Site], list[str]]:
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
                sites.append(_Site(name, module, adapter, wants_a, wants_b))
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


def _idle_layers(network: Any) -> list[Any]:
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


@contextmanager
def _frozen(network: Any, trained: Sequence[torch.Tensor]) -> Iterator[None]:
    """Freeze all parameters but some, without dropout; modes and flags are restored."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _by_module(sites: Sequence[_Site]) -> dict[Any, list[_Site]]:
    found: dict[Any, list[_Site]] = {}
    for site in sites:
        found.setdefault(site.module, []).append(site)
    return found


def _capture(
    sites: Sequence[_Site],
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
            output.register_hook(partial(_arrived, site, call, batch, total))
    return output


def _arrived(site: _Site, call: _Call, batch: int, total: torch.Tensor, delta: torch.Tensor) -> None:
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


def _padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and what is no padding, both (b, length), padded on the right."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    width = int(lengths.max())
    ids = torch.tensor([[*sequence, *[pad] * (width - len(sequence))] for sequence in sequences])
    return ids, (torch.arange(width)[None] < lengths[:, None]).long()
