"""Request bodies of the OpenAI protocol: what is known is checked, what is not known is refused.

A field that changes answers and is silently dropped would be worse than an error, so unknown fields are
refused; those that only label a request are taken and not used.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from frugalrec.errors import ConfigError
from frugalrec.serving.errors import ApiError
from frugalrec.serving.jobs import Job
from frugalrec.serving.schema_size import check_size

MOST_MESSAGES = 256
MOST_TOP = 20
_TYPE = re.compile(r"str$|list\[|constrained-|function-")
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Body = TypeVar("Body", bound=BaseModel)
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def turn(self) -> dict[str, str]:
        """The message as chat templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Settings(BaseModel):
    """Fields that both kinds of request have."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    def sampling(self) -> dict[str, Any]:
        """Return the settings that a job takes as they are; the protocol's defaults where not given."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": secrets.randbits(62) if self.seed is None else self.seed,
            "stop": tuple(stop),
        }


class ChatBody(Settings):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: dict[str, Any] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    def job(self) -> Job:
        """Return what the model is asked."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError(400, "give max_tokens or max_completion_tokens, not both.", param="max_tokens")
        most = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        return Job(
            messages=tuple(message.turn for message in self.messages),
            max_tokens=most,
            top=(self.top_logprobs or 0) if self.logprobs else None,
            schema=schema_of(self.response_format),
            **self.sampling(),
        )


class TextBody(Settings):
    """A body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def jobs(self, most: int) -> list[Job]:
        """Return what the model is asked, prompt by prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) > most:
            raise ApiError(
                400, f"{len(prompts)} prompts in one request; this server takes {most}.", param="prompt"
            )
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens 0 reads the prompt only, which needs echo.", param="max_tokens")
        return [
            Job(
                prompt=prompt,
                max_tokens=self.max_tokens,
                top=self.logprobs,
                echo=bool(self.echo),
                **self.sampling(),
            )
            for prompt in prompts
        ]


def schema_of(response_format: dict[str, Any] | None) -> Any:
    """Return the JSON schema that a response format asks for: None for none, True for any object.

    The forms of OpenAI (``json_schema.schema``) and of llama.cpp (``schema``) are understood.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    kind = response_format.get("type")
    if kind not in ("json_object", "json_schema"):
        raise ApiError(
            400,
            f"response_format has the type {kind!r}; known are text, json_object and json_schema.",
            param="response_format",
        )
    nested = response_format.get("json_schema")
    found = nested.get("schema") if isinstance(nested, dict) else response_format.get("schema")
    if found is None and kind == "json_object":
        return True
    if not isinstance(found, dict):
        raise ApiError(400, "response_format json_schema needs a schema object.", param="response_format")
    try:
        check_size(found)  # here, for the model's thread has other things to do
    except ConfigError as error:
        raise ApiError(400, str(error), param="response_format") from None
    return found


def parsed(kind: type[Body], content: bytes) -> Body:
    """Return a checked body.

    Raises:
        ApiError: If it is no JSON, or not what the protocol says; the first fault is named.
    """
    try:
        value = json.loads(content, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return kind.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a field that may have several types, the type that nearly fits says more.
        first = min(faults, key=lambda fault: fault["type"].endswith("_type"))
        param = ".".join(str(part) for part in first["loc"] if not _TYPE.match(str(part))) or None
        raise ApiError(400, _said(param, first["type"], first["msg"]), param=param) from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON that can be read: {error}") from None


def _said(param: str | None, kind: str, message: str) -> str:
    name = param or "the body"
    if kind == "extra_forbidden":
        return f"{name} is not supported by this server; leave it out."
    if param == "stream":
        return "streaming is not supported by this server; leave stream out."
    return f"{name}: {message[:1].lower()}{message[1:]}."


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
