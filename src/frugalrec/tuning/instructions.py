"""General instruction tuning: an optional first stage whose adapter the recommendation stage starts from.

After TALLRec (arXiv 2305.00447), which tunes on Alpaca's instructions before its own. The file format
is Alpaca's: a JSON array of objects with `instruction`, `input` (may be empty) and `output`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from frugalrec.errors import DataError, require
from frugalrec.tuning.base import Progress, Tuner
from frugalrec.tuning.options import TuningOptions
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query
    from frugalrec.tuning.adapt import Plan

log = logging.getLogger(__name__)

_OPENING = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A task in words, what it is about, and its solution."""

    instruction: str
    input: str
    output: str

    def prompt(self, frame: tuple[str, str] | None = None) -> str:
        r"""Return the text that the output follows.

        >>> Instruction(instruction="Add.", input="1 2", output="3").prompt(("<u>", "<a>"))
        '<u>Add.\n1 2<a>'

        Args:
            frame: Text before and after it, as in chat templates; default: Alpaca's template.
        """
        if frame is not None:
            words = f"{self.instruction}\n{self.input}" if self.input else self.instruction
            return f"{frame[0]}{words}{frame[1]}"
        if self.input:
            return (
                f"{_OPENING}, paired with an input that provides further context. {_REQUEST}\n\n"
                f"### Instruction:\n{self.instruction}\n\n### Input:\n{self.input}\n\n### Response:\n"
            )
        return f"{_OPENING}. {_REQUEST}\n\n### Instruction:\n{self.instruction}\n\n### Response:\n"


def read_instructions(path: Path | str) -> list[Instruction]:
    """Read instructions from a JSON file in Alpaca's format.

    Raises:
        DataError: If there is no such file, it holds something else, or an output is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"there is no file {path} with instructions; give a JSON array of objects with instruction, "
            "input and output, or leave the first stage out."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch the file again.") from None
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: expected a non-empty JSON array of instructions.")
    rows = []
    for number, row in enumerate(content, start=1):
        texts = (
            [row.get(name, "") for name in ("instruction", "input", "output")] if type(row) is dict else []
        )
        if not texts or not all(isinstance(text, str) for text in texts) or not (texts[0] and texts[2]):
            raise DataError(
                f"{path}, row {number}: expected an object with texts instruction, input and output (only "
                f"the input may be empty), not {row!r:.80}."
            )
        rows.append(Instruction(instruction=texts[0], input=texts[1], output=texts[2]))
    return rows


class InstructionTuner(Tuner):
    """LoRA tuning on instructions; the loss reads their outputs only."""

    name: ClassVar[str] = "instructions"

    def __init__(self, config: TuningOptions | None = None, *, frame: tuple[str, str] | None = None) -> None:
        """Store the options.

        Args:
            config: How to train; instructions longer than `max_tokens` are left out.
            frame: See `Instruction.prompt`.
        """
        self.config = config or TuningOptions()
        self.frame = frame

    def tune(
        self,
        base: LocalLM,
        rows: Sequence[Instruction],
        validation: Sequence[Instruction] | None,
        out: Path,
        *,
        progress: Progress | None = None,
    ) -> Adapter:
        """Tune on `rows`; see `Tuner.tune`."""
        require("peft", "llm")
        from frugalrec.tuning.adapt import adapt

        said = [[(row.prompt(self.frame), row.output) for row in part] for part in (rows, validation or ())]
        return adapt(
            base,
            lambda fresh: self._plan(fresh, *said),
            out,
            options=self.config,
            content=["instructions", *said],
            progress=progress,
        )

    def _plan(
        self,
        fresh: LocalLM,
        rows: Sequence[tuple[str, str]],
        validation: Sequence[tuple[str, str]],
    ) -> Plan[Query]:
        from frugalrec.tuning.adapt import Plan
        from frugalrec.tuning.responses import ResponseTask

        queries, judged = self._queries(fresh, rows), self._queries(fresh, validation)
        if not queries:
            raise DataError(
                f"none of {len(rows)} instructions fits into max_tokens={self.config.max_tokens}; raise it."
            )
        evidence = {"rows_too_long": len(rows) - len(queries), "validation_rows": len(judged)}
        task = ResponseTask(fresh.pad_id)
        return Plan(task=task, items=queries, validation=judged, n_rows=len(queries), evidence=evidence)

    def _queries(self, lm: LocalLM, rows: Sequence[tuple[str, str]]) -> list[Query]:
        from frugalrec.llm.queries import response_query

        limit = min(self.config.max_tokens, lm.max_tokens or self.config.max_tokens)
        found = [response_query(lm, prompt, output) for prompt, output in rows]
        kept = [query for query in found if max(len(query.tokens), len(query.decoder)) <= limit]
        if len(kept) < len(found):
            log.warning("%d of %d instructions are too long and left out", len(found) - len(kept), len(found))
        return kept
