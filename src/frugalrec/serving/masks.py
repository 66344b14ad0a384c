"""Which tokens may come next, so that a text stays inside a grammar."""

from __future__ import annotations

import json
from bisect import bisect_left
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.serving.grammar import NOTHING, Expression, Then, after
from frugalrec.serving.json_values import CHARACTERS
from frugalrec.types import LongArray

KEPT_BYTES = 32 << 20
"""How much of the tokens that fit states of a grammar is remembered."""
PLAIN = frozenset(range(0x20, 0x7F)) - {ord('"'), ord("\\")}
"""Bytes that may stand anywhere in a JSON string."""


class TokenBytes:
    """The bytes that each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # A mask is of use as long as the grammar itself is remembered.
        self._masks: WeakKeyDictionary[Expression, LongArray] = WeakKeyDictionary()
        self._kept = 0

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
        # Inside a string nearly all tokens fit: only the odd ones, which alone can leave it, are looked at.
        inside = _first(expression) is CHARACTERS
        found = self._masks.get(expression)
        if found is None:
            fitting = self._fitting(self._odd if inside else self._every, expression)
            found = np.array(sorted(fitting), dtype=np.int64)
            self._keep(expression, found)
        if inside:
            found = np.sort(np.concatenate([self._plain, found]), kind="stable")
        if not found.size:
            raise ModelError("the tokenizer has no token for the next character of the answer's schema.")
        return found

    def _keep(self, expression: Expression, mask: LongArray) -> None:
        self._kept += mask.nbytes
        if self._kept > KEPT_BYTES:
            self._masks.clear()
            self._kept = mask.nbytes
        self._masks[expression] = mask

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
    def _plain(self) -> LongArray:
        plain = [token for content, token in self._every if PLAIN.issuperset(content)]
        return np.array(sorted(plain), dtype=np.int64)

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


def _first(expression: Expression) -> Expression:
    while isinstance(expression, Then):
        expression = expression.first
    return expression


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
