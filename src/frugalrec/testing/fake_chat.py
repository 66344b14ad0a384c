"""A fake chat model: deterministic, scriptable, remembers what it was asked, ranks by any key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from frugalrec.ledger import Usage
from frugalrec.llm.chat import ChatAnswer, ChatRequest, Progress, Reason

_CANDIDATE = re.compile(r'^\d+: (".*")$', re.MULTILINE)


def shown_titles(request: ChatRequest) -> list[str]:
    """Return the candidates of a listwise request, in the order shown."""
    return [json.loads(title) for title in _CANDIDATE.findall(request.user)]


def ranked(numbers: Sequence[int]) -> str:
    """Return the JSON that a listwise request asks for.

    >>> ranked([2, 1])
    '{"ranking": [2, 1]}'
    """
    return json.dumps({"ranking": [int(number) for number in numbers]})


def by(key: Callable[[str], Any]) -> Callable[[ChatRequest], str]:
    """Return a script that ranks the titles shown by a key, smallest first."""

    def reply(request: ChatRequest) -> str:
        titles = shown_titles(request)
        return ranked(sorted(range(1, len(titles) + 1), key=lambda number: key(titles[number - 1])))

    return reply


def echoed(request: ChatRequest) -> str:
    """Answer with the order shown: what a model does that repeats rather than ranks."""
    return ranked(range(1, len(shown_titles(request)) + 1))


class FakeChat:
    r"""A chat model whose answers are a pure function of the request.

    >>> chat = FakeChat(by(len))
    >>> (answer,), usage = chat.chat([ChatRequest(system="", user='1: "Alien"\\n2: "Heat"')])
    >>> answer.text, usage.llm_calls
    ('{"ranking": [2, 1]}', 1)
    """

    def __init__(
        self,
        reply: Callable[[ChatRequest], str] = echoed,
        *,
        fail: Callable[[ChatRequest], Reason | None] = lambda request: None,
        model: str = "fake-chat",
    ) -> None:
        """Store the scripts.

        Args:
            reply: Request -> the model's words.
            fail: Request -> the reason for which it gets no answer, or None.
            model: The name it goes by.
        """
        self.reply = reply
        self.fail = fail
        self.model = model
        self.asked: list[ChatRequest] = []
        """Every request, in order."""
        self.calls = 0
        """Calls of `chat`."""

    @property
    def fingerprint(self) -> str:
        """The name; scripts are not part of it."""
        return self.model

    def chat(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> tuple[list[ChatAnswer], Usage]:
        """Answer every request; tokens are words between white space."""
        self.calls += 1
        answers = []
        for number, request in enumerate(requests, 1):
            self.asked.append(request)
            answers.append(self._answer(request))
            if progress is not None:
                progress(number, len(requests))
        return answers, sum((answer.usage for answer in answers), Usage())

    def _answer(self, request: ChatRequest) -> ChatAnswer:
        read = len(request.system.split()) + len(request.user.split())
        reason = self.fail(request)
        if reason is not None and reason != "cached":
            spent = Usage(tokens_in=read, llm_calls=1) if reason == "malformed" else Usage()
            return ChatAnswer(text=None, reason=reason, detail="as scripted", usage=spent)
        text = self.reply(request)
        if reason == "cached":
            return ChatAnswer(text=text, reason="cached")
        usage = Usage(tokens_in=read, tokens_out=len(text.split()), llm_calls=1)
        return ChatAnswer(text=text, reason="answered", usage=usage, latency_s=0.5)
