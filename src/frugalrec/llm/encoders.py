"""Text encoders: sentences to vectors of length one, batched by tokens and cached on disk.

A vector is the mean of the last layer over a text's tokens (Reimers and Gurevych, EMNLP 2019, arXiv
1908.10084), scaled to length one, so that a product of two vectors is their cosine. Padding is masked
twice, in the network and in the mean: a text's vector does not depend on the texts beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from frugalrec.errors import ConfigError, ModelError, require
from frugalrec.llm import conversion, loading, models
from frugalrec.llm.batching import token_batches
from frugalrec.llm.vectors import embedded
from frugalrec.types import FloatArray

Pooling = Literal["mean", "first"]


class SentenceEncoder:
    """Embeds texts with a Hugging Face encoder; use `load`."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        identity: str,
        pooling: Pooling = "mean",
        max_length: int = 256,
        max_batch_tokens: int = 8192,
        cache: Path | None = None,
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.identity = identity
        self.pooling = pooling
        self.max_length = max_length
        self.max_batch_tokens = max_batch_tokens
        self.cache = cache

    @classmethod
    def load(
        cls,
        model: str | Path = "minilm-l6",
        *,
        pooling: Pooling = "mean",
        max_length: int = 256,
        max_batch_tokens: int = 8192,
        device: str = "auto",
        cache: Path | None = None,
    ) -> Self:
        """Load an encoder that is on this machine, or that transformers can download, in float32.

        Args:
            model: An embedded encoder's name, a folder, or a Hugging Face id.
            pooling: ``"mean"`` over a text's tokens, or the ``"first"`` token: whichever it was trained for.
            max_length: Tokens of a text that count, at most what the network takes.
            max_batch_tokens: Padded tokens that one forward pass may hold.
            device: ``"auto"`` takes a GPU if there is one.
            cache: Folder of vectors from earlier calls; read and extended.

        Raises:
            ModelError: If there is no such model, or it does not load as an encoder.
            ConfigError: If an option makes no sense.
        """
        if pooling not in get_args(Pooling):
            raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}.")
        if max_length < 1 or max_batch_tokens < 1:
            raise ConfigError(
                f"max_length ({max_length}) and max_batch_tokens ({max_batch_tokens}) must be at least 1."
            )
        found = models.find(model)
        network, tokenizer = _load(found, loading.choose_device(device))
        limit = getattr(network.config, "max_position_embeddings", None) or max_length
        hub = [str(found), getattr(network.config, "_commit_hash", None)]
        files = loading.folder_hashes(found) if isinstance(found, Path) else hub
        return cls(
            network,
            tokenizer,
            identity=json.dumps(files, sort_keys=True),
            pooling=pooling,
            max_length=min(max_length, limit),
            max_batch_tokens=max_batch_tokens,
            cache=cache,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer, pooling and length: of all that decides a vector."""
        parts = [self.identity, self.pooling, self.max_length]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.network.config.hidden_size)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector of length one a text, (n, width)."""
        return embedded(
            texts,
            self._compute,
            width=self.width,
            fingerprint=lambda: self.fingerprint,
            cache=self.cache,
        )

    def _compute(self, texts: list[str]) -> FloatArray:
        torch = require("torch", "llm")
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        if not texts:
            return vectors
        found = self.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids
        # An empty text may have no token at all; attention over nothing is undefined.
        tokens = [ids or [self._filler] for ids in found]
        for batch in token_batches([len(ids) for ids in tokens], self.max_batch_tokens):
            with torch.inference_mode():
                vectors[batch] = self._pooled([tokens[row] for row in batch]).cpu().numpy()
        return vectors

    @property
    def _filler(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _pooled(self, rows: list[list[int]]) -> Any:
        """Return the vectors of some tokenised texts, (b, width)."""
        torch = require("torch", "llm")
        longest = max(map(len, rows))
        padded = [ids + [self._filler] * (longest - len(ids)) for ids in rows]
        real = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows]
        ids, mask = (torch.tensor(part, device=self.network.device) for part in (padded, real))
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "first":
            pooled = states[:, 0]
        else:
            # The length that a mean would divide by goes away with the scaling below.
            pooled = (states * mask[:, :, None]).sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1)


def _load(found: Path | str, device: str) -> tuple[Any, Any]:
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        with conversion.quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(found), **options)
            network = transformers.AutoModel.from_pretrained(str(found), dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the text encoder {str(found)!r} does not load: {error}") from error
    if network.config.is_encoder_decoder:
        raise ModelError(
            f"{str(found)!r} is an encoder-decoder; a text encoder has one stack. Try minilm-l6."
        )
    return network.to(device).eval(), tokenizer
