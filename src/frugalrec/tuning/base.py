"""The tuner seam: training rows in, an adapter on disk out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


TitleRow = tuple[Sequence[str], str]
"""Titles of a history, oldest first, and the title of the next item."""


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One yes/no question with its answer."""

    prompt: str
    """The whole prompt, written by the function that also writes prompts at inference."""
    label: bool
    """True where the right answer is Yes."""
    group: int = 0
    """Rows with the same group are one user's: they share their prefix and are trained together."""
    known: tuple[tuple[int, bool], ...] = ()
    """(offset, yes) of answers that stand in the prompt, in characters: they are trained too."""


class Tuner(ABC):
    """Tunes a local language model; the base model itself is left as it was."""

    name: ClassVar[str]

    @abstractmethod
    def tune(
        self,
        base: LocalLM,
        rows: Sequence[Any],
        validation: Sequence[Any] | None,
        out: Path,
        *,
        progress: Progress | None = None,
    ) -> Adapter:
        """Tune on `rows` and write the adapter to `out`.

        Args:
            base: The model to tune; not modified.
            rows: The training rows: what one is, the tuner says.
            validation: Rows that choose among the epochs, or None for the last epoch.
            out: A folder; a killed call with the same arguments goes on where it was.
            progress: Is told of the steps.
        """
