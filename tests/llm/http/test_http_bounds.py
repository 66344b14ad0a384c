"""What an attempt reserves is a bound on everything that is sent, not on the messages alone."""

from __future__ import annotations

import json

import pytest

from frugalrec.errors import ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.language_model import HttpLM
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "x" * 2_000}}]
SHOWN = len(json.dumps(TOOLS, indent=4))
"""Bytes of the tools as chat templates write them into the prompt."""


@pytest.fixture
def chat_with_tools(make_chat, tmp_path):
    with FaultyEndpoint(faults=lambda _: "stall", bytes_per_token=1) as server:
        policy = {"timeout_s": 0.1, "attempts": 1}
        extra = {"tools": TOOLS}
        yield make_chat(server, profile="vllm", file=tmp_path / "f", policy=policy, extra=extra)


def test_tools_of_every_request_are_within_the_bound(chat_with_tools, tmp_path, questions):
    dry = chat_with_tools.dry_run(questions(1))
    chat_with_tools.chat(questions(1))
    booked = spent(tmp_path / "f").tokens
    # 15 bytes of messages, 256 for the template, 64 for the answer.
    assert booked >= 15 + 256 + 64 + SHOWN
    assert dry.most.tokens_in + dry.most.tokens_out == booked


def test_tools_are_within_the_bound_of_a_language_models_calls(chat_with_tools, tmp_path):
    with pytest.raises(ModelError):
        HttpLM(chat_with_tools).choose([PromptGroup(prefix="a", suffixes=("b",))], (" Yes", " No"))
    assert spent(tmp_path / "f").tokens >= 2 + 256 + 1 + SHOWN
