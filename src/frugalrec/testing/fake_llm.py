"""A fake LLM: deterministic, scriptable, counts its tokens, needs no weights.

Tests of everything that uses a `LanguageModel` run with it. Without scripts it answers by a hash of
the text; `reply` and `score` make it echo, follow an oracle, or be wrong on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.ledger import Usage
from frugalrec.llm.base import Completion, LanguageModel, PromptGroup
from frugalrec.llm.prefix import common_prefix
from frugalrec.rng import derive_seed
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.types import FloatArray

__all__ = ["FakeLLM", "echo", "tiny_llama", "tiny_t5"]

WORDS = ("the", "film", "of", "night", "river", "love", "star", "king", "last", "road")


def echo(prompt: str) -> str:
    """Return the prompt's last line: the reply of a model that repeats what it is told."""
    return prompt.rstrip("\n").rpartition("\n")[2]


class FakeLLM(LanguageModel):
    """A language model whose answers are a pure function of prompt, answer and seed.

    Its tokens are words between white space, and shared leading words of a group count once.

    >>> lm = FakeLLM(score=lambda prompt, answer: 2.0 if answer == " Yes" and "Heat" in prompt else 0.0)
    >>> group = PromptGroup(prefix="Next film:", suffixes=(" Heat?", " Bambi?"))
    >>> (scores,), usage = lm.choose([group], [" Yes", " No"])
    >>> bool(scores[0, 0] > scores[1, 0]), usage.tokens_in, usage.tokens_cached
    (True, 4, 2)
    """

    name: ClassVar[str] = "fake"

    def __init__(
        self,
        *,
        model: str = "fake",
        seed: int = 0,
        reply: Callable[[str], str] | None = None,
        score: Callable[[str, str], float] | None = None,
    ) -> None:
        """Store the scripts.

        Args:
            model: The name it goes by.
            seed: Enters every unscripted answer.
            reply: Prompt -> generated text (`echo`, or an oracle); default: a few hashed words.
            score: (prompt, answer) -> logit of the answer, or of a continuation's every word, against
                a logit of 0 for everything else; default: a hash, between -2 and 2.
        """
        self.model = model
        self.seed = seed
        self.reply = reply
        self.score = score
        self.calls: list[str] = []
        """Every prompt it was ever asked, in order."""

    @property
    def fingerprint(self) -> str:
        """Name and seed; scripts are not part of it."""
        return f"{self.model}:{self.seed}"

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> tuple[list[Completion], Usage]:
        """Reply to each prompt, cut to `max_new_tokens` words."""
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be 1 or more, not {max_new_tokens}.")
        self.calls += prompts
        completions = []
        for prompt in prompts:
            text = self._hashed_words(prompt) if self.reply is None else self.reply(prompt)
            words = text.split()
            cut = text if len(words) <= max_new_tokens else " ".join(words[:max_new_tokens])
            completions.append(Completion(text=cut, tokens_out=min(len(words), max_new_tokens)))
        read = sum(len(prompt.split()) for prompt in prompts)
        written = sum(completion.tokens_out for completion in completions)
        return completions, Usage(tokens_in=read, tokens_out=written, llm_calls=len(prompts))

    def loglikelihood(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[FloatArray], Usage]:
        """Return, per prompt, each continuation's sum over its words of log sigmoid(score)."""
        if len(prompts) != len(continuations):
            raise ModelError(
                f"{len(prompts)} prompts need as many lists of continuations, not {len(continuations)}."
            )
        usage = Usage()
        results = []
        for prompt, texts in zip(prompts, continuations, strict=True):
            values = [
                -np.logaddexp(0.0, -self._logit(prompt, word)) for text in texts for word in text.split()
            ]
            edges = np.cumsum([0, *(len(text.split()) for text in texts)])
            results.append(
                np.array([sum(values[a:b]) for a, b in zip(edges, edges[1:], strict=False)], dtype=np.float32)
            )
            usage += self._usage([prompt + text for text in texts])
        return results, usage

    def choose(self, groups: Sequence[PromptGroup], answers: Sequence[str]) -> tuple[list[FloatArray], Usage]:
        """Return, per group, log-probabilities (n_suffixes, n_answers), normalised against a logit of 0."""
        firsts = [answer.split()[:1] for answer in answers]
        if not answers or any(not first or firsts.count(first) > 1 for first in firsts):
            raise ModelError(
                f"the answers {list(answers)} cannot be told apart by their first word. "
                "Choose answers that begin differently."
            )
        usage = Usage()
        results = []
        for group in groups:
            prompts = [group.prefix + suffix for suffix in group.suffixes]
            logits = np.array([[self._logit(p, a) for a in answers] for p in prompts], dtype=np.float64)
            logits = logits.reshape(len(prompts), len(answers))
            others = np.logaddexp.reduce(np.pad(logits, ((0, 0), (0, 1))), axis=1, keepdims=True)
            results.append((logits - others).astype(np.float32))
            usage += self._usage(prompts)
        return results, usage

    def _usage(self, prompts: Sequence[str]) -> Usage:
        self.calls += prompts
        if not prompts:
            return Usage()
        rows = [prompt.split() for prompt in prompts]
        words = {word: number for number, word in enumerate(dict.fromkeys(sum(rows, [])))}
        shared = (len(rows) - 1) * common_prefix([[words[word] for word in row] for row in rows])
        return Usage(tokens_in=sum(map(len, rows)) - shared, tokens_cached=shared, llm_calls=len(rows))

    def _logit(self, prompt: str, answer: str) -> float:
        if self.score is not None:
            return float(self.score(prompt, answer))
        return derive_seed(self.seed, "score", prompt, answer) / 2**63 * 4.0 - 2.0

    def _hashed_words(self, prompt: str) -> str:
        draws = derive_seed(self.seed, "reply", prompt)
        return " ".join(WORDS[draws // len(WORDS) ** i % len(WORDS)] for i in range(2 + draws % 5))
