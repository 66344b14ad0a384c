"""Few-shot generative tuning: the LLM learns to write the title of the next item.

After BIGRec (arXiv 2308.08434), with two differences: the loss reads the answer only, and prompts are
written by the one function that also writes them at inference. Grounding turns what it writes into items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from frugalrec.errors import DataError, require
from frugalrec.llm.next_title import NextTitlePrompt, fitted
from frugalrec.tuning.base import Progress, TitleRow, Tuner
from frugalrec.tuning.options import TuningOptions
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query
    from frugalrec.tuning.adapt import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig(TuningOptions):
    """Options of `GenerativeTuner`; a row longer than `max_tokens` loses its oldest titles."""


class GenerativeTuner(Tuner):
    """LoRA tuning on rows (titles of the history, title of the next item)."""

    name: ClassVar[str] = "generative"

    def __init__(
        self, config: GenerativeConfig | None = None, *, prompt: NextTitlePrompt | None = None
    ) -> None:
        """Store the options.

        Args:
            config: How to train.
            prompt: How a row becomes text; ask with the same one at inference.
        """
        self.config = config or GenerativeConfig()
        self.prompt = prompt or NextTitlePrompt()

    def tune(
        self,
        base: LocalLM,
        rows: Sequence[TitleRow],
        validation: Sequence[TitleRow] | None,
        out: Path,
        *,
        progress: Progress | None = None,
    ) -> Adapter:
        """Tune on `rows`; see `Tuner.tune`. A second copy of the base model is loaded for it.

        Raises:
            DataError: If no row's title fits into `max_tokens`.
        """
        require("peft", "llm")
        from frugalrec.tuning.adapt import adapt

        said = [[[list(shown), title] for shown, title in part] for part in (rows, validation or ())]
        prompt = asdict(self.prompt)
        if prompt["learned"] is None:
            del prompt["learned"]  # adapters of worded prompts keep their names
        return adapt(
            base,
            lambda fresh: self._plan(fresh, rows, validation or ()),
            out,
            options=self.config,
            content=["next-title", prompt, *said],
            progress=progress,
        )

    def _plan(self, fresh: LocalLM, rows: Sequence[TitleRow], validation: Sequence[TitleRow]) -> Plan[Query]:
        from frugalrec.tuning.adapt import Plan
        from frugalrec.tuning.responses import ResponseTask

        queries, judged = self._queries(fresh, rows), self._queries(fresh, validation)
        if not queries:
            raise DataError(
                f"none of {len(rows)} rows fits into max_tokens={self.config.max_tokens}; give rows of "
                "(history titles, title), or raise max_tokens."
            )
        evidence = {
            "prompt": asdict(self.prompt),
            "rows_too_long": len(rows) - len(queries),
            "validation_rows": len(judged),
            "answer_tokens": sum(len(query.positions) for query in queries),
        }
        return Plan(
            task=ResponseTask(fresh.pad_id),
            items=queries,
            validation=judged,
            n_rows=len(queries),
            evidence=evidence,
        )

    def _queries(self, lm: LocalLM, rows: Sequence[TitleRow]) -> list[Query]:
        found = [fitted(lm, self.prompt, shown, title, self.config.max_tokens) for shown, title in rows]
        if missing := sum(query is None for query in found):
            log.warning("%d of %d rows are too long for max_tokens and left out", missing, len(rows))
        return [query for query in found if query is not None]
