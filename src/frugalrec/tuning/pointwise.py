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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from frugalrec.errors import ConfigError, DataError, ModelError, require
from frugalrec.llm.base import PromptGroup
from frugalrec.tuning.base import Progress, TrainingRow, Tuner
from frugalrec.tuning.packing import pack
from frugalrec.tuning.reload import check_reload, fresh_copy
from frugalrec.tuning.rows import build_rows
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.lora import LabelledGroup

__all__ = ["PointwiseConfig", "PointwiseTuner", "build_rows"]


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig:
    """Options of `PointwiseTuner`."""

    epochs: int = 2
    """Passes over the rows."""
    learning_rate: float = 5e-4
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
        if self.loss == "listwise" and not self.packing:
            raise ConfigError(
                "tuning: the listwise loss compares the rows of a packed group; keep packing on."
            )


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
        started, cpu = time.perf_counter(), time.process_time()
        fresh = fresh_copy(base)
        pack_groups = self._packs(fresh)
        groups, tokens = self._groups(base, rows, pack_groups)
        judged = self._groups(base, validation, pack_groups)[0] if validation else []
        checkpoints = _prepared(out, self._key(base, rows, validation))
        training = time.perf_counter()
        model, outcome = self._train(fresh.network, groups, judged, tokens, checkpoints, progress)
        trained_s = time.perf_counter() - training
        sha256 = lora.save(model, out)
        logits = lora.evaluate_groups(model, [group.packed for group in groups[:4]], tokens)
        odds = np.concatenate([(pair[:, 0] - pair[:, 1]).numpy() for pair in logits])
        n_parameters = sum(matrix.numel() for matrix in lora.adapter_weights(model).values())
        del model, fresh  # before the next copy is loaded
        difference = check_reload(base, out, rows[: odds.size], self.answers, odds)
        epochs, steps = self.config.epochs, len(outcome["loss_curve"])
        evidence = {
            **outcome,
            "config": asdict(self.config),
            "answers": list(self.answers),
            "packed": pack_groups,
            "rows": len(rows),
            "groups": len(groups),
            "validation_rows": len(validation or ()),
            "trainable_parameters": n_parameters,
            "tokens_trained": epochs * _tokens(groups),
            "tokens_trained_without_packing": epochs * _tokens(groups, alone=True),
            "tokens_validated": epochs * _tokens(judged),
            "reload_difference": difference,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            # A resumed run has trained only the steps after its checkpoint.
            "samples_per_second": epochs * len(rows) * (1 - outcome["resumed_at"] / steps) / trained_s,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
        shutil.rmtree(checkpoints)
        (out / "evidence.json").write_text(json.dumps(evidence, indent=1), encoding="utf-8")
        return Adapter(path=out, base=base.model, sha256=sha256, evidence=evidence)

    def _packs(self, fresh: LocalLM) -> bool:
        """Return whether to pack: asked for, and this network computes packed rows exactly."""
        from frugalrec.llm.scoring import CausalScorer

        if not self.config.packing:
            return False
        scorer = CausalScorer(fresh.network, pad=fresh.pad_id, max_batch_tokens=fresh.max_batch_tokens)
        exact = scorer.shares_exactly()
        if not exact and self.config.loss == "listwise":
            raise ModelError(f"{fresh.model} cannot compute packed groups; use the loss two-way.")
        return exact

    def _train(
        self,
        network: Any,
        groups: Sequence[LabelledGroup],
        judged: Sequence[LabelledGroup],
        tokens: tuple[int, int],
        checkpoints: Path,
        progress: Progress | None,
    ) -> tuple[Any, dict[str, Any]]:
        from frugalrec.tuning import lora

        config = self.config
        model = lora.add_lora(
            network,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.target_modules,
            seed=config.seed,
        )
        n_rows = sum(group.labels.size for group in groups)
        outcome = lora.train(
            model,
            groups,
            judged,
            tokens,
            checkpoints,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            groups_per_batch=max(1, config.batch_size * len(groups) // n_rows),
            loss=config.loss,
            seed=config.seed,
            progress=progress,
        )
        return model, outcome

    def _groups(
        self, base: LocalLM, rows: Sequence[TrainingRow], pack_groups: bool
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
        split = groupby(range(len(rows)), key=lambda i: rows[i].group if pack_groups else i)
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
