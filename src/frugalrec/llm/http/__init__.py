"""Language models behind OpenAI-compatible endpoints: hosted, vLLM, Ollama, llama.cpp, or any other.

One retry layer, hard caps on spending, answers that are paid once, and keys that never leave the
environment. Start with `HttpChat` and `Endpoint`.
"""

from __future__ import annotations

from frugalrec.llm.http.chat import HttpChat
from frugalrec.llm.http.endpoint import CallPolicy, Endpoint
from frugalrec.llm.http.spending import SpendCap

__all__ = ["CallPolicy", "Endpoint", "HttpChat", "SpendCap"]
