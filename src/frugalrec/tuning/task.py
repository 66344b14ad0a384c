"""What a training run learns: what a row is, how rows become a batch, what their loss is, who judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from frugalrec.llm.batching import token_batches
from frugalrec.llm.scoring import Query

Item = TypeVar("Item")

VALIDATION_TOKENS = 2048
"""Padded tokens in one pass over validation rows."""


class Task(ABC, Generic[Item]):
    """What is learned: the items of a training set, and the loss of some of them."""

    @abstractmethod
    def length(self, item: Item) -> int:
        """Return the tokens that computing an item costs."""

    def weight(self, item: Item) -> float:
        """Return how much an item counts in the mean loss of a batch; default: all the same."""
        return 1.0

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch, on the CPU."""

    @abstractmethod
    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of a batch, by weight; `model` may be wrapped (see `processes.unwrapped`)."""

    @abstractmethod
    def queries(self, items: Sequence[Item]) -> list[Query]:
        """Return what inference would read of these items: the saved adapter is checked with it."""

    def judge(self, model: Any, items: Sequence[Item]) -> dict[str, float]:
        """Return validation figures, with `loss`, the mean over items by weight, without dropout."""
        total = weight = 0.0
        for rows in token_batches([self.length(item) for item in items], VALIDATION_TOKENS):
            part = [items[row] for row in rows]
            share = sum(map(self.weight, part))
            if share:
                total += share * float(evaluated(model, self.collate(part), self.loss))
                weight += share
        return {"loss": total / weight}


@torch.no_grad()
def evaluated(
    model: Any,
    batch: dict[str, torch.Tensor],
    compute: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
) -> torch.Tensor:
    """Return what `compute` makes of a batch on the model's device, without dropout and gradients."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        return compute(model, {name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        model.train(was_training)
