"""Few-shot yes/no tuning: 64 samples, their cheap-model negatives, one small LoRA adapter.

After TALLRec (arXiv 2305.00447), with three differences that save most of its cost: the loss reads
only (Yes, No) at the answer position; a positive and its negatives share their prefix (`packing`);
negatives come from the cheap model's own list, so that the LLM learns what re-ranking asks of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from frugalrec.errors import ConfigError, DataError, ModelError, require
from frugalrec.llm.base import PromptGroup
from frugalrec.tuning.base import Progress, TrainingRow, Tuner
from frugalrec.tuning.packing import pack
from frugalrec.tuning.rows import build_rows
from frugalrec.types import Adapter, FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.lora import LabelledGroup

__all__ = ["PointwiseConfig", "PointwiseTuner", "build_rows", "check_reload"]


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig:
    """Options of `PointwiseTuner`."""

    epochs: int = 2
    """Passes over the rows."""
    learning_rate: float = 1e-3
    """Rate of the first step; it falls linearly to 0."""
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
        """Tune on `rows`; see `Tuner.tune`. A second copy of the base model is loaded for it."""
        require("peft", "llm")
        from frugalrec.tuning import lora

        _check(base, rows)
        config, started, cpu = self.config, time.perf_counter(), time.process_time()
        groups, tokens = self._groups(base, rows)
        judged = self._groups(base, validation)[0] if validation else []
        key = self._key(base, rows, validation)
        checkpoints = _prepared(out, key)
        model = lora.add_lora(
            _fresh(base).network,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.target_modules,
            seed=config.seed,
        )
        outcome = lora.train(
            model,
            groups,
            judged,
            tokens,
            checkpoints,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            groups_per_batch=max(1, config.batch_size * len(groups) // len(rows)),
            loss=config.loss,
            seed=config.seed,
            progress=progress,
        )
        trained_s = time.perf_counter() - started
        sha256 = lora.save(model, out)
        probe = groups[:4]
        logits = lora.evaluate_groups(model, [group.packed for group in probe], tokens)
        odds = np.concatenate([(pair[:, 0] - pair[:, 1]).numpy() for pair in logits])
        n_parameters = sum(matrix.numel() for matrix in lora.adapter_weights(model).values())
        del model  # before the next copy is loaded
        probed = rows[: odds.size]
        evidence = {
            **outcome,
            "config": asdict(config),
            "answers": list(self.answers),
            "rows": len(rows),
            "groups": len(groups),
            "validation_rows": len(validation or ()),
            "trainable_parameters": n_parameters,
            "tokens_trained": config.epochs * _tokens(groups),
            "tokens_trained_without_packing": config.epochs * _tokens(groups, alone=True),
            "tokens_validated": config.epochs * _tokens(judged),
            "reload_difference": check_reload(base, out, probed, self.answers, odds),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "samples_per_second": config.epochs * len(rows) / trained_s,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
        shutil.rmtree(checkpoints)
        (out / "evidence.json").write_text(json.dumps(evidence, indent=1), encoding="utf-8")
        return Adapter(path=out, base=base.model, sha256=sha256, evidence=evidence)

    def _groups(
        self, base: LocalLM, rows: Sequence[TrainingRow]
    ) -> tuple[list[LabelledGroup], tuple[int, int]]:
        """Return the packed groups and the answers' tokens, tokenised as for inference."""
        from frugalrec.llm.queries import answer_queries
        from frugalrec.tuning.lora import LabelledGroup

        prompts = PromptGroup(prefix="", suffixes=tuple(row.prompt for row in rows))
        (queries,) = answer_queries(base, [prompts], self.answers)
        longest = max(range(len(rows)), key=lambda i: len(queries[i].tokens))
        if len(queries[longest].tokens) > self.config.max_tokens:
            raise DataError(
                f"a prompt has {len(queries[longest].tokens)} tokens, more than "
                f"max_tokens={self.config.max_tokens}: {rows[longest].prompt[:60]!r}... "
                f"Shorten the window or the titles, or raise max_tokens."
            )
        found = {tuple(query.targets[0].tolist()) for query in queries}
        if len(found) > 1:
            raise ModelError(f"the answers {self.answers} have other tokens after other prompts: {found}.")
        numbers = range(len(rows))
        split = groupby(numbers, key=lambda i: rows[i].group if self.config.packing else i)
        parts = [list(part) for _, part in split]
        groups = [
            LabelledGroup(
                packed=pack([queries[i].tokens for i in part]), labels=np.array([rows[i].label for i in part])
            )
            for part in parts
        ]
        yes, no = found.pop()
        return groups, (yes, no)

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


def check_reload(
    base: LocalLM, adapter: Path, rows: Sequence[TrainingRow], answers: tuple[str, str], odds: FloatArray
) -> float:
    """Load the adapter from disk on a fresh base model, ask as inference asks, and compare.

    Args:
        base: The model that was tuned.
        adapter: The adapter's folder.
        rows: Some training rows.
        answers: The answers' texts.
        odds: The trained model's log-odds of those rows, (n,).

    Returns:
        The largest absolute difference of log-odds.

    Raises:
        ModelError: If it exceeds what rounding explains.
    """
    groups = [
        PromptGroup(prefix="", suffixes=tuple(row.prompt for row in part))
        for _, part in groupby(rows, key=lambda row: row.group)
    ]
    answered, _ = _fresh(base, adapter).choose(groups, answers)
    again = np.concatenate([pair[:, 0] - pair[:, 1] for pair in answered])
    difference = float(np.abs(again - odds).max())
    tolerance = (1e-3 if base.dtype == "float32" else 0.1) * max(1.0, float(np.abs(odds).max()))
    if not difference <= tolerance:
        raise ModelError(
            f"the saved adapter in {adapter} gives other answers than the trained model (log-odds differ "
            f"by up to {difference:.3g}). Tune again; if it recurs, report your peft version."
        )
    return difference


def _check(base: LocalLM, rows: Sequence[TrainingRow]) -> None:
    if base.is_encoder_decoder:
        raise ModelError(f"{base.model} is an encoder-decoder; yes/no tuning needs a decoder-only model.")
    if base.adapter is not None:
        raise ModelError(f"{base.model} already carries the adapter {base.adapter}; tune the plain model.")
    n_yes = sum(row.label for row in rows)
    if n_yes in (0, len(rows)):
        raise DataError(
            f"tuning needs rows of both answers; got {n_yes} Yes among {len(rows)}. "
            f"Raise the number of samples or of negatives."
        )


def _fresh(base: LocalLM, adapter: Path | None = None) -> LocalLM:
    """Return another copy of the base model; the caller's stays as it is."""
    return type(base).load(
        base.source or base.model,
        adapter=adapter,
        dtype=cast(Any, base.dtype),
        device=base.device,
        max_batch_tokens=base.max_batch_tokens,
    )


def _tokens(groups: Sequence[LabelledGroup], *, alone: bool = False) -> int:
    if not alone:
        return sum(group.packed.length for group in groups)
    return sum(len(g.packed.prefix) + len(suffix) for g in groups for suffix in g.packed.suffixes)


def _prepared(out: Path, key: str) -> Path:
    """Return the checkpoint folder, emptied unless it belongs to the same call."""
    checkpoints = out / "checkpoints"
    mark = checkpoints / "key.txt"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        mark.write_text(key, encoding="utf-8")
    return checkpoints
