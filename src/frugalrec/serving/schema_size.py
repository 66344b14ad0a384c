"""How large a schema may be: told before any work is done for it, in one look at its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frugalrec.errors import ConfigError

MOST_ENTRIES = 2_000
"""Entries of all objects of a schema: optional properties cost the square of their number."""
MOST_CHARACTERS = 1 << 16
"""Characters of a schema's texts, and numbers beside them: what an enum writes out."""
DEEPEST = 64
"""How deep a schema may nest."""


def check_size(schema: Any, where: str = "schema") -> None:
    """See that a schema's grammar is a small matter.

    Raises:
        ConfigError: If the schema has too many entries, is too long, or nests too deep.
    """
    entries = characters = 0
    waiting = [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Mapping):
            entries += len(value)
            waiting += [(inner, depth + 1) for inner in (*value, *value.values())]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        characters += len(value) if isinstance(value, str) else 1
        for found, most, unit in (
            (entries, MOST_ENTRIES, "entries"),
            (characters, MOST_CHARACTERS, "characters"),
            (depth, DEEPEST, "levels"),
        ):
            if found > most:
                raise ConfigError(f"{where} has more than {most:,} {unit}; ask for less at a time.")
