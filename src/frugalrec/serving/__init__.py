"""A local model behind an OpenAI-compatible HTTP endpoint."""

from __future__ import annotations

from frugalrec.serving.limits import Limits
from frugalrec.serving.server import create_app, serve, served

__all__ = ["Limits", "create_app", "serve", "served"]
