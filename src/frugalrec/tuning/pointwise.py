"""Few-shot yes/no tuning: 64 samples, their cheap-model negatives, one small LoRA adapter.

After TALLRec (arXiv 2305.00447), with differences that save most of its cost: the loss reads only
(Yes, No) where an answer comes; prompts of one user share their prefix (`packing`); and answers that
already stand in a prompt, as in rated lists (`llm.preferences`), are trained with the one it asks for.
The published loss, over every token of the prompt, is the loss `paper`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

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
    from frugalrec.llm.scoring import Query
    from frugalrec.tuning.adapt import Plan
    from frugalrec.tuning.yes_no import LabelledGroup

__all__ = ["PointwiseConfig", "PointwiseTuner", "build_rows"]

Loss = Literal["two-way", "listwise", "response", "paper"]


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig(TuningOptions):
    """Options of `PointwiseTuner`; a prompt longer than `max_tokens` is an error, never cut silently.

    Steps take whole groups (at least one).
    """

    loss: Loss = "two-way"
    """`two-way` is cross-entropy over (Yes, No); `listwise` is a softmax over each group; `response` is
    the language model's own loss on the answer and the end of text; `paper` is that on every token,
    prompts included, as TALLRec trained."""
    packing: bool = True
    """Compute a group's shared prefix once; the loss is the same."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.loss not in get_args(Loss):
            known = ", ".join(get_args(Loss))
            raise ConfigError(f"tuning: unknown loss {self.loss!r}; choose one of {known}.")
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

        _check(rows)
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
    ) -> Plan[Any]:
        from frugalrec.tuning.adapt import Plan
        from frugalrec.tuning.responses import ResponseTask

        evidence = {"answers": list(self.answers), "validation_rows": len(validation)}
        if self.config.loss in ("response", "paper"):
            return Plan(
                task=ResponseTask(fresh.pad_id),
                items=self._texts(fresh, rows),
                validation=self._texts(fresh, validation),
                n_rows=len(rows),
                evidence=evidence,
            )
        return self._yes_no(fresh, rows, validation, evidence)

    def _yes_no(
        self,
        fresh: LocalLM,
        rows: Sequence[TrainingRow],
        validation: Sequence[TrainingRow],
        evidence: Mapping[str, Any],
    ) -> Plan[LabelledGroup]:
        from frugalrec.llm.queries import decoder_start
        from frugalrec.tuning.adapt import Plan
        from frugalrec.tuning.lora import compute_dtype
        from frugalrec.tuning.yes_no import YesNoTask

        packed = self._packs(fresh)
        groups, tokens = self._groups(fresh, rows, packed)
        judged, again = self._groups(fresh, validation, packed) if validation else ([], tokens)
        if again != tokens:
            raise ModelError(
                f"the answers {self.answers} have the tokens {tokens} after the training prompts and {again} "
                "after those of validation; write both with the same prompt."
            )
        return Plan(
            task=YesNoTask(
                tokens,
                self.config.loss,
                compute_dtype(fresh.network),
                decoder_start=decoder_start(fresh) if fresh.is_encoder_decoder else None,
            ),
            items=groups,
            validation=judged,
            n_rows=len(rows),
            evidence={
                **evidence,
                "packed": packed,
                "groups": len(groups),
                "answers_trained": sum(group.labels.size for group in groups),
                "tokens_trained_without_packing": self.config.epochs * _tokens_alone(groups),
            },
        )

    def _packs(self, fresh: LocalLM) -> bool:
        """Return whether to pack: asked for, and this network computes packed rows exactly."""
        from frugalrec.llm.scoring import CausalScorer

        if not self.config.packing:
            return False
        exact = False
        if not fresh.is_encoder_decoder:
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

        prompts = PromptGroup(prefix="", suffixes=tuple(row.prompt for row in rows))
        (queries,) = answer_queries(base, [prompts], self.answers)
        self._check_lengths(rows, [len(query.tokens) for query in queries])
        found = {tuple(query.targets[0].tolist()) for query in queries}
        if len(found) > 1:
            raise ModelError(f"the answers {self.answers} have other tokens after other prompts: {found}.")
        yes, no = found.pop()
        split = groupby(range(len(rows)), key=lambda i: rows[i].group if pack_groups else i)
        parts = [list(part) for _, part in split]
        tokens = [query.tokens for query in queries]
        groups = [
            _group(base, [rows[i] for i in part], [tokens[i] for i in part], (yes, no)) for part in parts
        ]
        return groups, (yes, no)

    def _texts(self, base: LocalLM, rows: Sequence[TrainingRow]) -> list[Query]:
        """Return what the losses over whole texts read: the answer's tokens, or every token."""
        from frugalrec.llm.queries import response_query

        whole = self.config.loss == "paper"
        if whole and base.is_encoder_decoder:
            raise ModelError(f"an encoder of {base.model} reads the prompt; use the loss response.")
        queries = [response_query(base, row.prompt, self.answers[0 if row.label else 1]) for row in rows]
        self._check_lengths(rows, [len(query.tokens) for query in queries])
        if not whole:
            return queries
        return [
            replace(
                query,
                positions=tuple(range(len(query.tokens))),
                targets=np.array([*query.tokens[1:], query.targets[-1, 0]], dtype=np.int64)[:, None],
            )
            for query in queries
        ]

    def _check_lengths(self, rows: Sequence[TrainingRow], lengths: Sequence[int]) -> None:
        longest = max(range(len(rows)), key=lambda i: lengths[i], default=None)
        if longest is not None and lengths[longest] > self.config.max_tokens:
            raise DataError(
                f"a prompt has {lengths[longest]} tokens, more than "
                f"max_tokens={self.config.max_tokens}: {rows[longest].prompt[:60]!r}... "
                f"Shorten the window or the titles, or raise max_tokens."
            )


def _group(
    base: LocalLM,
    rows: Sequence[TrainingRow],
    tokens: Sequence[tuple[int, ...]],
    answers: tuple[int, int],
) -> LabelledGroup:
    """Return the packed prompts of one user with all their answers, those that stand in them included."""
    from frugalrec.llm.queries import known_places
    from frugalrec.tuning.yes_no import LabelledGroup

    asked, labels = [], []
    for number, (row, ids) in enumerate(zip(rows, tokens, strict=True)):
        if row.known and not base.is_encoder_decoder:
            places = known_places(base, row.prompt, ids, row.known, answers)
            asked += [(number, place) for place in places]
            labels += [yes for _, yes in row.known]
        asked.append((number, len(ids) - 1))
        labels.append(row.label)
    return LabelledGroup(packed=pack(tokens), asked=tuple(asked), labels=np.array(labels))


def _check(rows: Sequence[TrainingRow]) -> None:
    n_yes = sum(row.label for row in rows)
    if n_yes in (0, len(rows)):
        raise DataError(
            f"tuning needs rows of both answers; got {n_yes} Yes among {len(rows)}. "
            f"Raise the number of samples or of negatives."
        )


def _tokens_alone(groups: Sequence[LabelledGroup]) -> int:
    return sum(len(g.packed.prefix) + len(suffix) for g in groups for suffix in g.packed.suffixes)
