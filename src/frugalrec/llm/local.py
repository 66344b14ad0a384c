"""Local language models: any Hugging Face causal or encoder-decoder model, on CPU or GPU.

Prompts of similar length are batched up to a token budget, so a result does not depend on what else
is in the call; candidates of one user share the computation of the user's prefix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from frugalrec.errors import ModelError, require
from frugalrec.ledger import Usage, measure
from frugalrec.llm import adapters, loading, models
from frugalrec.llm.base import Completion, LanguageModel, PromptGroup
from frugalrec.llm.batching import token_batches
from frugalrec.types import FloatArray


class LocalLM(LanguageModel):
    """A Hugging Face model in this process. Use `LocalLM.load`."""

    name: ClassVar[str] = "local"

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        model: str,
        source: Path | None = None,
        adapter: Path | None = None,
        max_batch_tokens: int = 8192,
        share_prefix: bool = True,
    ) -> None:
        self.network = network
        """The transformers (or PEFT) model; tune it in place if you like."""
        self.tokenizer = tokenizer
        self.model = model
        self.source = source
        self.adapter = adapter
        self.max_batch_tokens = max_batch_tokens
        """Padded tokens that one forward pass may hold."""
        self.share_prefix = share_prefix
        """Whether prefixes are computed once a group; off, every prompt is computed whole."""
        self.known: tuple[int, ...] = ()
        """Tokens that every text begins with and that are not read again; see `llm.kv_prefix`."""
        self._scorer: Any = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        adapter: Path | None = None,
        prompt: Path | None = None,
        dtype: loading.DType = "auto",
        device: str = "auto",
        max_batch_tokens: int = 8192,
        threads: int | None = None,
    ) -> Self:
        """Load a model that is on this machine, or that transformers can download.

        Args:
            model: An embedded model's name, a folder, or a Hugging Face id.
            adapter: A PEFT adapter's folder, put on top of the model.
            prompt: A learned prompt's folder; see `frugalrec.llm.prompt_files`.
            dtype: ``"auto"`` takes bfloat16 where the processor multiplies it in hardware, else
                float32: without that, bfloat16 is several times slower on a CPU.
            device: ``"auto"`` takes a GPU if there is one.
            max_batch_tokens: Padded tokens that one forward pass may hold.
            threads: CPU threads of torch, for the whole process; default: leave them as they are.

        Raises:
            ModelError: If there is no such model, adapter or prompt, or it does not load.
        """
        found = models.find(model)
        if threads is not None:
            require("torch", "llm").set_num_threads(threads)
        network, tokenizer = loading.load(found, dtype=dtype, device=device)
        if adapter is not None:
            network = adapters.with_adapter(network, adapter)
        loaded = cls(
            network.eval(),
            tokenizer,
            model=str(model),
            source=found if isinstance(found, Path) else None,
            adapter=adapter,
            max_batch_tokens=max_batch_tokens,
        )
        if prompt is not None:
            from frugalrec.llm.prompt_files import load_prompt

            load_prompt(loaded, prompt)
        return loaded

    @property
    def device(self) -> str:
        """Where the network is: ``"cpu"``, ``"cuda:0"``, ..."""
        return str(self.network.device)

    @property
    def dtype(self) -> str:
        """The type that the network computes in: ``"float32"`` or ``"bfloat16"``."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model reads prompts with an encoder of their own."""
        return bool(self.network.config.is_encoder_decoder)

    @property
    def max_tokens(self) -> int | None:
        """The longest prompt in tokens, or None where the architecture sets no limit."""
        if self.is_encoder_decoder:
            return None
        limit = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) - len(self.known) if limit else None

    @property
    def pad_id(self) -> int:
        """The token that fills short rows; it is always masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides answers: configuration, weights, tokenizer, adapter, number type.

        And of what was added to the input embedding: each of its parts that has a `sha256` tells its own,
        such as a learned prompt or whole-word rows.
        """
        parts: dict[str, Any] = {"dtype": self.dtype, "config": self.network.config.to_dict()}
        if self.source is not None:
            parts["files"] = loading.folder_hashes(self.source)
        else:
            parts["hub"] = [self.model, getattr(self.network.config, "_commit_hash", None)]
        if self.adapter is not None:
            # Its evidence, which holds times, does not change what it answers.
            hashes = loading.folder_hashes(Path(self.adapter))
            parts["adapter"] = {n: hashes[n] for n in (adapters.CONFIG, adapters.WEIGHTS) if n in hashes}
        added = self.network.get_input_embeddings().named_children()
        if read := {name: part.sha256 for name, part in added if hasattr(part, "sha256")}:
            parts["input_embedding"] = read
        if self.known:
            from frugalrec.llm.kv_prefix import kv_prefix

            prefix = kv_prefix(self)
            parts["prefix"] = None if prefix is None else prefix.sha256
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def chat(self, user: str, system: str | None = None) -> str:
        """Return `user` as a chat prompt that ends where the assistant's answer begins.

        Raises:
            ModelError: If the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.model} has no chat template; give it plain prompts instead.")
        turns = [{"role": "user", "content": user}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids; with the model's own start (and, for an encoder, end) tokens, once."""
        if not texts:
            return []
        if self.is_encoder_decoder:
            return [list(ids) for ids in self.tokenizer(list(texts)).input_ids]
        rows = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        start = self._start()
        whole = [[*start, *ids] if ids[: len(start)] != start else list(ids) for ids in rows]
        return [self._unknown(ids) for ids in whole] if self.known else whole

    def _unknown(self, ids: list[int]) -> list[int]:
        """Return the tokens behind those that are known."""
        if tuple(ids[: len(self.known)]) != self.known:
            raise ModelError(
                f"a text begins with other words than the prefix of {self.model} stands for "
                f"({self.tokenizer.decode(self.known)[:60]!r}...); write it with the prompt that the prefix "
                "was made for."
            )
        return ids[len(self.known) :]

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> tuple[list[Completion], Usage]:
        """Complete each prompt greedily, up to the end-of-text token or `max_new_tokens` tokens."""
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be 1 or more, not {max_new_tokens}.")
        rows = self.encode(prompts)
        self._check_lengths(rows, room=max_new_tokens)
        done: list[Completion] = [Completion(text="", tokens_out=0)] * len(rows)
        with self._running() as meter:
            lengths = [len(row) + max_new_tokens for row in rows]
            for batch in token_batches(lengths, self.max_batch_tokens):
                completions = self._generate_batch([rows[b] for b in batch], max_new_tokens)
                for position, completion in zip(batch, completions, strict=True):
                    done[position] = completion
            meter.add(
                Usage(
                    tokens_in=sum(map(len, rows)),
                    tokens_out=sum(completion.tokens_out for completion in done),
                    llm_calls=len(rows),
                )
            )
        return done, self._spent(meter.usage)

    def loglikelihood(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[FloatArray], Usage]:
        """Return, per prompt, the summed log-probability (nats) of each of its continuations.

        Prompt and continuation are tokenised as one text. What counts is every token after the
        longest start that this text's tokens share with the prompt's own; usually these are exactly
        the continuation's tokens.
        """
        if len(prompts) != len(continuations):
            raise ModelError(
                f"{len(prompts)} prompts need as many lists of continuations, not {len(continuations)}."
            )
        from frugalrec.llm.queries import continuation_queries

        groups = continuation_queries(self, prompts, continuations)
        scores, usage = self._score(groups)
        sums = [np.array([values.sum() for values in group], dtype=np.float32) for group in scores]
        return sums, usage

    def choose(self, groups: Sequence[PromptGroup], answers: Sequence[str]) -> tuple[list[FloatArray], Usage]:
        """Return, per group, log-probabilities (n_suffixes, n_answers) of the answers' first token."""
        from frugalrec.llm.queries import answer_queries

        scores, usage = self._score(answer_queries(self, groups, answers))
        empty = np.empty((0, len(answers)), dtype=np.float32)
        return [np.concatenate([empty, *group]) for group in scores], usage

    def _start(self) -> list[int]:
        """Return the tokens that the tokenizer puts before a text (beginning of sequence), if any."""
        tokenizer = self.tokenizer
        bos = tokenizer.bos_token_id
        return [bos] if bos is not None and tokenizer("a").input_ids[0] == bos else []

    def _check_lengths(self, rows: Sequence[Sequence[int]], *, room: int = 0) -> None:
        limit = self.max_tokens
        for number, row in enumerate(rows):
            if not row:
                raise ModelError(f"prompt {number} is empty; a language model needs at least one token.")
            if limit is not None and len(row) + room > limit:
                extra = f" and {room} new ones" if room else ""
                raise ModelError(
                    f"prompt {number} has {len(row):,} tokens{extra}, but {self.model} holds {limit:,}. "
                    "Shorten the history or the titles in the prompt."
                )

    def _generate_batch(self, rows: Sequence[Sequence[int]], max_new_tokens: int) -> list[Completion]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, rows))
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        own = self.network.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=ends,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
        )
        device = self.network.device
        output = self.network.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        skip = 1 if self.is_encoder_decoder else width
        stops = set(ends if isinstance(ends, list) else [ends])
        return [self._completion(new, stops) for new in output[:, skip:].tolist()]

    def _completion(self, tokens: Sequence[int], stops: set[int | None]) -> Completion:
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Completion(text=text, tokens_out=end)

    def _score(self, groups: Any) -> tuple[list[list[FloatArray]], Usage]:
        for group in groups:
            self._check_lengths([query.tokens for query in group])
        if self._scorer is None:
            from frugalrec.llm import scoring

            self._scorer = (
                scoring.Seq2SeqScorer(self.network, pad=self.pad_id, max_batch_tokens=self.max_batch_tokens)
                if self.is_encoder_decoder
                else scoring.CausalScorer(
                    self.network,
                    pad=self.pad_id,
                    max_batch_tokens=self.max_batch_tokens,
                    share_prefix=self.share_prefix,
                )
            )
        with self._running() as meter:
            scores, usage = self._scorer.score(groups)
            meter.add(usage)
        return scores, self._spent(meter.usage)

    @contextmanager
    def _running(self) -> Iterator[Any]:
        """Measure a block without gradients and dropout; a network in training goes back to it."""
        import torch

        # no_grad, not inference_mode: tensors that a network caches inside stay usable for tuning.
        training = self.network.training
        self.network.eval()
        try:
            with measure() as meter, torch.no_grad():
                yield meter
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.model} ran out of memory on {self.device} with batches of "
                f"{self.max_batch_tokens} tokens; "
                "give a smaller max_batch_tokens."
            ) from error
        finally:
            self.network.train(training)

    def _spent(self, usage: Usage) -> Usage:
        return usage if self.device == "cpu" else replace(usage, accelerator_s=usage.wall_s)
