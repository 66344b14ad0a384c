"""Sequence recommenders: SASRec, GRU4Rec, Caser, and DROS (SASRec with a robust loss)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.recommenders import losses
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.batching import Windows, last_states, recent, training_windows
from frugalrec.recommenders.losses import LossFunction
from frugalrec.recommenders.networks import CaserNetwork, GRU4RecNetwork, SASRecNetwork, SequenceNetwork
from frugalrec.recommenders.spectral import spectral_embeddings
from frugalrec.recommenders.training import (
    Schedule,
    StepFunction,
    next_item_step,
    torch_session,
    train_network,
    validation_ndcg,
)
from frugalrec.rng import derive_seed, generator
from frugalrec.types import FloatArray, IntArray, LongArray

LossName = Literal["softmax", "sampled-softmax", "bce"]
InitialName = Literal["spectral", "random"]


@dataclass(kw_only=True, eq=False, repr=False)
class SequentialRecommender(Recommender):
    """What the sequence models share; an author writes `_network`, and `_step` if training differs.

    Every transition of the training data is learned, the last one included. Scores come from the last
    `max_length` items of a history. A user without any history is given the items' training counts,
    scaled to at most one (a popularity ranking). An item that never occurs in training has nothing
    but its random initial embedding, so it gets less than every other item's score and cannot win by
    noise. Validation ranks the full catalogue but for the history, as `recommend` does by default.

    After `fit`: `network_` (in evaluation mode), `best_epoch_` (whose parameters it holds) and
    `history_`, one record an epoch: `epoch`, `loss`, `valid_ndcg` (NDCG@10, where evaluated), `seconds`.
    """

    embedding_size: int = 64
    """Width of item embeddings and hidden states."""
    layers: int = 2
    """Attention blocks or recurrent layers (GRU4Rec)."""
    dropout: float = 0.5
    """Share of values dropped in training."""
    max_length: int = 50
    """The most recent items the network sees."""
    epochs: int = 100
    """The most passes over the training data."""
    batch_size: int = 128
    """Windows (about: users) an optimisation step sees."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    loss: LossName = "softmax"
    """`softmax` over the full catalogue (exact; good to some 50,000 items), `sampled-softmax` with
    `n_negatives` shared negatives a step and correction for their frequency, or `bce` with one uniform
    negative outside the user's history (the published SASRec)."""
    n_negatives: int = 1024
    """Negatives a step of `sampled-softmax`, drawn by training count + 1."""
    initial: InitialName = "spectral"
    """Where item embeddings start: at the co-occurrence of the training items (`spectral`), or at noise."""
    patience: int = 5
    """Stop after this many evaluations without a better validation NDCG@10."""
    eval_every: int = 1
    """Epochs between evaluations."""
    seed: int = 0
    """Seed of initial values, order, dropout and negatives."""
    threads: int | None = None
    """Torch threads while fitting; None leaves torch's setting."""
    checkpoint: Path | None = None
    """Folder from which a killed `fit` continues."""
    progress: Callable[[int, int], None] | None = None
    """Is told of (epochs done, epochs at most) while fitting."""

    network_: SequenceNetwork = field(init=False)
    history_: list[dict[str, float]] = field(init=False)
    best_epoch_: int = field(init=False)
    counts_: LongArray = field(init=False)

    def _network(self, n_items: int) -> SequenceNetwork:
        raise NotImplementedError

    def _start(self, network: SequenceNetwork, train: Dataset) -> None:
        """Give a new network what it takes from the training data before training."""
        if self.initial == "spectral":
            start = spectral_embeddings(train, self.embedding_size, generator(self.seed, "spectral"))
            self._learned_items(network).data.copy_(torch.from_numpy(start))

    def _learned_items(self, network: SequenceNetwork) -> Tensor:
        """Return the vectors of items that are learned, (n_items, embedding_size)."""
        return network.items.weight

    def _step(self, network: SequenceNetwork, windows: Windows, train: Dataset) -> StepFunction:
        """Return the loss of a batch of windows."""
        return next_item_step(network, windows, self._loss(train))

    def _fit(self, train: Dataset, valid: Dataset | None) -> None:
        self._check()
        windows = training_windows(train, self.max_length)
        self.counts_ = train.item_counts
        with torch_session(self.threads, derive_seed(self.seed, "initial")):
            network = self._network(train.n_items)
            self._start(network, train)
            validate = partial(validation_ndcg, network, train, max_length=self.max_length)
            progress = train_network(
                network,
                self._step(network, windows, train),
                len(windows),
                self._schedule(),
                evaluate=None if valid is None or valid.n == 0 else partial(validate, valid),
                checkpoint=self.checkpoint,
                key=self._key(train, valid),
                tell=self.progress,
            )
        self.network_ = network
        self.history_ = progress.history
        self.best_epoch_ = progress.best_epoch

    def _score(self, users: IntArray, histories: Dataset) -> FloatArray:
        states = last_states(self.network_, *recent(histories, users, self.max_length))
        scores: FloatArray = (states @ self.network_.items.weight.detach().T).numpy()
        unknown = histories.lengths[users] == 0
        scores[unknown] = self.counts_ / self.counts_.max()
        unseen = self.counts_ == 0
        if unseen.any() and users.size:
            scores[:, unseen] = scores[:, ~unseen].min(axis=1, keepdims=True) - 1
        return scores

    def _state(self) -> dict[str, NDArray[Any]]:
        state = {f"network.{name}": value.numpy() for name, value in self.network_.state_dict().items()}
        evidence = json.dumps([self.best_epoch_, self.history_])
        return {**state, "counts": self.counts_, "evidence": np.array(evidence)}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.counts_ = state["counts"]
        self.best_epoch_, self.history_ = json.loads(str(state["evidence"]))
        with torch_session(None, 0):
            self.network_ = self._network(self.counts_.size)
        prefix = "network."
        values = {key: torch.from_numpy(value) for key, value in state.items() if key.startswith(prefix)}
        self.network_.load_state_dict({key.removeprefix(prefix): value for key, value in values.items()})
        self.network_.eval()

    def _loss(self, train: Dataset) -> LossFunction:
        if self.loss == "softmax":
            return lambda hidden, weight, targets, _users, _rng: losses.catalogue_loss(
                hidden, weight, targets
            )
        if self.loss == "sampled-softmax":
            return losses.sampled_training_loss(train, self.n_negatives)
        return losses.binary_training_loss(train)

    def _schedule(self) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.patience,
            eval_every=self.eval_every,
            seed=self.seed,
        )

    def _key(self, train: Dataset, valid: Dataset | None) -> str:
        """Name everything that decides the trained parameters, for the checkpoint."""
        ignored = ("epochs", "threads", "checkpoint", "progress")
        options = {
            one.name: getattr(self, one.name) for one in fields(self) if one.init and one.name not in ignored
        }
        data = [train.fingerprint, "" if valid is None else valid.fingerprint]
        return json.dumps([self.name, options, data], sort_keys=True)

    def _check(self) -> None:
        for option, known in (("loss", get_args(LossName)), ("initial", get_args(InitialName))):
            if getattr(self, option) not in known:
                raise ConfigError(
                    f"{self.name}: unknown {option} {getattr(self, option)!r}; choose {', '.join(known)}."
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{self.name}: dropout must be at least 0 and below 1, not {self.dropout}.")
        for option in _POSITIVE:
            if getattr(self, option) <= 0:
                raise ConfigError(f"{self.name}: {option} must be above 0, not {getattr(self, option)}.")


_POSITIVE = (
    "embedding_size",
    "layers",
    "max_length",
    "epochs",
    "batch_size",
    "learning_rate",
    "n_negatives",
    "patience",
    "eval_every",
)


@dataclass(kw_only=True, eq=False, repr=False)
class AttentionRecommender(SequentialRecommender):
    """A sequence model of attention blocks."""

    heads: int = 2
    """Attention heads; must divide `embedding_size`."""

    def _check(self) -> None:
        super()._check()
        if self.heads < 1 or self.embedding_size % self.heads:
            raise ConfigError(
                f"{self.name}: heads must divide embedding_size; "
                f"{self.heads} does not divide {self.embedding_size}."
            )


@dataclass(kw_only=True, eq=False, repr=False)
class SASRec(AttentionRecommender):
    """Self-attention over the sequence (Kang and McAuley, ICDM 2018), trained with the full softmax.

    The published loss is `loss="bce"`; here the softmax over the whole catalogue is the default.
    """

    name: ClassVar[str] = "sasrec"

    def _network(self, n_items: int) -> SequenceNetwork:
        return SASRecNetwork(
            n_items,
            embedding_size=self.embedding_size,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            max_length=self.max_length,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class DROS(SASRec):
    """SASRec with a distributionally robust loss against shifts in popularity (Yang et al., SIGIR 2023).

    The loss is `loss` plus `robustness` times the KL-robust squared error over items,
    ``temperature * log sum_i p_i exp((sigmoid(s_i) - y_i)^2 / temperature)``, where p is the share of
    each item in the training data (`losses.robust_loss`). A low temperature looks at the worst items,
    a high one at the popularity-weighted mean. Errors are measured on sigmoid(s), so they stay in
    [0, 1] whatever the scale of the scores.
    """

    name: ClassVar[str] = "dros"

    robustness: float = 0.1
    """Weight of the robust part."""
    temperature: float = 1.0
    """How evenly the robust part looks at the items."""

    def _check(self) -> None:
        super()._check()
        if self.temperature <= 0 or self.robustness < 0:
            raise ConfigError(
                f"{self.name}: temperature must be above 0 and robustness at least 0, "
                f"not {self.temperature} and {self.robustness}."
            )

    def _loss(self, train: Dataset) -> LossFunction:
        share = torch.from_numpy(train.item_counts / train.n).float()
        robust = partial(
            losses.robust_block,
            log_popularity=share.log(),
            temperature=self.temperature,
            strength=self.robustness,
        )
        if self.loss == "softmax":

            def fused(hidden: Tensor, weight: Tensor, targets: Tensor, *_: Any) -> Tensor:
                main = losses.softmax_block(losses.bounded(hidden, weight))
                return losses.catalogue_loss(hidden, weight, targets, block=robust(main))

            return fused
        plain = super()._loss(train)

        def added(
            hidden: Tensor, weight: Tensor, targets: Tensor, users: IntArray, rng: np.random.Generator
        ) -> Tensor:
            extra = losses.catalogue_loss(hidden, weight, targets, block=robust(losses.no_loss_block))
            return plain(hidden, weight, targets, users, rng) + extra

        return added


@dataclass(kw_only=True, eq=False, repr=False)
class GRU4Rec(SequentialRecommender):
    """A recurrent network over the sequence (Hidasi et al., ICLR 2016), trained on all positions."""

    name: ClassVar[str] = "gru4rec"

    layers: int = 1
    """Recurrent layers."""

    def _network(self, n_items: int) -> SequenceNetwork:
        return GRU4RecNetwork(
            n_items, embedding_size=self.embedding_size, layers=self.layers, dropout=self.dropout
        )


@dataclass(kw_only=True, eq=False, repr=False)
class Caser(SequentialRecommender):
    """Convolutions over the last `window` items (Tang and Wang, WSDM 2018), without user embeddings.

    `layers` has no meaning here.
    """

    name: ClassVar[str] = "caser"

    window: int = 5
    """Items a filter can see."""
    horizontal: int = 16
    """Horizontal filters of each height 1..window."""
    vertical: int = 4
    """Vertical filters."""

    def _check(self) -> None:
        super()._check()
        if min(self.window, self.horizontal, self.vertical) < 1:
            raise ConfigError(
                f"{self.name}: window, horizontal and vertical must be at least 1, "
                f"not {self.window}, {self.horizontal} and {self.vertical}."
            )

    def _network(self, n_items: int) -> SequenceNetwork:
        return CaserNetwork(
            n_items,
            embedding_size=self.embedding_size,
            window=self.window,
            horizontal=self.horizontal,
            vertical=self.vertical,
            dropout=self.dropout,
        )
