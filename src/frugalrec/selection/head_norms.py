"""Effort at an item head: gradient norms of prompts' losses, in closed form, a batch at a time.

The score of `Effort` for the recommender of `frugalrec.tuning.item_head`: the norm of the gradient, by
the LoRA matrices at their start, of the loss that the head is going to be tuned by.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frugalrec.errors import ConfigError
from frugalrec.llm.batching import token_batches
from frugalrec.selection.gradient_norms import frozen
from frugalrec.selection.lora_sites import by_module, capture, chosen_parameters, find_sites
from frugalrec.tuning.item_head import ItemHead, Prompts
from frugalrec.types import FloatArray


def head_gradient_norms(
    head: ItemHead,
    prompts: Prompts,
    targets: NDArray[Any],
    *,
    parameters: str = "lora_",
    max_batch_tokens: int = 2048,
) -> FloatArray:
    """Return the norm of each prompt's loss gradient, (n,) float32.

    Args:
        head: A head at its start, or tuned.
        prompts: The prompts.
        targets: Next items, (n,).
        parameters: Regular expression, searched in the names of LoRA matrices: whose gradient counts.
        max_batch_tokens: Padded tokens in one pass; the result does not depend on it.

    Raises:
        ConfigError: If a chosen parameter is no LoRA matrix.
    """
    network = head.layers.network
    sites, others = find_sites(network, chosen_parameters(network, parameters))
    if others:
        raise ConfigError(f"parameters={parameters!r} also matches {others[0]}, which is no LoRA matrix.")
    wanted = torch.from_numpy(np.asarray(targets).astype(np.int64))
    norms = np.zeros(len(prompts), dtype=np.float32)
    with frozen(network, []):
        for rows in token_batches(prompts.states.lengths.tolist(), max_batch_tokens):
            total = torch.zeros(len(rows), dtype=torch.float64, device=network.device)
            starts: list[torch.Tensor] = []
            with ExitStack() as hooks:
                for module, here in by_module(sites).items():
                    hook = partial(capture, here, len(rows), starts, total)
                    hooks.callback(module.register_forward_hook(hook).remove)
                loss = head.losses(prompts, rows, wanted[rows]).sum()
            if starts:
                torch.autograd.grad(loss, starts, allow_unused=True)
            norms[rows] = total.sqrt().float().cpu().numpy()
    return norms
