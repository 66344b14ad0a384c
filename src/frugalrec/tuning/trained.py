"""What training changes of a network, whatever that is: LoRA matrices, learned prompts, or all weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from frugalrec.errors import ModelError


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that get gradients, by name; a shared one once."""
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trained_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy parameters back into the model.

    Raises:
        ModelError: If they are not exactly those that the model trains.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if other := sorted(own.keys() ^ weights.keys()):
        raise ModelError(
            f"the saved weights are not those that are trained: {other[0]} ({len(other)} differ). Remove the "
            "checkpoints, and train from the start."
        )
    for name, parameter in own.items():
        parameter.copy_(weights[name])
