"""A `LanguageModel` at an endpoint: writes text, and chooses where it tells log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.ledger import Usage, measure
from frugalrec.llm.base import Completion, LanguageModel, PromptGroup
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http.attempts import Call
from frugalrec.llm.http.chat import HttpChat
from frugalrec.llm.http.first_tokens import alternatives, first_tokens, sum_after
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.profiles import COMPLETIONS, echo_body, encoded, first_token_body
from frugalrec.llm.http.replies import Reply
from frugalrec.llm.http.spending import size_of
from frugalrec.types import FloatArray


class HttpLM(LanguageModel):
    """A language model at an endpoint, over the client, limits and cap of an `HttpChat`."""

    name: ClassVar[str] = "http"

    def __init__(self, chat: HttpChat) -> None:
        self.chat = chat
        self.model = chat.model

    @property
    def fingerprint(self) -> str:
        """The model's name and a hash of what could change its answers."""
        return self.chat.fingerprint

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> tuple[list[Completion], Usage]:
        """Answer each prompt as the user's message of a chat, greedily.

        Raises:
            ModelError: If a prompt has no answer.
        """
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        requests = [ChatRequest(system="", user=prompt, max_tokens=max_new_tokens) for prompt in prompts]
        if not requests:
            return [], Usage()
        answers, usage = self.chat.chat(requests)
        found = []
        for answer in answers:
            if answer.text is None:
                raise self._no_answer(answer.reason, answer.detail)
            said = answer.usage.tokens_out if answer.reason == "answered" else 0
            found.append(Completion(text=answer.text, tokens_out=said))
        return found, usage

    def choose(self, groups: Sequence[PromptGroup], answers: Sequence[str]) -> tuple[list[FloatArray], Usage]:
        """Return, per group, log-probabilities (n_suffixes, n_answers) of the answers' first token.

        Raises:
            ModelError: If the endpoint tells no log-probabilities, or an answer is not among those it tells.
        """
        if not answers or len(set(answers)) < len(answers) or not all(a.strip() for a in answers):
            raise ModelError(f"the answers {list(answers)} are empty or equal; choose answers that differ.")
        endpoint = self.chat.client.endpoint
        if endpoint.served_by.logprobs is None:
            raise ModelError(
                f"the profile {endpoint.profile!r} tells no log-probabilities, which choosing needs. Use "
                f"profile openai, vllm, ollama or llamacpp if the endpoint has them, or a local model."
            )
        prompts = list(dict.fromkeys(g.prefix + suffix for g in groups for suffix in g.suffixes))
        bodies = (first_token_body(prompt, endpoint) for prompt in prompts)
        calls = (self._call(path, body, prompt) for (path, body), prompt in zip(bodies, prompts, strict=True))
        replies, usage = self._ask(calls, len(prompts))
        spaced = endpoint.served_by.logprobs == "completions"
        rows = {
            prompt: first_tokens(alternatives(reply.logprobs), answers, spaced=spaced)
            for prompt, reply in zip(prompts, replies, strict=True)
        }
        results = []
        for group in groups:
            values = [rows[group.prefix + suffix] for suffix in group.suffixes]
            results.append(np.array(values, dtype=np.float32).reshape(len(values), len(answers)))
        return results, usage

    def loglikelihood(
        self, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> tuple[list[FloatArray], Usage]:
        """Return, per prompt, the summed log-probability (nats) of each of its continuations.

        Raises:
            ModelError: If the endpoint cannot tell the log-probabilities of a given text.
        """
        if len(prompts) != len(continuations):
            raise ModelError(
                f"{len(prompts)} prompts need as many lists of continuations, not {len(continuations)}."
            )
        endpoint = self.chat.client.endpoint
        if not endpoint.served_by.echo:
            raise ModelError(
                f"the profile {endpoint.profile!r} cannot tell the log-probability of a given text. Use vLLM "
                f"(profile vllm), whose completions echo the prompt, or a local model."
            )
        pairs = [(p, text) for p, texts in zip(prompts, continuations, strict=True) for text in texts if text]
        asked = list(dict.fromkeys(pairs))
        calls = (self._call(COMPLETIONS, echo_body(p + text, endpoint), p + text) for p, text in asked)
        replies, usage = self._ask(calls, len(asked))
        sums = {
            (prompt, text): sum_after(len(prompt), len(prompt + text), reply.logprobs)
            for (prompt, text), reply in zip(asked, replies, strict=True)
        }
        results = []
        for prompt, texts in zip(prompts, continuations, strict=True):
            results.append(np.array([sums.get((prompt, t), 0.0) for t in texts], dtype=np.float32))
        return results, usage

    def _call(self, path: str, body: Mapping[str, Any], prompt: str) -> Call:
        # Words without log-probabilities are of no use later, so nothing is stored under the key.
        request = ChatRequest(system="", user=prompt, max_tokens=1)
        return Call(
            path=path,
            body=encoded(body),
            key=request.key(f"{self.fingerprint}:{path}"),
            size=size_of([prompt], 1, extra=self.chat.client.endpoint.extra),
            remembered=False,
        )

    def _ask(self, calls: Iterable[Call], n: int) -> tuple[list[Reply], Usage]:
        if n == 0:
            return [], Usage()
        client = self.chat.client
        client.check()
        with measure() as meter, Journal(client.file) as journal:
            outcomes = client.ask(calls, n, journal)
            for outcome in outcomes:
                meter.add(outcome.usage)
        replies = []
        for outcome in outcomes:
            if outcome.reply is None:
                raise self._no_answer(outcome.reason, outcome.detail)
            replies.append(outcome.reply)
        return replies, meter.usage

    def _no_answer(self, reason: str, detail: str) -> ModelError:
        return ModelError(
            f"{self.model} gave no answer ({reason}: {detail}). Check the endpoint, its limits and the cap; "
            f"`HttpChat.probe` asks it one small question."
        )
