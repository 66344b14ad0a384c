"""DCRec: a sequence view and two item-graph views, aligned by a contrast that weighs conformity.

After Debiased Contrastive Learning for Sequential Recommendation (Yang et al., WWW 2023, arXiv
2303.11780). Three views of a user's state: what attention makes of the sequence, and what light graph
convolutions make of its last item, over the graph of transitions (which item follows which) and over
the graph of co-interactions (which items have users in common). Attention over the three gives the state that
scores items. A contrastive loss pulls the sequence view towards the graph views of the same state,
and a learned weight per sample, its conformity, says towards which: the crowd's view (co-interactions)
where the sample looks conforming, its own path (transitions) where it looks like interest.

This follows the published ingredients, not the published formulas. What is simpler or different:

- Attention is causal and every position predicts its next item by the full softmax; the contrast is
  taken once per window, at its last position.
- Conformity is a logistic function of three channels: agreement of the sequence with the crowd's view,
  agreement of both graph views, and overlap of the item's neighbourhoods in both graphs. The channels
  are inputs only: embeddings cannot lower the loss by pretending to conform.
- The spread of the weights is kept from collapsing by the divergence of their mean and variance in a
  batch from a normal prior.
- Convolutions keep the strongest neighbours of each item only (`graphs.convolution`), are normalised, and
  drop values as layers do, not edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, embedding, normalize

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.recommenders import graphs
from frugalrec.recommenders.batching import Windows, grouped_positions, position_states
from frugalrec.recommenders.networks import SASRecNetwork, SequenceNetwork
from frugalrec.recommenders.sequential import AttentionRecommender
from frugalrec.recommenders.training import StepFunction
from frugalrec.types import LongArray


class DCRecNetwork(SASRecNetwork):
    """SASRec's attention as the sequence view, two graph views, and attention over the three.

    `encode` gives the sequence view; `forward` and `next_states` give the states that score items.
    """

    links: Tensor
    strengths: Tensor
    overlap: Tensor

    def __init__(
        self,
        n_items: int,
        *,
        embedding_size: int,
        layers: int,
        heads: int,
        dropout: float,
        max_length: int,
        neighbours: int,
    ) -> None:
        super().__init__(
            n_items,
            embedding_size=embedding_size,
            layers=layers,
            heads=heads,
            dropout=dropout,
            max_length=max_length,
        )
        self.register_buffer("links", torch.zeros(n_items, 2, neighbours, dtype=torch.int64))
        self.register_buffer("strengths", torch.zeros(n_items, 2, neighbours))
        self.register_buffer("overlap", torch.zeros(n_items))
        self.norm_transitions = nn.LayerNorm(embedding_size)
        self.norm_together = nn.LayerNorm(embedding_size)
        self.compare = nn.Linear(embedding_size, embedding_size)
        self.choose = nn.Linear(embedding_size, 1, bias=False)
        self.judge = nn.Linear(3, 1)
        self.initialise()

    def connect(self, train: Dataset, layers: int) -> None:
        """Take the two graphs from the training data."""
        width = self.links.shape[2]
        found = [
            graphs.convolution(counts, layers, width)
            for counts in (graphs.transitions(train), graphs.co_interactions(train))
        ]
        self.links.copy_(torch.from_numpy(np.stack([links for links, _ in found], axis=1)))
        self.strengths.copy_(torch.from_numpy(np.stack([strengths for _, strengths in found], axis=1)))
        self.overlap.copy_(torch.from_numpy(graphs.overlap(*(graphs.matrix(*one) for one in found))))

    def graph_views(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of items by transitions and by co-interactions, each (..., width)."""
        around = self.items(self.links[items])  # (..., 2, neighbours, width)
        mixed = (self.strengths[items][..., None, :] @ around)[..., 0, :]
        transitions = self.dropout(self.norm_transitions(mixed[..., 0, :]))
        together = self.dropout(self.norm_together(mixed[..., 1, :]))
        return transitions, together

    def fuse(self, *views: Tensor) -> Tensor:
        """Return the mean of the views, (..., width), weighed by attention."""
        stacked = torch.stack(views, dim=-2)
        weights = torch.softmax(self.choose(torch.tanh(self.compare(stacked))), dim=-2)
        return (weights * stacked).sum(dim=-2)

    def forward(self, items: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of item codes (batch, length)."""
        return self.fuse(self.encode(self.items(items)), *self.graph_views(items))

    def next_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after each row's last item; graph views are of that item alone."""
        rows = torch.arange(items.shape[0], device=items.device)
        sequence = self.last_states(self.items(items), lengths)
        return self.fuse(sequence, *self.graph_views(items[rows, lengths - 1]))

    def conformity(self, items: Tensor, sequence: Tensor, transitions: Tensor, together: Tensor) -> Tensor:
        """Return how much each sample follows the crowd, (n,), between 0 and 1.

        Args:
            items: Last item of each sample, (n,).
            sequence: Sequence views, (n, width).
            transitions: Transition views of the items, (n, width).
            together: Co-interaction views of the items, (n, width).
        """
        channels = [
            cosine_similarity(sequence, together),
            cosine_similarity(transitions, together),
            self.overlap[items],
        ]
        judged: Tensor = self.judge(torch.stack(channels, dim=1).detach())
        return torch.sigmoid(judged[:, 0])


def contrast(views: Tensor, others: Tensor, items: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of each sample, (n,): its other view must stand out among the batch's.

    Samples that end on the same item have the same graph view and are no negatives of each other.
    """
    logits = normalize(views, dim=1) @ normalize(others, dim=1).T / temperature
    same = (items[:, None] == items) & ~torch.eye(items.shape[0], dtype=torch.bool, device=items.device)
    logits = logits.masked_fill(same, -torch.inf)
    return torch.logsumexp(logits, dim=1) - logits.diagonal()


def divergence(weights: Tensor, mean: float, spread: float) -> Tensor:
    """Return the KL divergence of the normal distribution fitted to `weights` from a normal prior."""
    variance = weights.var(correction=0) + 1e-6  # a batch of one has none
    distance = (variance + (weights.mean() - mean).square()) / spread**2
    return 0.5 * (distance - 1 - torch.log(variance / spread**2))


@dataclass(kw_only=True, eq=False, repr=False)
class DCRec(AttentionRecommender):
    """Contrastive learning between a sequence and two graph views, debiased for conformity."""

    name: ClassVar[str] = "dcrec"

    neighbours: int = 32
    """Neighbours of an item that its graph views are made of."""
    graph_layers: int = 2
    """Layers of light convolution."""
    contrast: float = 0.1
    """Weight of the contrastive loss."""
    temperature: float = 0.5
    """Temperature of the contrastive loss."""
    conformity: float = 0.5
    """Prior mean of the conformity weights."""
    spread: float = 0.1
    """Prior standard deviation of the conformity weights."""
    prior: float = 0.01
    """Weight of the divergence of the conformity weights from their prior."""

    def _network(self, n_items: int) -> SequenceNetwork:
        return DCRecNetwork(
            n_items,
            embedding_size=self.embedding_size,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            max_length=self.max_length,
            neighbours=self.neighbours,
        )

    def _start(self, network: SequenceNetwork, train: Dataset) -> None:
        super()._start(network, train)
        cast(DCRecNetwork, network).connect(train, self.graph_layers)

    def _step(self, network: SequenceNetwork, windows: Windows, train: Dataset) -> StepFunction:
        model, main = cast(DCRecNetwork, network), self._loss(train)

        def step(rows: LongArray, rng: np.random.Generator) -> tuple[Tensor, int]:
            sequence, targets, users = position_states(model, windows, rows)
            _, order, positions = grouped_positions(windows, rows)
            items, place = np.unique(windows.inputs[positions], return_inverse=True)
            views = model.graph_views(torch.from_numpy(items))
            transitions, together = (embedding(torch.from_numpy(place), one) for one in views)
            states = model.fuse(sequence, transitions, together)
            last = torch.from_numpy(np.cumsum(windows.lengths[rows[order]]) - 1)
            codes = torch.from_numpy(windows.inputs[positions])[last]
            loss = main(states, model.items.weight, targets, users, rng)
            aligned = self._alignment(model, codes, sequence[last], transitions[last], together[last])
            return loss + aligned, targets.shape[0]

        return step

    def _alignment(
        self, model: DCRecNetwork, items: Tensor, sequence: Tensor, transitions: Tensor, together: Tensor
    ) -> Tensor:
        weights = model.conformity(items, sequence, transitions, together)
        own = contrast(sequence, transitions, items, self.temperature)
        crowd = contrast(sequence, together, items, self.temperature)
        pulled = ((1 - weights) * own + weights * crowd).mean()
        return self.contrast * pulled + self.prior * divergence(weights, self.conformity, self.spread)

    def _check(self) -> None:
        super()._check()
        for option in ("neighbours", "graph_layers", "temperature", "spread"):
            if getattr(self, option) <= 0:
                raise ConfigError(f"{self.name}: {option} must be above 0, not {getattr(self, option)}.")
        for option in ("contrast", "prior"):
            if getattr(self, option) < 0:
                raise ConfigError(f"{self.name}: {option} must be at least 0, not {getattr(self, option)}.")
        if not 0 < self.conformity < 1:
            raise ConfigError(f"{self.name}: conformity must lie between 0 and 1, not {self.conformity}.")
