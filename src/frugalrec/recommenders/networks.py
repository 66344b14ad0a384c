"""Causal networks over item sequences: attention (SASRec), recurrence (GRU4Rec), convolution (Caser).

Every network takes item codes ``(batch, length)`` and returns hidden states ``(batch, length, width)``;
the state at position t depends on the items up to t only. So sequences are padded at the *end*, with
any item code: what stands behind a sequence cannot reach it, no mask and no padding row are needed, a
user's scores do not depend on who shares the batch, and one pass yields the states of all prefixes.
Positions count from the start of the window. What scores the next item is the last state of a row, and
`last_states` spends nothing on the others beyond what the last one needs.

A score is the product of a hidden state and the embedding of an item (tied weights, `items.weight`).
Operations are plain (no fused attention kernel), so forward-mode differentiation
(`torch.func.jvp`) works through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn


class SequenceNetwork(nn.Module):
    """What the networks share: the tied item embedding, its initialisation and the state that scores."""

    def __init__(self, n_items: int, embedding_size: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, embedding_size)

    def forward(self, items: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of item codes (batch, length)."""
        return self.encode(self.items(items))

    def encode(self, embedded: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of embedded items of the same shape."""
        raise NotImplementedError

    def next_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state that scores the next item of each row, (batch, width).

        Its product with `items.weight` is the score of every item. It differentiates in both modes.

        Args:
            items: Item codes, (batch, length), padded at the end with any code.
            lengths: Items of each row, (batch,), at least 1; what stands behind them has no influence.
        """
        return self.last_states(self.items(items), lengths)

    def last_states(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return the last of `encode`'s states of each row, (batch, width); a network may do with less.

        Args:
            embedded: Embedded items, (batch, length, width), padded at the end.
            lengths: Items of each row, (batch,), at least 1.
        """
        hidden = self.encode(embedded)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]

    def initialise(self, scale: float = 0.02) -> None:
        """Draw all matrices from a normal distribution of deviation `scale`; biases start at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                nn.init.normal_(module.weight, std=scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class Dropout(nn.Module):
    """Dropout from random bytes: three times as fast on CPUs as drawing a float per value.

    The rate is rounded to a multiple of 1/256, and kept values are scaled by the rounded rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.threshold = round(256 * rate)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` with a share set to zero in training mode, unchanged in evaluation mode."""
        if not self.training or self.threshold == 0:
            return values
        words = torch.randint(-(2**63), 2**63 - 1, (-(-values.numel() // 8),), device=values.device)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= self.threshold
        return values * kept.to(values.dtype).mul_(256 / (256 - self.threshold))


class SASRecNetwork(SequenceNetwork):
    """Self-attention over the sequence (Kang and McAuley, ICDM 2018, arXiv 1808.09781)."""

    def __init__(
        self,
        n_items: int,
        *,
        embedding_size: int,
        layers: int,
        heads: int,
        dropout: float,
        max_length: int,
    ) -> None:
        super().__init__(n_items, embedding_size)
        self.positions = nn.Embedding(max_length, embedding_size)
        self.norm_in = nn.LayerNorm(embedding_size)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(AttentionBlock(embedding_size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embedding_size)
        self.initialise()

    def encode(self, embedded: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of embedded items of the same shape."""
        hidden: Tensor = self.norm(self._through(self.blocks, embedded))
        return hidden

    def last_states(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return the last state of each row, (batch, width); the last block sees to that one alone."""
        *lower, top = self.blocks
        states = self._through(lower, embedded)
        behind = torch.arange(embedded.shape[1], device=embedded.device) >= lengths[:, None]
        hidden: Tensor = self.norm(cast(AttentionBlock, top).one(states, lengths - 1, behind))
        return hidden

    def _through(self, blocks: Iterable[nn.Module], embedded: Tensor) -> Tensor:
        """Return the states behind some blocks, (batch, length, width)."""
        length = embedded.shape[1]
        states: Tensor = self.dropout(self.norm_in(embedded + self.positions.weight[:length]))
        future = torch.ones(length, length, dtype=torch.bool, device=embedded.device).triu(1)
        for block in blocks:
            states = block(states, future)
        return states


class AttentionBlock(nn.Module):
    """Self-attention and a feed-forward layer, normalised before each (pre-norm)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.widen = nn.Linear(width, width)
        self.narrow = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, blocked: Tensor) -> Tensor:
        """Return new states of the same shape; `blocked` is as in `attend`."""
        return self._feed(states + self.dropout(self.attend(self.norm_attention(states), blocked)))

    def one(self, states: Tensor, places: Tensor, blocked: Tensor) -> Tensor:
        """Return what `forward` gives for one place of each row, (batch, width).

        Args:
            states: (batch, length, width).
            places: (batch,).
            blocked: Where the place must not look, (batch, length).
        """
        rows = torch.arange(states.shape[0], device=states.device)
        gathered = self._gather(self.norm_attention(states), rows, places, blocked)
        return self._feed(states[rows, places] + self.dropout(gathered))

    def _feed(self, states: Tensor) -> Tensor:
        fed: Tensor = self.narrow(torch.relu(self.widen(self.norm_feed(states))))
        return states + cast(Tensor, self.dropout(fed))

    def _gather(self, states: Tensor, rows: Tensor, places: Tensor, blocked: Tensor) -> Tensor:
        """Return what `attend` gives for one place of each row, (batch, width).

        There is one query a row, so it is carried through the keys' matrix, and the weighted mean of the
        states through the values' one: neither keys nor values of all places are needed. The keys' bias
        moves all logits of a row alike, and the weights sum to one (without dropout: this is for evaluation).
        """
        batch, length, width = states.shape
        depth = width // self.heads
        to_queries, to_keys, to_values = self.mix.weight.view(3, width, width)
        of_queries, _, of_values = self.mix.bias.view(3, width)
        queries = nn.functional.linear(states[rows, places], to_queries, of_queries)
        queries = queries.view(batch, self.heads, depth).transpose(0, 1)  # (heads, batch, depth)
        asked = (queries @ to_keys.view(self.heads, depth, width)).transpose(0, 1)  # (batch, heads, width)
        logits = asked @ states.transpose(1, 2) * depth**-0.5  # (batch, heads, length)
        weights = self.dropout(torch.softmax(logits.masked_fill(blocked[:, None], -torch.inf), dim=-1))
        means = (weights @ states).transpose(0, 1)  # (heads, batch, width)
        values = means @ to_values.view(self.heads, depth, width).transpose(1, 2)
        gathered: Tensor = self.out(values.transpose(0, 1).reshape(batch, width) + of_values)
        return gathered

    def attend(self, states: Tensor, blocked: Tensor) -> Tensor:
        """Return what each position gathers from the positions open to it.

        Args:
            states: (batch, length, width).
            blocked: Where a position (third axis) must not look at another (fourth), broadcast to
                (batch, heads, length, length); at least one stays open to each.
        """
        batch, length, width = states.shape
        split = self.mix(states).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, depth)
        logits = queries @ keys.transpose(-1, -2) * (width // self.heads) ** -0.5
        weights = self.dropout(torch.softmax(logits.masked_fill(blocked, -torch.inf), dim=-1))
        gathered: Tensor = self.out((weights @ values).transpose(1, 2).reshape(batch, length, width))
        return gathered


class GRU4RecNetwork(SequenceNetwork):
    """A gated recurrent network (Hidasi et al., ICLR 2016, arXiv 1511.06939)."""

    def __init__(self, n_items: int, *, embedding_size: int, layers: int, dropout: float) -> None:
        super().__init__(n_items, embedding_size)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(
            embedding_size,
            embedding_size,
            num_layers=layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.out = nn.Linear(embedding_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.initialise()

    def encode(self, embedded: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of embedded items of the same shape."""
        states, _ = self.gru(self.dropout(embedded))
        return self._read(states)

    def last_states(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return the last state of each row, (batch, width)."""
        states, _ = self.gru(self.dropout(embedded))
        return self._read(states[torch.arange(states.shape[0], device=states.device), lengths - 1])

    def _read(self, states: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.out(self.dropout(states)))
        return hidden


class CaserNetwork(SequenceNetwork):
    """Horizontal and vertical convolutions over the last items (Tang and Wang, WSDM 2018, 1809.07426).

    The published model sees one window of `window` items per training row; here the same filters run
    over all positions of a sequence at once. There is no user embedding, so unseen users are served.
    """

    def __init__(
        self,
        n_items: int,
        *,
        embedding_size: int,
        window: int,
        horizontal: int,
        vertical: int,
        dropout: float,
    ) -> None:
        super().__init__(n_items, embedding_size)
        self.window = window
        self.rows = nn.ModuleList(
            nn.Linear(height * embedding_size, horizontal) for height in range(1, window + 1)
        )
        self.columns = nn.Linear(window, vertical)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(window * horizontal + vertical * embedding_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.initialise()

    def encode(self, embedded: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of embedded items of the same shape."""
        embedded = nn.functional.pad(embedded, (0, 0, self.window - 1, 0))
        windows = embedded.unfold(1, self.window, 1)  # (batch, length, width, window)
        vertical = self.columns(windows).flatten(2)
        rows = [self._horizontal(embedded, height, layer) for height, layer in enumerate(self.rows, start=1)]
        hidden: Tensor = self.norm(self.out(self.dropout(torch.cat([vertical, *rows], dim=2))))
        return hidden

    def _horizontal(self, embedded: Tensor, height: int, layer: nn.Module) -> Tensor:
        # A filter of height h stands at window - h + 1 places inside each window; the best counts.
        places = torch.relu(layer(embedded.unfold(1, height, 1).transpose(2, 3).flatten(2)))
        best: Tensor = places.unfold(1, self.window - height + 1, 1).amax(dim=3)
        return best
