"""A student that scores the whole catalogue in one pass: bare history in, one vector out, no beams.

One token an item instead of an id's digits or a title's words, a few learned vectors instead of a worded
prompt, and a product with all item vectors instead of beam search (as Lite-LLM4Rec and E4SRec do). Item
vectors are what the title says plus what is learned of the item itself, so that rare items borrow from
their words. It learns from what came next and from teachers: slower models, or several at once. A few dozen
dimensions cannot hold which titles are alike, so a share of that may be added as it stands (`match_shares`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frugalrec.data.dataset import Dataset
from frugalrec.distillation.soft_targets import SoftTargets, distillation_block
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.batching import Windows, grouped_positions, position_states
from frugalrec.recommenders.losses import bounded, catalogue_loss
from frugalrec.recommenders.networks import AttentionBlock, SASRecNetwork, SequenceNetwork
from frugalrec.recommenders.sequential import AttentionRecommender
from frugalrec.recommenders.title_match import TitleMatch, best_share
from frugalrec.recommenders.training import StepFunction
from frugalrec.types import FloatArray, IntArray


class ItemTable(nn.Module):
    """Item vectors: a learned one each, plus a learned projection of what its title says."""

    def __init__(self, n_items: int, width: int, vectors: Tensor | None) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(n_items, width))
        self.register_buffer("vectors", vectors, persistent=False)
        self.project = None if vectors is None else nn.Linear(vectors.shape[1], width, bias=False)

    vectors: Tensor | None

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return int(self.free.shape[1])

    @property
    def weight(self) -> Tensor:
        """The vectors of all items, (n_items, width)."""
        return self.free if self.project is None else self.free + self.project(self.vectors)

    def forward(self, items: Tensor) -> Tensor:
        """Return the vectors of some items, (..., width)."""
        own = nn.functional.embedding(items, self.free)
        if self.project is None or self.vectors is None:
            return own
        said: Tensor = self.project(nn.functional.embedding(items, self.vectors))
        return own + said


class StudentNetwork(SASRecNetwork):
    """Attention over learned prompt vectors and the items behind them."""

    def __init__(self, n_items: int, vectors: Tensor | None, prompt_vectors: int, **options: Any) -> None:
        width = options["embedding_size"]
        super().__init__(n_items, **options)
        self.items = ItemTable(n_items, width, vectors)  # type: ignore[assignment]
        self.prompt = nn.Parameter(torch.empty(prompt_vectors, width))
        self.initialise()
        nn.init.uniform_(self.prompt, -0.1, 0.1)
        nn.init.normal_(self.items.free, std=0.02)  # type: ignore[arg-type]

    def encode(self, embedded: Tensor) -> Tensor:
        """Return the states of the items, (batch, length, width)."""
        states, future = self._begun(embedded)
        for block in self.blocks:
            states = block(states, future)
        hidden: Tensor = self.norm(states[:, len(self.prompt) :])
        return hidden

    def last_states(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return the last state of each row, (batch, width)."""
        states, future = self._begun(embedded)
        *lower, top = self.blocks
        for block in lower:
            states = block(states, future)
        lengths = lengths + len(self.prompt)
        behind = torch.arange(states.shape[1]) >= lengths[:, None]
        assert isinstance(top, AttentionBlock)  # noqa: S101
        hidden: Tensor = self.norm(top.one(states, lengths - 1, behind))
        return hidden

    def _begun(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Return what enters the blocks, (batch, P + length, width), and where no position may look."""
        placed = self.norm_in(embedded + self.positions.weight[: embedded.shape[1]])
        prompt = self.prompt.expand(len(embedded), -1, -1)
        states: Tensor = self.dropout(torch.cat([prompt, placed], dim=1))
        length = states.shape[1]
        return states, torch.ones(length, length, dtype=torch.bool).triu(1)


@dataclass(kw_only=True, eq=False, repr=False)
class ItemStudent(AttentionRecommender):
    """A small transformer over items that are words and learned vectors, taught by data and teachers.

    A seam's ordinary recommender: `fit`, `recommend`, `save` and resuming work as in SASRec, which it is
    without title vectors, prompt vectors and teacher.
    """

    name: ClassVar[str] = "item-student"

    title_vectors: FloatArray | None = None
    """Vectors of the items' titles, (n_items, any width), of length 1 where there is a title; not tuned."""
    prompt_vectors: int = 0
    """Learned vectors before the history."""
    soft: SoftTargets | None = None
    """What teachers say at each training position; see `soft_targets.teach`."""
    soft_weight: float = 0.5
    """Share of the teacher in the loss."""
    temperature: float = 1.0
    """What scores are divided by where they are compared with the teacher's."""
    match_shares: Sequence[float] = ()
    """Shares of the titles' own likeness (`TitleMatch`) to try on top of the scores; validation chooses.
    Needs title vectors and a validation fold."""

    match_share_: float = field(init=False, default=0.0)
    _match: TitleMatch | None = field(init=False, default=None)
    _saved_catalogue: str = field(init=False, default="")

    def _network(self, n_items: int) -> SequenceNetwork:
        if self.title_vectors is not None and len(self.title_vectors) != n_items:
            raise DataError(
                f"{len(self.title_vectors)} title vectors for {n_items} items; give one an item, zeros where "
                "there is no title."
            )
        vectors = None if self.title_vectors is None else torch.from_numpy(self.title_vectors).float()
        return StudentNetwork(
            n_items,
            vectors,
            self.prompt_vectors,
            embedding_size=self.embedding_size,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            max_length=self.max_length,
        )

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        if self.match_shares and (self.title_vectors is None or valid is None or valid.n == 0):
            raise ConfigError(
                f"{self.name}: match_shares={list(self.match_shares)} need title vectors and a validation "
                "fold that chooses among them."
            )
        super()._fit(train, valid)
        self.match_share_, self._match = 0.0, None
        if self.match_shares and valid is not None:
            match = self._titles(train)
            self.match_share_, _ = best_share(
                lambda users: super(ItemStudent, self)._score(users, train),
                lambda users: match.score(users, train),
                valid,
                train,
                self.match_shares,
            )

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        scores = super()._score(users, histories)
        if self.match_share_:
            assert self.fitted_on is not None  # noqa: S101
            match = self._titles(self.fitted_on)
            scores = scores + np.float32(self.match_share_) * match.score(users, histories)
        return scores

    def _titles(self, train: Dataset) -> TitleMatch:
        """Return the likeness of titles, made once."""
        if self._match is None:
            assert self.title_vectors is not None  # noqa: S101
            self._match = TitleMatch(vectors=self.title_vectors).fit(train)
        return self._match

    def _learned_items(self, network: SequenceNetwork) -> Tensor:
        return network.items.free  # type: ignore[return-value]

    def _step(self, network: SequenceNetwork, windows: Windows, train: Dataset) -> StepFunction:
        soft = self.soft
        if soft is None:
            return super()._step(network, windows, train)
        if len(soft.items) != windows.targets.size:
            raise DataError(
                f"soft targets of {len(soft.items):,} positions do not fit {windows.targets.size:,} training "
                "positions; make them from this training data with the same max_length."
            )
        hard = torch.from_numpy(windows.targets)

        def step(rows: Any, rng: np.random.Generator) -> tuple[Tensor, int]:
            states, _, _ = position_states(network, windows, rows)
            _, _, positions = grouped_positions(windows, rows)
            weight = network.items.weight
            block = distillation_block(
                soft,
                hard,
                self.soft_weight,
                self.temperature,
                safe=bounded(states / min(1.0, self.temperature), weight),
            )
            loss = catalogue_loss(states, weight, torch.from_numpy(positions), block=block)
            return loss, positions.size

        return step

    def load(self, folder: Path, train: Dataset) -> Self:
        """Restore what `save` wrote; see `Recommender.load`.

        Raises:
            DataError: If the catalogue or the title vectors are not those that it was fitted with.
        """
        super().load(folder, train)
        if self._saved_catalogue != self._catalogue(train):
            self.fitted_on = None
            raise DataError(
                f"{self.name}: {folder} was fitted on another catalogue or other title vectors; load it with "
                "the items, in their order, and the title vectors it was fitted with."
            )
        return self

    def _state(self) -> dict[str, NDArray[Any]]:
        assert self.fitted_on is not None  # noqa: S101
        catalogue = np.array(self._catalogue(self.fitted_on))
        return {**super()._state(), "catalogue": catalogue, "match_share": np.array(self.match_share_)}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self._saved_catalogue = str(state["catalogue"])
        self.match_share_ = float(state.get("match_share", 0.0))  # saved before there were shares
        self._match = None
        super()._restore(state)

    def _catalogue(self, train: Dataset) -> str:
        """Return a hash of the items' ids, in order of code, and of the title vectors."""
        ids = json.dumps([str(item) for item in train.item_ids])
        return hashlib.sha256(ids.encode() + _hash(self.title_vectors).encode()).hexdigest()

    def _check(self) -> None:
        super()._check()
        if not 0 <= self.soft_weight <= 1 or self.temperature <= 0 or self.prompt_vectors < 0:
            raise ConfigError(
                f"{self.name}: soft_weight must lie in 0..1, temperature above 0 and prompt_vectors at 0 or "
                f"above, not {self.soft_weight}, {self.temperature} and {self.prompt_vectors}."
            )
        if self.soft is not None and self.loss != "softmax":
            raise ConfigError(f"{self.name}: a teacher needs loss='softmax', not {self.loss!r}.")

    def _key(self, train: Dataset, valid: Dataset | None) -> str:
        vectors, soft, shares = self.title_vectors, self.soft, self.match_shares
        self.title_vectors, self.soft, self.match_shares = None, None, ()  # shares are chosen after training
        try:
            rest = super()._key(train, valid)
        finally:
            self.title_vectors, self.soft, self.match_shares = vectors, soft, shares
        said = [] if soft is None else [_hash(soft.items), _hash(soft.probabilities)]
        return json.dumps([rest, _hash(vectors), *said])


def _hash(array: NDArray[Any] | None) -> str:
    return "" if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
