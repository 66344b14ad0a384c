"""Which tokens may come next, so that a text stays inside a grammar."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.serving.grammar import NOTHING, Expression, Then, after
from frugalrec.serving.json_values import CHARACTERS
from frugalrec.types import LongArray

KEPT_MASKS = 4096
"""States of a grammar whose tokens are remembered."""
PLAIN = frozenset(range(0x20, 0x7F)) - {ord('"'), ord("\\")}
"""Bytes that may stand anywhere in a JSON string."""


class TokenBytes:
    """The bytes that each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._masks: OrderedDict[Expression, LongArray] = OrderedDict()

    @cached_property
    def table(self) -> list[bytes | None]:
        """Bytes of each token id; None for control tokens, and throughout where bytes cannot be told."""
        size = len(self.tokenizer)
        found: list[bytes | None] = [None] * size
        read = _reader(self.tokenizer)
        if read is None:
            return found
        added = set(self.tokenizer.added_tokens_decoder)
        for word, token in self.tokenizer.get_vocab().items():
            if token < size and token not in added:
                found[token] = read(word)
        return found

    def piece(self, token: int) -> bytes:
        """Return what a token adds to a text, control tokens by their name."""
        known = self.table[token] if token < len(self.table) else None
        return known if known is not None else str(self.tokenizer.decode([token])).encode()

    def shown(self, token: int) -> bytes:
        """Return what of a token is seen in a decoded text: of control tokens, nothing."""
        known = self.table[token] if token < len(self.table) else None
        if known is not None:
            return known
        return str(self.tokenizer.decode([token], skip_special_tokens=True)).encode()

    def allowed(self, expression: Expression) -> LongArray:
        """Return the tokens that may begin a text of an expression, ascending.

        Raises:
            ModelError: If the tokenizer does not tell the bytes of its tokens, or none fits.
        """
        if expression in self._masks:
            self._masks.move_to_end(expression)
            return self._masks[expression]
        if isinstance(expression, Then) and expression.first is CHARACTERS:
            # Inside a string nearly all tokens fit, and these few alone can leave it.
            found = self._plain + self._fitting(self._odd, expression)
        else:
            found = self._fitting(self._every, expression)
        if not found:
            raise ModelError("the tokenizer has no token for the next character of the answer's schema.")
        mask = np.array(sorted(found), dtype=np.int64)
        self._masks[expression] = mask
        if len(self._masks) > KEPT_MASKS:
            self._masks.popitem(last=False)
        return mask

    def after(self, expression: Expression, token: int) -> Expression:
        """Return what may follow a token."""
        for byte in self.table[token] or b"":
            expression = after(expression, byte)
        return expression

    @cached_property
    def _every(self) -> list[tuple[bytes, int]]:
        """Tokens in the order of their bytes."""
        known = sorted((content, token) for token, content in enumerate(self.table) if content)
        if not known:
            raise ModelError(
                "this model's tokenizer does not tell the bytes of its tokens, so answers cannot be held to "
                "a schema; leave response_format out."
            )
        return known

    @cached_property
    def _odd(self) -> list[tuple[bytes, int]]:
        return [(content, token) for content, token in self._every if not PLAIN.issuperset(content)]

    @cached_property
    def _plain(self) -> list[int]:
        return [token for content, token in self._every if PLAIN.issuperset(content)]

    @staticmethod
    def _fitting(words: list[tuple[bytes, int]], expression: Expression) -> list[int]:
        """Return the tokens out of sorted ones that may begin a text of an expression."""
        found = []
        stack = [(0, len(words), 0, expression)]
        while stack:  # words from `low` to `high` share their first `depth` bytes, which lead to `state`
            low, high, depth, state = stack.pop()
            while low < high and len(words[low][0]) == depth:
                found.append(words[low][1])
                low += 1
            while low < high:
                start, byte = words[low][0][:depth], words[low][0][depth]
                stop = high if byte == 255 else bisect_left(words, (start + bytes([byte + 1]),), low, high)
                behind = after(state, byte)
                if behind is not NOTHING:
                    stack.append((low, stop, depth + 1, behind))
                low = stop
        return found


def _reader(tokenizer: Any) -> Any:
    """Return a function from a token's name to its bytes, or None where there is none."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    decoder = json.loads(core.to_str()).get("decoder") or {}
    kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))}
    if kinds == {"ByteLevel"} or "ByteLevel" in kinds:
        table = _byte_level()
        return lambda word: bytes(table[c] for c in word) if all(c in table for c in word) else None
    if kinds & {"Metaspace", "ByteFallback"}:
        return _sentence_piece
    return None


def _byte_level() -> dict[str, int]:
    """Return the letter that byte-level tokenizers write for each byte (GPT-2), inverted."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _sentence_piece(word: str) -> bytes:
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return bytes.fromhex(word[3:5])
    return word.replace("\u2581", " ").encode()
