"""Yes/no baselines of few-shot papers: GRU4Rec, Caser, SASRec and DROS on ids, GRU and DROS on text.

They answer the question that TALLRec asks an LLM, from the same rows: these titles were liked, those
disliked, will the target be liked? As published (arXiv 2305.00447, and its authors on their repository),
the feedback is appended to the titles' embeddings, the target's logit goes through a sigmoid, SASRec
descends the squared error, DROS stands on the recurrent network, and the text models see frozen vectors
of a text encoder (theirs: BERT, four recurrent layers of width 1,024; here both are options).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from frugalrec.data.readers.tallrec import PointwiseRows
from frugalrec.errors import ConfigError, DataError, NotFittedError
from frugalrec.evaluation.pointwise import auc
from frugalrec.recommenders.feedback_config import FEEDBACK_MODELS, FeedbackConfig, architecture
from frugalrec.recommenders.feedback_network import FeedbackNetwork, pointwise_loss, robust_group_loss
from frugalrec.recommenders.feedback_rows import UNKNOWN, EncodedRows, TextEmbedder, encode, title_codes
from frugalrec.recommenders.training import Schedule, torch_session, train_network
from frugalrec.rng import derive_seed
from frugalrec.types import FloatArray, LongArray


@dataclass(eq=False, repr=False)
class FeedbackModel:
    """One baseline: `fit` on a few rows, `score` others.

    After `fit`: `best_epoch_` (whose parameters are kept) and `history_`, one record an epoch: `epoch`,
    `loss`, `valid_auc` (NaN without validation) and `seconds`.
    """

    name: str
    """A key of `FEEDBACK_MODELS`."""
    config: FeedbackConfig = FeedbackConfig()
    embedder: TextEmbedder | None = None
    """Gives the titles' vectors; needed by the text models alone."""

    history_: list[dict[str, float]] = field(init=False)
    best_epoch_: int = field(init=False)
    network_: FeedbackNetwork | None = field(init=False, default=None)
    codes_: dict[str, int] = field(init=False)
    text_width_: int | None = field(init=False, default=None)

    def fit(self, rows: PointwiseRows, validation: PointwiseRows | None = None) -> Self:
        """Train on rows; with validation rows, keep the epoch with the best AUC on them.

        Raises:
            ConfigError: If the name or an option makes no sense, or a text model has no embedder.
            DataError: If there are no rows, or the validation rows do not have both labels.
        """
        kind = architecture(self.name, self.config)
        if kind.text and self.embedder is None:
            raise ConfigError(f"{self.name} reads titles; give an embedder, such as SentenceEncoder.load().")
        if len(rows) == 0:
            raise DataError(f"{self.name}: there are no rows to learn from; give at least one.")
        if validation is not None and np.unique(validation.labels).size < 2:
            raise DataError(f"{self.name}: validation needs rows of both labels to choose an epoch by AUC.")
        self.codes_ = title_codes(rows)
        encoded, table = self._encoded(rows)
        held_out = None if validation is None else self._encoded(validation)
        self.text_width_ = None if table is None else table.shape[1]
        config = self.config
        with torch_session(config.threads, derive_seed(config.seed, "initial", self.name)):
            body = kind.body(1 if kind.text else len(self.codes_) + 1, config)
            network = FeedbackNetwork(body, text_width=self.text_width_, dropout=config.dropout)
            self.network_ = network
            progress = train_network(
                network,
                partial(self._step, network, encoded, table, _groups(encoded, config.groups)),
                len(rows),
                self._schedule(),
                evaluate=None if held_out is None else partial(_auc, network, *held_out),
            )
        self.best_epoch_ = progress.best_epoch
        self.history_ = [
            {"valid_auc" if key == "valid_ndcg" else key: value for key, value in record.items()}
            for record in progress.history
        ]
        return self

    def score(self, rows: PointwiseRows) -> FloatArray:
        """Return the logit of Yes of each row, (n,); labels are not looked at."""
        if self.network_ is None:
            raise NotFittedError(f"{self.name} is not fitted; call fit first.")
        return _logits(self.network_, *self._encoded(rows))

    def _step(
        self,
        network: FeedbackNetwork,
        encoded: EncodedRows,
        table: Tensor | None,
        groups: Tensor,
        rows: LongArray,
        rng: np.random.Generator,
    ) -> tuple[Tensor, int]:
        kind, config = FEEDBACK_MODELS[self.name], self.config
        titles, feedback, lengths, targets = _inputs(encoded, rows)
        if not kind.text and config.unknown_rate:
            for codes in (titles, targets):
                hidden = rng.random(tuple(codes.shape)) < config.unknown_rate
                codes[torch.from_numpy(hidden)] = UNKNOWN
        logits = network(titles, feedback, lengths, targets, table)
        labels = torch.from_numpy(encoded.labels[rows])
        value = pointwise_loss(logits, labels, config.loss or kind.loss).mean()
        if kind.robust:
            errors = pointwise_loss(logits, labels, "mse")
            value = value + config.robustness * robust_group_loss(
                errors, groups[rows], config.groups, config.temperature
            )
        return value, rows.size

    def _encoded(self, rows: PointwiseRows) -> tuple[EncodedRows, Tensor | None]:
        """Return rows as arrays and, for a text model, the vectors of their titles by code."""
        limit = self.config.max_length
        if not FEEDBACK_MODELS[self.name].text or self.embedder is None:
            return encode(rows, self.codes_, limit), None
        codes = title_codes(rows)
        vectors = self.embedder.embed(list(codes))
        table = np.concatenate([np.zeros((1, vectors.shape[1]), dtype=np.float32), vectors])
        return encode(rows, codes, limit), torch.from_numpy(table)

    def _schedule(self) -> Schedule:
        config = self.config
        return Schedule(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            patience=config.patience,
            eval_every=1,
            seed=derive_seed(config.seed, "training", self.name),
        )


def _inputs(encoded: EncodedRows, rows: LongArray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return titles, feedback, lengths and targets of some rows, no wider than the longest of them."""
    width = int(encoded.lengths[rows].max())
    parts = encoded.titles[rows, :width], encoded.feedback[rows, :width]
    titles, feedback = (torch.from_numpy(part) for part in parts)
    return titles, feedback, torch.from_numpy(encoded.lengths[rows]), torch.from_numpy(encoded.targets[rows])


def _logits(network: FeedbackNetwork, encoded: EncodedRows, table: Tensor | None) -> FloatArray:
    """Return the logit of Yes of each row, (n,)."""
    scores = np.empty(len(encoded), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(encoded), 512):
            part = np.arange(start, min(start + 512, len(encoded)))
            scores[part] = network(*_inputs(encoded, part), table).numpy()
    return scores


def _auc(network: FeedbackNetwork, encoded: EncodedRows, table: Tensor | None) -> float:
    return auc(_logits(network, encoded, table), encoded.labels)


def _groups(encoded: EncodedRows, n_groups: int) -> Tensor:
    """Return each row's group, (n,): equal parts of the rows by how often their target occurs."""
    real = np.arange(encoded.titles.shape[1]) < encoded.lengths[:, None]
    counts = np.bincount(np.concatenate([encoded.titles[real], encoded.targets]))[encoded.targets]
    edges = np.quantile(counts, np.arange(1, n_groups) / n_groups)
    return torch.from_numpy(np.searchsorted(edges, counts, side="left"))
