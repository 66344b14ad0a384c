"""Shipped with the package: contracts for plug-in authors, a fake LLM, toy data."""
