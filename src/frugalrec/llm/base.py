"""The language-model seam: three methods, each of which returns exact token counts as `Usage`.

A prompt may be split into a shared prefix and many suffixes (`PromptGroup`): one user's history
once, then one suffix per candidate. Backends compute the prefix once; the answer is the same as for
one whole prompt each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from frugalrec.ledger import Usage
from frugalrec.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """One shared prefix and the suffixes that follow it; each prompt is ``prefix + suffix``."""

    prefix: str
    suffixes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated text."""

    text: str
    tokens_out: int


class LanguageModel(ABC):
    """A language model that generates text and scores given texts."""

    name: ClassVar[str] = "llm"
    model: str
    """The model's id, folder or endpoint, as the user gave it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash or version string that changes when answers could change; enters cache keys."""

    @abstractmethod
    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> tuple[list[Completion], Usage]:
        """Complete each prompt greedily. The result does not depend on the batch."""

    @abstractmethod
    def loglikelihood(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[FloatArray], Usage]:
        """Return, per prompt, the summed log-probability (nats) of each of its continuations."""

    @abstractmethod
    def choose(self, groups: Sequence[PromptGroup], answers: Sequence[str]) -> tuple[list[FloatArray], Usage]:
        """Return, per group, log-probabilities (n_suffixes, n_answers) of the answers' first token.

        The answers' first tokens, found in context (after the prompt), must differ from each other.
        """
