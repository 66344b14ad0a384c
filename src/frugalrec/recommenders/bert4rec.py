"""BERT4Rec: attention in both directions, trained to fill in masked items.

Training hides some items of a sequence and asks for them (the cloze task of Sun et al., CIKM 2019, arXiv
1904.06690); to recommend, a mask is put behind the history and filled in. Four things differ from the paper:

- The normalisation stands before attention and feed-forward layers, which trains stably without warm-up,
  the feed-forward layers have the width of the embeddings and use ReLU, and scores have no bias per item,
  so that they are a product of state and embedding as in every other network here.
- Positions count from the end: they tell how recent an item is, and padding cannot shift them.
- Masks are drawn afresh in every epoch instead of ten times beforehand.
- Which sequences hide their last item only, the situation of recommending, is drawn by chance
  (`last_share`) instead of one extra copy of every sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.recommenders.batching import Windows, cells, length_groups, ranges
from frugalrec.recommenders.losses import LossFunction
from frugalrec.recommenders.networks import AttentionBlock, Dropout, SequenceNetwork
from frugalrec.recommenders.sequential import AttentionRecommender
from frugalrec.recommenders.training import StepFunction
from frugalrec.types import BoolArray, LongArray


class BERT4RecNetwork(SequenceNetwork):
    """Attention blocks in which every position sees the whole sequence."""

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
        self.mask = nn.Parameter(torch.empty(embedding_size))
        self.positions = nn.Embedding(max_length + 1, embedding_size)
        self.norm_in = nn.LayerNorm(embedding_size)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(AttentionBlock(embedding_size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embedding_size)
        self.initialise()

    def initialise(self, scale: float = 0.02) -> None:
        """Draw all matrices and the mask from a normal distribution of deviation `scale`."""
        super().initialise(scale)
        nn.init.normal_(self.mask, std=scale)

    def encode(self, embedded: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of rows without padding."""
        whole = torch.full(embedded.shape[:1], embedded.shape[1], device=embedded.device)
        return self.encode_rows(embedded, whole)

    def encode_rows(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return hidden states, (batch, length, width), of rows padded at the end.

        Args:
            embedded: Embedded items and masks, (batch, length, width).
            lengths: Real positions of each row, (batch,); the states of the others mean nothing.
        """
        states, _ = self._through(self.blocks, embedded, lengths)
        hidden: Tensor = self.norm(states)
        return hidden

    def next_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state of a mask put behind each row, (batch, width); see the base class."""
        embedded = nn.functional.pad(self.items(items), (0, 0, 0, 1))
        behind = torch.arange(embedded.shape[1], device=items.device) == lengths[:, None]
        embedded = torch.where(behind[..., None], self.mask, embedded)
        *lower, top = self.blocks
        states, padding = self._through(lower, embedded, lengths + 1)
        hidden: Tensor = self.norm(cast(AttentionBlock, top).one(states, lengths, padding))
        return hidden

    def _through(
        self, blocks: Iterable[nn.Module], embedded: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the states behind some blocks, (batch, length, width), and where padding is."""
        places = torch.arange(embedded.shape[1], device=embedded.device)
        back = (lengths[:, None] - 1 - places).clamp(min=0)
        padding = places >= lengths[:, None]
        states: Tensor = self.dropout(self.norm_in(embedded + self.positions(back)))
        for block in blocks:
            states = block(states, padding[:, None, None, :])
        return states, padding


def sequences(windows: Windows) -> tuple[LongArray, LongArray]:
    """Return (indptr, items): each window's inputs and, behind them, its last target."""
    indptr = windows.indptr + np.arange(windows.indptr.size)
    items = np.empty(indptr[-1], dtype=np.int64)
    first = indptr[:-1]
    items[first] = windows.inputs[windows.indptr[:-1]]
    items[np.delete(np.arange(items.size), first)] = windows.targets
    return indptr, items


def cloze(lengths: LongArray, mask_ratio: float, last_share: float, rng: np.random.Generator) -> BoolArray:
    """Draw which positions of packed rows are masked, (sum of lengths,); at least one in every row.

    Args:
        lengths: Positions of each row, (b,).
        mask_ratio: Probability of a position.
        last_share: Probability that a row masks its last position and no other.
        rng: The stream.
    """
    first = np.cumsum(lengths) - lengths
    masked = rng.random(int(lengths.sum())) < mask_ratio
    sure = first + (rng.random(lengths.size) * lengths).astype(np.int64)
    without = np.add.reduceat(masked, first, dtype=np.int64) == 0
    masked[sure[without]] = True
    last_only = rng.random(lengths.size) < last_share
    masked[np.repeat(last_only, lengths)] = False
    masked[(first + lengths - 1)[last_only]] = True
    return masked


def cloze_step(
    network: BERT4RecNetwork, windows: Windows, loss: LossFunction, *, mask_ratio: float, last_share: float
) -> StepFunction:
    """Return the step of the cloze task: masked items are predicted from the rest of their window."""
    indptr, items = sequences(windows)

    def step(rows: LongArray, rng: np.random.Generator) -> tuple[Tensor, int]:
        groups = length_groups(np.diff(indptr)[rows])
        order = rows[np.concatenate(groups)]
        lengths = np.diff(indptr)[order]
        _, positions = ranges(indptr[order], lengths)
        masked = cloze(lengths, mask_ratio, last_share, rng)
        codes = torch.from_numpy(items[positions])
        embedded = torch.where(torch.from_numpy(masked)[:, None], network.mask, network.items(codes))
        states, row, start = [], 0, 0
        for group in groups:
            inside = lengths[row : row + group.size]
            take, real = cells(inside)
            packed = embedded[start : start + real.size]
            hidden = network.encode_rows(packed[torch.from_numpy(take)], torch.from_numpy(inside))
            asked = real[masked[start : start + real.size]]
            states.append(hidden.flatten(0, 1)[torch.from_numpy(asked)])
            row, start = row + group.size, start + real.size
        targets = codes[torch.from_numpy(masked)]
        users = np.repeat(windows.users[order], lengths)[masked]
        return loss(torch.cat(states), network.items.weight, targets, users, rng), targets.shape[0]

    return step


@dataclass(kw_only=True, eq=False, repr=False)
class BERT4Rec(AttentionRecommender):
    """Bidirectional attention with the cloze task (Sun et al., CIKM 2019), and the full softmax."""

    name: ClassVar[str] = "bert4rec"

    batch_size: int = 32
    """Windows an optimisation step sees; few, because only the masked positions of each teach."""
    patience: int = 10
    """Stop after this many evaluations without a better validation NDCG@10; the cloze task learns slowly."""
    mask_ratio: float = 0.2
    """Share of the items of a sequence that are masked in training."""
    last_share: float = 0.1
    """Share of the sequences whose last item is masked instead, as when recommending."""

    def _network(self, n_items: int) -> SequenceNetwork:
        return BERT4RecNetwork(
            n_items,
            embedding_size=self.embedding_size,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            max_length=self.max_length,
        )

    def _step(self, network: SequenceNetwork, windows: Windows, train: Dataset) -> StepFunction:
        return cloze_step(
            cast(BERT4RecNetwork, network),
            windows,
            self._loss(train),
            mask_ratio=self.mask_ratio,
            last_share=self.last_share,
        )

    def _check(self) -> None:
        super()._check()
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"{self.name}: mask_ratio must lie between 0 and 1, not {self.mask_ratio}.")
        if not 0 <= self.last_share <= 1:
            raise ConfigError(f"{self.name}: last_share must lie in 0..1, not {self.last_share}.")
