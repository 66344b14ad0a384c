"""Few-shot yes/no tuning: 64 samples, their cheap-model negatives, one small LoRA adapter.

After TALLRec (arXiv 2305.00447), with three differences that save most of its cost: the loss reads
only (Yes, No) at the answer position; a positive and its negatives share their prefix (`packing`);
negatives come from the cheap model's own list, so that the LLM learns what re-ranking asks of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from frugalrec.errors import ConfigError, DataError, ModelError, require
from frugalrec.llm.base import PromptGroup
from frugalrec.tuning.base import Progress, TrainingRow, Tuner
from frugalrec.tuning.options import TuningOptions
from frugalrec.tuning.packing import pack
from frugalrec.tuning.rows import build_rows
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.adapt import Plan
    from frugalrec.tuning.yes_no import LabelledGroup

__all__ = ["PointwiseConfig", "PointwiseTuner", "build_rows"]


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig(TuningOptions):
    """Options of `PointwiseTuner`; a prompt longer than `max_tokens` is an error, never cut silently.

    Steps take whole groups (at least one).
    """

    loss: Literal["two-way", "listwise"] = "two-way"
    """`two-way` is cross-entropy over (Yes, No); `listwise` is a softmax over each group."""
    packing: bool = True
    """Compute a group's shared prefix once; the loss is the same."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
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
        from frugalrec.tuning.adapt import adapt

        _check(base, rows)
        content = [self.answers, [asdict(row) for row in rows], [asdict(row) for row in validation or ()]]
        return adapt(
            base,
            lambda fresh: self._plan(fresh, rows, validation or ()),
            out,
            options=self.config,
            content=content,
            progress=progress,
        )

    def _plan(
        self, fresh: LocalLM, rows: Sequence[TrainingRow], validation: Sequence[TrainingRow]
    ) -> Plan[LabelledGroup]:
        from frugalrec.tuning.adapt import Plan
        from frugalrec.tuning.lora import compute_dtype
        from frugalrec.tuning.yes_no import YesNoTask

        packed = self._packs(fresh)
        groups, tokens = self._groups(fresh, rows, packed)
        evidence = {
            "answers": list(self.answers),
            "packed": packed,
            "groups": len(groups),
            "validation_rows": len(validation),
            "tokens_trained_without_packing": self.config.epochs * _tokens_alone(groups),
        }
        return Plan(
            task=YesNoTask(tokens, self.config.loss, compute_dtype(fresh.network)),
            items=groups,
            validation=self._groups(fresh, validation, packed)[0] if validation else [],
            n_rows=len(rows),
            evidence=evidence,
        )

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

    def _groups(
        self, base: LocalLM, rows: Sequence[TrainingRow], pack_groups: bool
    ) -> tuple[list[LabelledGroup], tuple[int, int]]:
        """Return the packed groups and the answers' tokens, tokenised as for inference."""
        from frugalrec.llm.queries import answer_queries
        from frugalrec.tuning.yes_no import LabelledGroup

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


def _check(base: LocalLM, rows: Sequence[TrainingRow]) -> None:
    if base.is_encoder_decoder:
        raise ModelError(f"{base.model} is an encoder-decoder; yes/no tuning needs a decoder-only model.")
    n_yes = sum(row.label for row in rows)
    if n_yes in (0, len(rows)):
        raise DataError(
            f"tuning needs rows of both answers; got {n_yes} Yes among {len(rows)}. "
            f"Raise the number of samples or of negatives."
        )


def _tokens_alone(groups: Sequence[LabelledGroup]) -> int:
    return sum(len(g.packed.prefix) + len(suffix) for g in groups for suffix in g.packed.suffixes)
