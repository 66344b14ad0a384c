"""Text vectors out of a language model's last layer: base model without its head, no gradients.

BIGRec (arXiv 2308.08434) grounds with the last token's state of the base model, without the adapter
that writes titles. The mean over all tokens is the other common choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from frugalrec.errors import ConfigError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.vectors import embedded
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Pooling = Literal["last", "mean"]


class LMEmbedder:
    """Embeds texts with a local language model (with the encoder alone, where it has one)."""

    def __init__(
        self,
        lm: LocalLM,
        *,
        pooling: Pooling = "last",
        adapter: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.lm = lm
        self.pooling = pooling
        """Which states make a vector: the `last` token's, or the `mean` over all tokens."""
        self.adapter = adapter
        """Whether the model's adapter takes part, if it has one."""
        self.cache = cache
        """Folder of vectors from earlier calls; read and extended."""

    @property
    def fingerprint(self) -> str:
        """A hash of model, adapter (where it takes part) and pooling."""
        lm = self.lm
        if not self.adapter:
            lm = type(lm)(lm.network, lm.tokenizer, model=lm.model, source=lm.source)
        parts = [lm.fingerprint, self.pooling, self.adapter]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.lm.network.config.get_text_config().hidden_size)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector a text, (n, width) float32, not scaled."""
        if self.pooling not in get_args(Pooling):
            raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {self.pooling!r}.")
        return embedded(
            texts,
            self._compute,
            width=self.width,
            fingerprint=lambda: self.fingerprint,
            cache=self.cache,
        )

    def _compute(self, texts: list[str]) -> FloatArray:
        lm, network = self.lm, self.lm.network
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        tokens = [ids or [lm.pad_id] for ids in lm.encode(texts)]
        lm._check_lengths(tokens)
        off = hasattr(network, "disable_adapter") and not self.adapter
        with lm._running(), network.disable_adapter() if off else nullcontext():
            for batch in token_batches([len(ids) for ids in tokens], lm.max_batch_tokens):
                vectors[batch] = self._pooled([tokens[row] for row in batch])
        return vectors

    def _pooled(self, rows: list[list[int]]) -> Any:
        """Return the vectors of some tokenised texts, (b, width)."""
        import torch

        width, device = max(map(len, rows)), self.lm.network.device
        lengths = torch.tensor([len(ids) for ids in rows], device=device)
        ids = torch.tensor([ids + [self.lm.pad_id] * (width - len(ids)) for ids in rows], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        states = self._body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self.pooling == "last":
            pooled = states[torch.arange(len(rows), device=device), lengths - 1].float()
        else:
            pooled = (states.float() * mask[:, :, None]).sum(dim=1) / lengths[:, None]
        return pooled.cpu().numpy()

    @property
    def _body(self) -> Any:
        """The network below its output layer."""
        network = self.lm.network
        if hasattr(network, "get_base_model"):  # PEFT's wrapper; its layers stay in
            network = network.get_base_model()
        return network.get_encoder() if self.lm.is_encoder_decoder else network.base_model
