"""Layers below the tuned ones read every row once, and not again in each epoch.

With `TuningOptions.layers`, what enters the lowest tuned layer is the same in every epoch. So it is
computed once a row and kept, and a step runs the tuned layers only. Causal networks; the numbers are
those of whole passes, except that dropout of the network's own, where it has any, stays off below.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from frugalrec.llm.batching import token_batches
from frugalrec.llm.half_passes import entering, run_below
from frugalrec.llm.scoring import Query
from frugalrec.tuning.lora import layer_list
from frugalrec.tuning.processes import unwrapped
from frugalrec.tuning.task import VALIDATION_TOKENS, Item, Task, evaluated

log = logging.getLogger(__name__)

BUDGET_BYTES = 2 << 30
"""Memory that kept states may take; rows of more are read in each epoch."""
STATES = "entering_states"


class KeptStates(Task[Item]):
    """A task whose rows enter the network half-way; use `keep_states`."""

    def __init__(self, task: Task[Item], stack: Any, cut: int) -> None:
        self.task, self.stack, self.cut = task, stack, cut
        self.pairs = False
        # By identity: a row has no other name, and the caller keeps them all.
        self.states: dict[int, torch.Tensor] = {}

    def read(self, model: Any, items: Sequence[Item]) -> None:
        """Run the layers below the cut on some items, and keep what comes out."""

        def look(_: Any, __: Any, output: Any) -> None:
            self.pairs = isinstance(output, tuple)

        def below(network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return run_below(self.stack, self.cut, lambda: self.task.loss(network, batch))

        hook = self.stack[0].register_forward_hook(look)
        try:
            for rows in token_batches([self.length(item) for item in items], VALIDATION_TOKENS):
                part = [items[row] for row in rows]
                found = evaluated(model, self.task.collate(part), below).cpu()
                for item, states in zip(part, found, strict=True):
                    self.states[id(item)] = states[: self.length(item)].clone()
        finally:
            hook.remove()

    def length(self, item: Item) -> int:
        """Return the tokens of an item."""
        return self.task.length(item)

    def weight(self, item: Item) -> float:
        """Return how much an item counts."""
        return self.task.weight(item)

    def collate(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch, and what enters the cut, (batch, length, width)."""
        batch = self.task.collate(items)
        kept = [self.states[id(item)] for item in items]
        states = kept[0].new_zeros(len(items), batch["input_ids"].shape[1], kept[0].shape[1])
        for row, found in enumerate(kept):
            states[row, : found.shape[0]] = found
        return {**batch, STATES: states}

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of a batch, from the cut on."""
        rest = {name: tensor for name, tensor in batch.items() if name != STATES}
        with entering(self.stack, self.cut, batch[STATES], pairs=self.pairs):
            return self.task.loss(model, rest)

    def judge(self, model: Any, items: Sequence[Item]) -> dict[str, float]:
        """Return validation figures; a task that has its own way runs whole passes."""
        if _is_judged_by_loss(self.task):
            return super().judge(model, items)
        return self.task.judge(model, items)

    def queries(self, items: Sequence[Item]) -> list[Query]:
        """Return what inference would read."""
        return self.task.queries(items)


def _is_judged_by_loss(task: Task[Any]) -> bool:
    """Return whether validation reads items as training does, so that their states are of use."""
    return type(task).judge is Task.judge


def keep_states(
    task: Task[Item], model: Any, layers: int, items: Sequence[Item], validation: Sequence[Item] = ()
) -> Task[Item]:
    """Return a task that runs the tuned layers only, or the same task where that cannot be.

    Args:
        task: What is learned.
        model: The network with LoRA matrices in its top layers.
        layers: How many of them.
        items: Training items.
        validation: Validation items; those of a task that judges in its own way are not read.
    """
    network = unwrapped(model).get_base_model()
    if network.config.is_encoder_decoder:
        return task
    stack = layer_list(network)
    cut = len(stack) - layers
    if cut == 0:  # there is nothing below
        return task
    weight = network.get_input_embeddings().weight
    sets = [items, validation] if validation and _is_judged_by_loss(task) else [items]
    tokens = sum(task.length(item) for part in sets for item in part)
    size = tokens * weight.shape[1] * weight.element_size()
    if size > BUDGET_BYTES:
        log.info("rows are read in each epoch: their states would take %d MiB", size >> 20)
        return task
    kept = KeptStates(task, stack, cut)
    for part in sets:
        kept.read(model, part)
    return kept
