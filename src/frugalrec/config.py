"""The configuration of a run: one frozen section a stage, read from YAML, every field documented."""

from __future__ import annotations
