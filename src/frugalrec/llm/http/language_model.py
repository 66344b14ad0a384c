"""A `LanguageModel` at an endpoint: writes text, and chooses where it tells log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.ledger import Usage, measure
from frugalrec.llm.base import Completion, LanguageModel, PromptGroup
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import store
from frugalrec.llm.http.attempts import Call
from frugalrec.llm.http.chat import HttpChat
from frugalrec.llm.http.first_tokens import alternatives, first_tokens, sum_after
from frugalrec.llm.http.journal import Journal
from frugalrec.llm.http.profiles import COMPLETIONS, TOP_LOGPROBS, echo_body, encoded, first_token_body
from frugalrec.llm.http.replies import Reply
from frugalrec.llm.http.spending import size_of
from frugalrec.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A call for log-probabilities."""

    call: Call
    read: Callable[[Reply], Any]
    """Returns what the reply tells; raises `ModelError` if it does not."""


class HttpLM(LanguageModel):
    """A language model at an endpoint, over the client, limits, cap and file of an `HttpChat`."""

    name: ClassVar[str] = "http"

    def __init__(self, chat: HttpChat) -> None:
        self.chat = chat
        self.model = chat.model
        self._told: set[tuple[str, ...]] = set()
        """Answers that the endpoint has told of at least once."""

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

        An endpoint tells of few tokens only, the likeliest: two answers that the model expects are
        among them, twenty hardly are. So new answers are tried on one prompt before the others are asked.

        Raises:
            ModelError: If the endpoint tells no log-probabilities, or an answer is not among those it
                tells. Replies to other prompts are in the file by then, and are not paid again.
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
        rows, usage = self._first_tokens(prompts, answers)
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
        told, usage = self._ask([self._echo(prompt, text) for prompt, text in asked])
        sums = dict(zip(asked, told, strict=True))
        results = []
        for prompt, texts in zip(prompts, continuations, strict=True):
            results.append(np.array([sums.get((prompt, t), 0.0) for t in texts], dtype=np.float32))
        return results, usage

    def _first_tokens(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> tuple[dict[str, list[float]], Usage]:
        """Return prompt -> log-probabilities of the answers, and what they cost."""
        endpoint = self.chat.client.endpoint
        _, body = first_token_body("", endpoint)
        most = int(body.get("top_logprobs") or body.get("logprobs") or 0)
        if len(answers) > most:
            raise ModelError(
                f"{self.model} tells of the {most} likeliest first tokens, too few for {len(answers)} "
                f"answers. Choose among fewer, or use a local model, which knows every token."
            )
        spaced = endpoint.served_by.logprobs == "completions"
        n_first = 0 if tuple(answers) in self._told else 1
        rows: dict[str, list[float]] = {}
        usage = Usage()
        for part in (prompts[:n_first], prompts[n_first:]):
            told, spent = self._ask([self._first_token(prompt) for prompt in part])
            for prompt, found in zip(part, told, strict=True):
                rows[prompt] = first_tokens(found, answers, spaced=spaced)
            usage = usage + spent
        if prompts:
            self._told.add(tuple(answers))
        return rows, usage

    def _first_token(self, prompt: str) -> _Question:
        path, body = first_token_body(prompt, self.chat.client.endpoint)
        kind = f"first tokens, {TOP_LOGPROBS}"
        return self._question(path, body, prompt, kind, lambda reply: alternatives(reply.logprobs))

    def _echo(self, prompt: str, text: str) -> _Question:
        start, end = len(prompt), len(prompt + text)
        body = echo_body(prompt + text, self.chat.client.endpoint)
        kind = f"echo from {start}"
        # The sum alone is kept: what is echoed are the prompt's own words.
        return self._question(
            COMPLETIONS, body, prompt + text, kind, lambda reply: sum_after(start, end, reply.logprobs)
        )

    def _question(
        self, path: str, body: Mapping[str, Any], prompt: str, kind: str, read: Callable[[Reply], Any]
    ) -> _Question:
        def kept(reply: Reply) -> str | None:
            with suppress(ModelError):
                return json.dumps(read(reply))
            return None

        call = Call(
            path=path,
            body=encoded(body),
            key=ChatRequest(system="", user=prompt, max_tokens=1).key(f"{self.fingerprint}:{kind}"),
            size=size_of([prompt], 1, extra=self.chat.client.endpoint.extra),
            kept=kept,
        )
        return _Question(call=call, read=read)

    def _ask(self, questions: Sequence[_Question]) -> tuple[list[Any], Usage]:
        """Return what each reply tells; what the file knows is not asked, and what came is in it first."""
        if not questions:
            return [], Usage()
        client = self.chat.client
        client.check()
        keys = [one.call.key for one in questions]
        with measure() as meter, Journal(client.file) as journal:
            stored = store.known(journal, keys, now=client.clock.time(), ttl_s=self.chat.ttl_s)
            told = {key: json.loads(text) for key, text in stored.items()}
            missing = [one for one in questions if one.call.key not in told]
            outcomes = client.ask((one.call for one in missing), len(missing), journal)
            for outcome in outcomes:
                meter.add(outcome.usage)
        for one, outcome in zip(missing, outcomes, strict=True):
            if outcome.reply is None:
                raise self._no_answer(outcome.reason, outcome.detail)
            told[one.call.key] = one.read(outcome.reply)
        return [told[key] for key in keys], meter.usage

    def _no_answer(self, reason: str, detail: str) -> ModelError:
        file = self.chat.client.file
        kept = "" if file is None else f" What was answered is kept in {file}, and is not asked again."
        return ModelError(
            f"{self.model} gave no answer ({reason}: {detail}). Check the endpoint, its limits and the cap; "
            f"`HttpChat.probe` asks it one small question.{kept}"
        )
