"""Effort: how hard a training sample is for the LLM, as the norm of its gradient before tuning.

After DEALRec (arXiv 2401.17197): the score of a sample (history, next title) is the L2 norm of the
gradient, with respect to the LoRA matrices at their starting point, of the loss of the title. Unlike
the published code, the loss reads the answer's tokens only, there is no dropout, a score does not
depend on what else is in the batch, and only the norm is kept.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.engine import map_batches
from frugalrec.errors import ConfigError, ModelError, require
from frugalrec.grounding.questions import known_titles
from frugalrec.ledger import Usage, measure
from frugalrec.llm.next_title import NextTitlePrompt, fitted
from frugalrec.rng import generator
from frugalrec.runs import key_hash
from frugalrec.selection.base import Scorer
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

log = logging.getLogger(__name__)


class Effort(Scorer):
    """The norm of each row's gradient at the untuned LLM; harder rows score higher.

    Undefined (NaN) for rows outside the `pool`, for rows whose target has no title or whose answer alone
    exceeds `max_tokens`, and where the LLM's numbers overflow. History items without a title are not shown.
    Values and labels of a row play no part. In `costs_`, `tokens_cached` are those of the prompts' common
    opening, where it is computed once.
    """

    name: ClassVar[str] = "effort"
    prefers: ClassVar[str] = "rows with a large gradient of the LLM before tuning"
    takes: ClassVar[frozenset[str]] = frozenset({"seed", "progress", "llm", "dtype", "noun", "cache"})

    def __init__(
        self,
        *,
        model: LocalLM | str | Path | None = None,
        llm: LocalLM | str | Path = "smollm2-135m",
        noun: str = "item",
        prompt: NextTitlePrompt | Mapping[str, Any] | None = None,
        max_tokens: int = 512,
        rank: int = 8,
        alpha: int = 16,
        targets: str | Sequence[str] = "all-linear",
        parameters: str = "lora_",
        reduction: Literal["mean", "sum"] = "mean",
        pool: int | None = None,
        seed: int = 0,
        max_batch_tokens: int = 1024,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        cache: Path | str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Store the options.

        Args:
            model: Another model in place of `llm`: a smaller one costs less.
            llm: The model that will be tuned: a loaded one, or what `LocalLM.load` takes. With an
                adapter, it is scored at that adapter; else it gets fresh LoRA matrices (B = 0), which
                are removed again.
            noun: What one item is called, where `prompt` does not say.
            prompt: How a row becomes text, or the fields of a `NextTitlePrompt`; default: its defaults.
            max_tokens: Longest prompt and answer together. The oldest titles fall away first, then
                the end of the only title left.
            rank: Rank of fresh LoRA matrices.
            alpha: LoRA scale; updates are multiplied by alpha / rank.
            targets: Which layers get LoRA matrices, in PEFT's words.
            parameters: Regular expression, searched in parameter names: whose gradient counts. Or
                ``"reference"``: what the published code takes, matrix B of the last layer's v_proj,
                for a quarter to a half of the time.
            reduction: A row's loss is the `mean` over its answer's tokens (the end-of-text token
                included), which is what tuning minimises, or the `sum`, which grows with the title.
            pool: Score only so many rows, drawn at random; the rest is undefined. Default: all.
            seed: Seed of the LoRA matrices and of the pool.
            max_batch_tokens: Padded tokens in one pass.
            dtype: The type that a model which is loaded here computes in.
            cache: A folder where finished batches are kept, so that a killed call goes on where it
                was. Default: none.
            progress: Is told (rows done, rows in all) after each batch.
        """
        self.model = llm if model is None else model
        self.noun = noun
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.parameters = parameters
        self.reduction = reduction
        self.pool = pool
        self.seed = seed
        self.max_batch_tokens = max_batch_tokens
        self.dtype = dtype
        self.cache = cache
        self.progress = progress

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        require("peft", "llm")
        self._check()
        scores = np.full(len(examples), np.nan, dtype=np.float32)
        with measure() as meter:
            lm, prompt = self._load(), self._prompt()
            rows = np.arange(len(examples))
            if self.pool is not None:
                rng = generator(self.seed, "selection", "effort", "pool")
                rows = np.sort(rng.permutation(rows)[: self.pool])
            titles = known_titles(None, dataset)
            found = {int(row): self._query(lm, prompt, examples, titles, int(row)) for row in rows}
            queries = {row: query for row, query in found.items() if query is not None}
            if not queries:
                raise ConfigError(
                    f"effort: no row has a titled target that fits into {self.max_tokens} tokens with its "
                    "prompt, even with an empty history; raise max_tokens, or give items titles."
                )
            norms, usage = self._norms(lm, list(queries.values()))
            meter.add(usage)
            scores[list(queries)] = norms
        usage = meter.usage
        held_s = 0.0 if lm.device == "cpu" else usage.wall_s
        self.costs_ = {self.name: replace(usage, accelerator_s=held_s)}
        undefined = int(np.isnan(scores[rows]).sum())
        if undefined:
            log.info("effort: %d of %d rows too long, untitled or not finite: no score", undefined, rows.size)
        return scores

    def _check(self) -> None:
        for name in ("max_tokens", "rank", "alpha", "max_batch_tokens", "pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"effort: {name} must be at least 1, not {value}.")

    def _load(self) -> LocalLM:
        from frugalrec.llm.local import LocalLM

        return self.model if isinstance(self.model, LocalLM) else LocalLM.load(self.model, dtype=self.dtype)

    def _prompt(self) -> NextTitlePrompt:
        if isinstance(self.prompt, NextTitlePrompt):
            return self.prompt
        try:
            return NextTitlePrompt(**{"noun": self.noun, **(self.prompt or {})})
        except TypeError as error:
            raise ConfigError(f"effort: a prompt has no such field: {error}.") from None

    def _query(
        self, lm: LocalLM, prompt: NextTitlePrompt, examples: Examples, titles: Sequence[str], row: int
    ) -> Query | None:
        history = [titles[item] for item in examples.history(row) if titles[item]]
        title = titles[examples.targets[row]]
        return fitted(lm, prompt, history, title, self.max_tokens) if title else None

    def _norms(self, lm: LocalLM, queries: Sequence[Query]) -> tuple[FloatArray, Usage]:
        """Return the norms, NaN where they are not finite, and the tokens they took."""
        from frugalrec.llm.fresh_lora import with_lora
        from frugalrec.selection.gradient_norms import GradientNorms, plan

        norms = np.full(len(queries), np.nan, dtype=np.float32)
        with with_lora(lm, self.rank, self.alpha, self.targets, self.seed) as network:
            pattern = _reference(network) if self.parameters == "reference" else self.parameters
            norms_of = GradientNorms(network, parameters=pattern, reduction=self.reduction, pad=lm.pad_id)
            with norms_of as compute, _out_of_memory(lm, self.max_batch_tokens):
                shared = compute.share(queries)
                batches = plan(network, queries, self.max_batch_tokens, shared=shared)
                for batch, found in map_batches(
                    lambda batch: compute([queries[row] for row in batch]),
                    batches,
                    rows=len(queries),
                    store=self._store(lm, network, pattern, queries, batches),
                    progress=self.progress,
                ):
                    norms[batch] = found
        norms[~np.isfinite(norms)] = np.nan
        tokens, spared = sum(len(q.tokens) + len(q.decoder) for q in queries), shared * len(queries)
        return norms, Usage(tokens_in=tokens - spared, tokens_cached=spared, llm_calls=len(queries))

    def _store(
        self, lm: LocalLM, network: Any, pattern: str, queries: Sequence[Query], batches: list[list[int]]
    ) -> Path | None:
        """Return the file of finished batches, named by a hash of everything that decides their norms."""
        import torch

        if self.cache is None:
            return None
        texts, matrices = hashlib.sha256(), hashlib.sha256()
        for query in queries:
            texts.update(repr((query.tokens, query.decoder, query.targets.ravel().tolist())).encode())
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                matrices.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
        scales = [self.alpha / self.rank] if lm.adapter is None else []
        key = {
            "model": [lm.fingerprint, lm.device.partition(":")[0], torch.__version__],
            "lora": [matrices.hexdigest(), scales],
            "options": [pattern, self.reduction],
            "texts": texts.hexdigest(),
            "batches": batches,
        }
        return Path(self.cache) / f"effort-{key_hash(key)[:16]}.sqlite"


def _reference(network: Any) -> str:
    last = network.config.get_text_config().num_hidden_layers - 1
    return rf"layers\.{last}\.self_attn\.v_proj\.lora_B"


@contextmanager
def _out_of_memory(lm: LocalLM, max_batch_tokens: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{lm.model} ran out of memory on {lm.device} with batches of {max_batch_tokens} tokens; "
            "give a smaller max_batch_tokens."
        ) from error
