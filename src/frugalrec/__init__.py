"""frugalrec: LLM recommendation made affordable."""

__version__ = "0.1.0"
