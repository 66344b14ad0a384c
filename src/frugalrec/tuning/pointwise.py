"""Few-shot yes/no tuning: 64 samples, their cheap-model negatives, one small LoRA adapter.

After TALLRec (arXiv 2305.00447), with three differences that save most of its cost: the loss reads
only (Yes, No) at the answer position; a positive and its negatives share their prefix (`packing`);
negatives come from the cheap model's own list, so that the LLM learns what re-ranking asks of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError, DataError, ModelError, require
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.rng import generator
from frugalrec.tuning.base import Progress, TrainingRow, Tuner
from frugalrec.tuning.packing import Packed, pack
from frugalrec.types import PAD, Adapter, IntArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.lora import LabelledGroup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig:
    """Options of `PointwiseTuner`."""

    epochs: int = 2
    """Passes over the rows."""
    learning_rate: float = 1e-3
    """Peak rate; the tenth part of the steps warms up, then it falls to 0."""
    rank: int = 8
    """Rank of the LoRA matrices."""
    alpha: int = 16
    """LoRA scale; updates are multiplied by alpha / rank."""
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers get LoRA matrices, in PEFT's words."""
    batch_size: int = 16
    """Rows in one step, in whole groups (at least one)."""
    max_tokens: int = 512
    """Longest prompt; a longer one is an error, never cut silently."""
    loss: Literal["two-way", "listwise"] = "two-way"
    """`two-way` is cross-entropy over (Yes, No); `listwise` is a softmax over each group."""
    packing: bool = True
    """Compute a group's shared prefix once; the loss is the same."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("epochs", "rank", "alpha", "batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tuning: {name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"tuning: learning_rate must lie between 0 and 1, not {self.learning_rate}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"tuning: dropout must be at least 0 and below 1, not {self.dropout}.")
        if self.loss not in ("two-way", "listwise"):
            raise ConfigError(f"tuning: unknown loss {self.loss!r}; choose two-way or listwise.")


def build_rows(
    examples: Examples,
    dataset: Dataset,
    cheap_negatives: IntArray,
    prompt: RerankPrompt,
    *,
    n_negatives: int = 3,
    seed: int = 0,
) -> list[TrainingRow]:
    """Turn examples into yes/no rows: the target, and candidates of the cheap model in its place.

    Where the prompt shows ratings (`prompt.min_like`) and the target was rated below it, the target
    is a No too: the user chose it and was disappointed.

    Args:
        examples: The selected rows.
        dataset: The data set of the examples, for titles and for what else the user has consumed.
        cheap_negatives: The cheap model's list for each row, (n, m), best first, padded with -1.
        prompt: The prompt that inference will use.
        n_negatives: Negatives per row, drawn from the list without replacement; fewer where the
            list, less the target and everything the user has consumed, is shorter.
        seed: Seed of the draw; a row's draw depends on its user and target only.

    Raises:
        DataError: If the list has another number of rows than the examples.
    """
    lists = np.asarray(cheap_negatives)
    if lists.ndim != 2 or lists.shape[0] != len(examples):
        raise DataError(
            f"cheap_negatives must have one row per example, ({len(examples)}, m); got {lists.shape}."
        )
    if n_negatives < 0:
        raise ConfigError(f"n_negatives must be at least 0, not {n_negatives}.")
    rows: list[TrainingRow] = []
    for number, (user, target) in enumerate(zip(examples.users, examples.targets, strict=True)):
        history = examples.history(number)
        window = slice(examples.indptr[number], examples.indptr[number + 1])
        values = None if examples.values is None else examples.values[window]
        prefix = prompt.for_history(history.tolist(), values, dataset.titles)
        known = np.concatenate([history, dataset.history(int(user)), [target, PAD]])
        free = lists[number][~np.isin(lists[number], known)]
        draw = generator(seed, "negatives", int(user), int(target)).permutation(free.size)[:n_negatives]
        liked = (
            prompt.min_like is None
            or examples.labels is None
            or bool(examples.labels[number] >= prompt.min_like)
        )
        for item, label in [(int(target), liked), *((int(free[i]), False) for i in draw)]:
            text = prefix + prompt.suffix(dataset.titles[item])
            rows.append(TrainingRow(prompt=text, label=label, group=number))
    return rows


class PointwiseTuner(Tuner):
    """LoRA tuning on yes/no rows, by the Hugging Face Trainer."""

    name: ClassVar[str] = "pointwise"

    def __init__(
        self, config: PointwiseConfig | None = None, *, answers: tuple[str, str] = (" Yes", " No")
    ) -> None:
        self.config = config or PointwiseConfig()
        self.answers = answers

    def tune(
        self,
        base: LocalLM,
        rows: Sequence[TrainingRow],
        validation: Sequence[TrainingRow] | None,
        out: Path,
        *,
        progress: Progress | None = None,
    ) -> Adapter:
        """Tune on `rows`; see `Tuner.tune`. A second copy of the model is loaded for it."""
        require("peft", "llm")
        from frugalrec.tuning import lora

        if not any(row.label for row in rows) or all(row.label for row in rows):
            raise DataError(
                f"tuning needs rows of both answers; got {sum(row.label for row in rows)} Yes "
                f"among {len(rows)}. Raise the number of samples or of negatives."
            )
        config = self.config
        started, cpu = time.perf_counter(), time.process_time()
        tokenizer = base.tokenizer
        tokens = answer_tokens(tokenizer, rows[0].prompt, self.answers)
        groups = self._groups(tokenizer, rows)
        judged = self._groups(tokenizer, validation) if validation else []
        key = self._key(base, rows, validation)
        checkpoints = _prepared(out, key)
        model = lora.add_lora(
            base.fresh_model(),
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.target_modules,
            seed=config.seed,
        )
        per_group = max(1, round(len(rows) / len(groups)))
        outcome = lora.train(
            model,
            groups,
            judged,
            tokens,
            checkpoints,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            groups_per_batch=max(1, config.batch_size // per_group),
            loss=config.loss,
            seed=config.seed,
            progress=progress,
        )
        trained_s = time.perf_counter() - started
        sha256 = lora.save(model, out)
        probe = [group.packed for group in groups[:4]]
        logits = lora.evaluate_groups(model, probe, tokens)
        n_parameters = sum(matrix.numel() for matrix in lora.adapter_weights(model).values())
        del model
        difference = lora.check_reload(base.fresh_model(), out, probe, tokens, logits)
        shutil.rmtree(checkpoints)
        once = sum(len(group.packed) for group in groups)
        evidence = {
            **outcome,
            "config": asdict(config),
            "answers": list(self.answers),
            "key": key,
            "rows": len(rows),
            "groups": len(groups),
            "validation_rows": sum(group.labels.size for group in judged),
            "trainable_parameters": n_parameters,
            "tokens_trained": config.epochs * once,
            "tokens_without_packing": config.epochs * sum(g.packed.n_tokens_alone for g in groups),
            "tokens_validated": config.epochs * sum(len(group.packed) for group in judged),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "samples_per_second": config.epochs * len(rows) / trained_s,
            "reload_max_difference": difference,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
        (out / "evidence.json").write_text(json.dumps(evidence, indent=1), encoding="utf-8")
        return Adapter(path=out, base=base.model, sha256=sha256, evidence=evidence)

    def _groups(self, tokenizer: Any, rows: Sequence[TrainingRow]) -> list[LabelledGroup]:
        from frugalrec.tuning.lora import LabelledGroup

        encoded = encode(tokenizer, [row.prompt for row in rows], self.config.max_tokens)
        numbered = enumerate(rows)
        if self.config.packing:
            parts = [[i for i, _ in part] for _, part in groupby(numbered, key=lambda pair: pair[1].group)]
        else:
            parts = [[i] for i, _ in numbered]
        return [
            LabelledGroup(
                packed=pack([encoded[i] for i in part]), labels=np.array([rows[i].label for i in part])
            )
            for part in parts
        ]

    def _key(
        self, base: LocalLM, rows: Sequence[TrainingRow], validation: Sequence[TrainingRow] | None
    ) -> str:
        content = [
            base.fingerprint,
            asdict(self.config),
            self.answers,
            [asdict(row) for row in rows],
            [asdict(row) for row in validation or ()],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def encode(tokenizer: Any, prompts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the token ids of each whole prompt.

    Raises:
        DataError: If a prompt is longer than `max_tokens`.
    """
    encoded: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if len(encoded[longest]) > max_tokens:
        raise DataError(
            f"a prompt has {len(encoded[longest])} tokens, more than max_tokens={max_tokens}: "
            f"{prompts[longest][:60]!r}... Shorten the window or the titles, or raise max_tokens."
        )
    return encoded


def answer_tokens(tokenizer: Any, prompt: str, answers: tuple[str, str]) -> tuple[int, int]:
    """Return the first token of each answer as it stands after a prompt.

    Raises:
        ModelError: If both answers begin with the same token, or an answer changes the prompt's tokens.
    """
    alone = tokenizer(prompt)["input_ids"]
    found: list[int] = []
    for answer in answers:
        whole = tokenizer(prompt + answer)["input_ids"]
        if whole[: len(alone)] != alone or len(whole) == len(alone):
            raise ModelError(f"the answer {answer!r} merges with the end of the prompt {prompt[-20:]!r}.")
        found.append(int(whole[len(alone)]))
    if found[0] == found[1]:
        raise ModelError(f"the answers {answers} begin with the same token; choose others.")
    return found[0], found[1]


def _prepared(out: Path, key: str) -> Path:
    """Return the checkpoint folder, emptied unless it belongs to the same call."""
    checkpoints = out / "checkpoints"
    mark = checkpoints / "key.txt"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        mark.write_text(key, encoding="utf-8")
    return checkpoints


__all__ = ["Packed", "PointwiseConfig", "PointwiseTuner", "answer_tokens", "build_rows", "encode"]
