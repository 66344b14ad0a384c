"""A chat model in this process: any `LanguageModel` answers chat requests, greedily.

The same seam as an endpoint, so that whatever asks a chat model runs offline. Answers can be kept in a
file; a killed call repeats no finished question. Nothing holds the model to a schema.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from frugalrec.errors import ConfigError
from frugalrec.ledger import Usage
from frugalrec.llm.base import Completion, LanguageModel
from frugalrec.llm.chat import ChatAnswer, ChatRequest, Progress
from frugalrec.llm.framing import framed
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.store import known, remember

THOUGHT = "<think>"


class LocalChat:
    """Answers chat requests with a language model that generates text.

    Greedily whatever their temperature, so equal texts have equal answers. A question that is too long
    for the model is refused.

    >>> from frugalrec.testing.fake_llm import FakeLLM
    >>> chat = LocalChat(FakeLLM(reply=lambda prompt: "[2, 1]"))
    >>> (answer,), usage = chat.chat([ChatRequest(system="You rank.", user="1: Alien, 2: Heat")])
    >>> answer.text, answer.reason, usage.llm_calls
    ('[2, 1]', 'answered', 1)
    """

    def __init__(self, lm: LanguageModel, *, cache: Path | None = None, requests_per_batch: int = 16) -> None:
        """Store the model and the options.

        Args:
            lm: The model.
            cache: An SQLite file of earlier answers, which is read and extended; the format is that of
                `frugalrec.llm.http`.
            requests_per_batch: Requests that are answered together, and then stored.
        """
        self.lm = lm
        self.model = lm.model
        self.cache = cache
        self.requests_per_batch = requests_per_batch

    @property
    def fingerprint(self) -> str:
        """The language model's fingerprint; how its prompts are framed is part of its tokenizer."""
        return self.lm.fingerprint

    def chat(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> tuple[list[ChatAnswer], Usage]:
        """Answer every request, in order, equal ones once, and say what was spent in this call."""
        if self.requests_per_batch < 1:
            raise ConfigError(f"requests_per_batch must be at least 1, not {self.requests_per_batch}.")
        # The fingerprint may hash files: once a call, and only for what outlives it.
        name = self.model if self.cache is None else self.fingerprint
        keys = [request.key(name) for request in requests]
        questions = dict(zip(keys, requests, strict=True))
        tell = progress or (lambda done, n: None)
        with Journal(self.cache) as journal:
            stored = known(journal, questions, now=time.time())
            answers = {key: ChatAnswer(text=text, reason="cached") for key, text in stored.items()}
            prompts = {key: self._prompt(one) for key, one in questions.items() if key not in answers}
            answers |= self._refused(prompts, questions)
            waiting = [key for key in prompts if key not in answers]
            # Requests of one limit and of like length together: little is padded.
            waiting.sort(key=lambda key: (questions[key].max_tokens, len(prompts[key])))
            for start in range(0, len(waiting), self.requests_per_batch):
                batch = waiting[start : start + self.requests_per_batch]
                fresh = self._answered({key: prompts[key] for key in batch}, questions)
                texts = {key: answer.text or "" for key, answer in fresh.items()}
                journal.run(partial(remember, answers=texts, now=time.time()))
                answers |= fresh
                tell(sum(key in answers for key in keys), len(requests))
        tell(len(requests), len(requests))
        usage = sum((answer.usage for answer in answers.values()), Usage())
        return _in_order(keys, answers), usage

    def _prompt(self, request: ChatRequest) -> str:
        return framed(self.lm, request.system, request.user).text

    def _refused(self, prompts: dict[str, str], questions: dict[str, ChatRequest]) -> dict[str, ChatAnswer]:
        """Return an answer to each question that the model cannot hold."""
        limit = getattr(self.lm, "max_tokens", None)
        if limit is None:
            return {}
        refused = {}
        for (key, _), length in zip(prompts.items(), self._lengths(list(prompts.values())), strict=True):
            room = questions[key].max_tokens
            if length + room > limit:
                detail = f"{length:,} tokens and {room:,} for the answer, but {self.model} holds {limit:,}"
                refused[key] = ChatAnswer(text=None, reason="refused", detail=detail)
        return refused

    def _answered(self, prompts: dict[str, str], questions: dict[str, ChatRequest]) -> dict[str, ChatAnswer]:
        """Generate the answers of one batch; requests of one length limit go together."""
        answers = {}
        for limit in sorted({questions[key].max_tokens for key in prompts}):
            own = {key: text for key, text in prompts.items() if questions[key].max_tokens == limit}
            completions, usage = self.lm.generate(list(own.values()), max_new_tokens=limit)
            shares = _shares(usage, self._lengths(list(own.values())), completions)
            for key, completion, share in zip(own, completions, shares, strict=True):
                answers[key] = ChatAnswer(
                    text=_opened(own[key]) + completion.text,
                    reason="answered",
                    usage=share,
                    latency_s=usage.wall_s,
                )
        return answers

    def _lengths(self, texts: list[str]) -> list[int]:
        """Return the lengths of texts in tokens, or in characters where the model does not tell."""
        encode = getattr(self.lm, "encode", None)
        return [len(row) for row in (texts if encode is None else encode(texts))]


def _opened(prompt: str) -> str:
    """Return the mark with which a chat template opens the model's thought, if it does.

    The answer then has an end mark without a beginning, or, cut short, none of the two: with the beginning,
    a reader can tell a thought from an answer.
    """
    return THOUGHT if prompt.rstrip().endswith(THOUGHT) else ""


def _shares(usage: Usage, lengths: Sequence[int], completions: Sequence[Completion]) -> list[Usage]:
    """Split what a batch cost over its requests: tokens read by length, seconds evenly; the sum stays."""
    n = len(lengths)
    ends = np.rint(np.cumsum(lengths) / max(sum(lengths), 1) * usage.tokens_in).astype(int)
    read = np.diff(ends, prepend=0)
    return [
        replace(
            usage,
            wall_s=usage.wall_s / n,
            cpu_s=usage.cpu_s / n,
            accelerator_s=usage.accelerator_s / n,
            tokens_in=int(tokens),
            tokens_out=completion.tokens_out,
            llm_calls=1,
        )
        for tokens, completion in zip(read, completions, strict=True)
    ]


def _in_order(keys: Sequence[str], answers: dict[str, ChatAnswer]) -> list[ChatAnswer]:
    """Return an answer for each key; who asks the same again has it for nothing."""
    found, seen = [], set()
    for key in keys:
        answer = answers[key]
        if key in seen and answer.reason == "answered":
            answer = replace(answer, reason="cached", usage=Usage(), latency_s=0.0)
        seen.add(key)
        found.append(answer)
    return found
