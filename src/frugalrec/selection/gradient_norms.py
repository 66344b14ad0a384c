"""Per-sample gradient norms of LoRA matrices: one forward and one backward pass a batch.

A LoRA layer adds ``scale * B A x`` to its output. With ``delta`` the gradient of a sample's loss with
respect to that output, one row a token, the sample's own gradients are

    dL/dB = scale * sum_t delta_t (A x_t)^T        dL/dA = scale * sum_t (B^T delta_t) x_t^T

Samples do not see each other, so one backward pass of the sum of the losses leaves each sample's
deltas in its own rows. Hooks turn them into norms on the spot: no gradient is kept, and none is
computed below the lowest layer with a chosen matrix (`shared_prefix` saves more there). A LoRA layer
whose B is zero (before tuning) adds nothing and is left out of the computation. The idea of norms
without gradients is Goodfellow's (arXiv 1510.01799).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch

from frugalrec.errors import ConfigError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.last_layer import FeedForward
from frugalrec.llm.prefix import attention_window, common_prefix
from frugalrec.llm.scoring import LOGITS_PER_TOKEN, Query, gathered_logits
from frugalrec.selection.lora_sites import by_module, capture, chosen_parameters, find_sites, idle_layers
from frugalrec.selection.shared_prefix import MIN_TOKENS, SharedPrefix, lowest_layer
from frugalrec.types import FloatArray

log = logging.getLogger(__name__)

Reduction = Literal["mean", "sum"]


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
        chosen = chosen_parameters(self.network, self.parameters)
        self._sites, rest = find_sites(self.network, chosen)
        self._alone = list(chosen.values()) if rest else []
        if rest:
            log.warning(
                "parameters=%r matches %d parameters that are no matrices of plain LoRA layers, such as %s: "
                "every sample gets a pass of its own, which takes several times as long",
                self.parameters,
                len(rest),
                rest[0],
            )
        layers, _ = lowest_layer(self.network, [site.name for site in self._sites])
        self._feed = None if rest else FeedForward.of(layers, [site.module for site in self._sites])
        self._prefix: SharedPrefix | None = None
        self._stack = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(frozen(self.network, self._alone))
            if not rest:
                for layer in idle_layers(self.network):
                    layer.enable_adapters(False)
                    stack.callback(layer.enable_adapters, True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore modes, flags and adapters."""
        self._stack.close()

    def share(self, samples: Sequence[Query]) -> int:
        """Compute what all these samples begin with only once, where that is exact and worth it.

        Args:
            samples: All samples that this object will be called with from now on.

        Returns:
            How many tokens are shared below the lowest chosen layer; 0 where none are.
        """
        self._prefix = None
        layers, lowest = lowest_layer(self.network, [site.name for site in self._sites])
        if self._alone or lowest == 0 or len(samples) < 2:
            return 0
        # The answers' first tokens are read at positions of the rest.
        length = min(common_prefix([s.tokens for s in samples]), *(s.positions[0] for s in samples))
        if length < MIN_TOKENS or max(len(s.tokens) for s in samples) > attention_window(self.network):
            return 0
        if not self._shares_exactly(layers, lowest, samples[0].tokens):
            return 0
        self._prefix = SharedPrefix(self.network, layers, lowest, samples[0].tokens[:length])
        return length

    def _shares_exactly(self, layers: Any, lowest: int, tokens: tuple[int, ...]) -> bool:
        """Try two short texts: networks whose layers ignore a cache or a position are found out here."""
        head, target = tokens[:4], np.array([[tokens[-1]]], dtype=np.int64)
        texts = [head + tokens[-7:-1], head + tokens[-5:-1]]
        pair = [Query(tokens=text, positions=(len(text) - 1,), targets=target) for text in texts]
        whole = self(pair)
        self._prefix = SharedPrefix(self.network, layers, lowest, head)
        try:
            return np.allclose(self(pair), whole, rtol=1e-3 if self.network.dtype == torch.float32 else 0.05)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            self._prefix = None

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
        for site in self._sites:
            site.calls = []
        with ExitStack() as hooks:
            for module, sites in by_module(self._sites).items():
                hook = partial(capture, sites, len(samples), starts, total)
                hooks.callback(module.register_forward_hook(hook).remove)
            loss = self._loss(samples)
        if starts:
            torch.autograd.grad(loss, starts, allow_unused=True)
        for site in self._sites:
            if any(call.delta is not None for call in site.calls):  # one of its uses had no effect
                total += site.squares().to(total.device)
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
        narrow = nullcontext() if self._feed is None else self._feed.only_at(rows, columns)
        with gathered_logits(self.network, rows, columns), narrow:
            inputs = self._inputs(samples)
            logits = (
                self.network(**inputs, use_cache=False).logits
                if self._prefix is None
                else self._prefix.forward(inputs)
            )[0]
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
        shared = compute.share(samples)
        for batch in plan(network, samples, max_batch_tokens, shared=shared):
            norms[batch] = compute([samples[b] for b in batch])
    return norms


def plan(
    network: Any, samples: Sequence[Query], max_batch_tokens: int, *, shared: int = 0
) -> list[list[int]]:
    """Return batches of positions: samples of similar length, within a budget of padded tokens.

    Args:
        network: The network, for the size of its vocabulary.
        samples: The samples.
        max_batch_tokens: The budget; logits count too.
        shared: Tokens at the start of each sample that are computed only once.
    """
    vocabulary = network.get_output_embeddings().weight.shape[0]
    weights = []
    for sample in samples:
        logits = -(-len(sample.positions) * vocabulary // LOGITS_PER_TOKEN)
        weights.append(max(len(sample.tokens) - shared + len(sample.decoder), logits))
    return token_batches(weights, max_batch_tokens)


@contextmanager
def frozen(network: Any, trained: Sequence[torch.Tensor]) -> Iterator[None]:
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


def _padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and what is no padding, both (b, length), padded on the right."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    width = int(lengths.max())
    ids = torch.tensor([[*sequence, *[pad] * (width - len(sequence))] for sequence in sequences])
    return ids, (torch.arange(width)[None] < lengths[:, None]).long()
