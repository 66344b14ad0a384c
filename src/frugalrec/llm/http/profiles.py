"""What each kind of OpenAI-compatible server understands, and the bodies it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from frugalrec.llm.chat import ChatRequest
    from frugalrec.llm.http.endpoint import Endpoint

Schema = Mapping[str, Any]
CHAT = "/chat/completions"
COMPLETIONS = "/completions"
TOP_LOGPROBS = 20
"""As many alternatives of a token as OpenAI gives and vLLM allows by default."""


def _no_form(schema: Schema) -> dict[str, Any]:
    return {}


def _nested(schema: Schema) -> dict[str, Any]:
    """The schema as OpenAI wants it, which vLLM and Ollama (from 0.5) take as well."""
    wanted = {"name": "answer", "schema": dict(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def _both_places(schema: Schema) -> dict[str, Any]:
    """The schema in the two places where versions of llama.cpp's server look for it."""
    nested = {"name": "answer", "schema": dict(schema)}
    form = {"type": "json_schema", "schema": dict(schema), "json_schema": nested}
    return {"response_format": form}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kind of server."""

    form: Callable[[Schema], dict[str, Any]] = _no_form
    """JSON schema -> fields that hold the answer to it; empty where the server cannot."""
    limit: str = "max_tokens"
    """The field that bounds the answer's tokens."""
    seed: bool = False
    """Whether it takes a seed."""
    logprobs: Literal["chat", "completions"] | None = None
    """Which of its addresses tells the first token's alternatives."""
    echo: bool = False
    """Whether ``/completions`` can tell the log-probabilities of a given text."""

    @property
    def structured(self) -> bool:
        """Whether an answer can be held to a schema."""
        return self.form is not _no_form


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "openai": Profile(form=_nested, limit="max_completion_tokens", seed=True, logprobs="chat"),
        "vllm": Profile(form=_nested, seed=True, logprobs="completions", echo=True),
        "ollama": Profile(form=_nested, seed=True, logprobs="chat"),
        "llamacpp": Profile(form=_both_places, seed=True, logprobs="completions"),
        "generic": Profile(),
    }
)
"""By name. `generic` asks for nothing that is not in every such server."""


def chat_body(request: ChatRequest, endpoint: Endpoint) -> dict[str, Any]:
    """Return the body of a chat: temperature and top_p always, seed and schema where understood."""
    profile = endpoint.served_by
    messages = [{"role": "system", "content": request.system}] if request.system else []
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [*messages, {"role": "user", "content": request.user}],
        profile.limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": endpoint.top_p,
    }
    if profile.seed:
        body["seed"] = request.seed
    if request.schema is not None:
        body |= profile.form(request.schema)
    return finish(body, endpoint)


def first_token_body(prompt: str, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """Return (path, body) that asks for the alternatives of the first token after a prompt."""
    if endpoint.served_by.logprobs == "completions":
        body: dict[str, Any] = {"prompt": prompt, "logprobs": TOP_LOGPROBS, "max_tokens": 1}
        path = COMPLETIONS
    else:
        body = {"messages": [{"role": "user", "content": prompt}], "logprobs": True}
        body |= {"top_logprobs": TOP_LOGPROBS, endpoint.served_by.limit: 1}
        path = CHAT
    fixed = {"model": endpoint.model, "temperature": 0.0, "top_p": 1.0}
    return path, finish({**fixed, **body}, endpoint)


def echo_body(text: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return the body that asks for the log-probability of every token of a given text."""
    body = {"model": endpoint.model, "prompt": text, "echo": True, "logprobs": 1, "max_tokens": 1}
    return finish({**body, "temperature": 0.0, "top_p": 1.0}, endpoint)


def finish(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """Add what the endpoint wants besides, and take out what it refuses."""
    merged = {**body, **endpoint.extra}
    return {name: value for name, value in merged.items() if name not in endpoint.leave_out}


def encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as UTF-8 JSON; half characters (lone surrogates) become question marks."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
