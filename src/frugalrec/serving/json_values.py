"""Grammars of the plain values of JSON, and of what stands between them."""

from __future__ import annotations

from frugalrec.serving.grammar import DONE, Expression, either, many, one_of, text, texts, then, up_to

DIGITS = 15
"""Digits of a number before and behind the point: what a double keeps."""


def _bytes(low: int, high: int) -> Expression:
    return one_of(range(low, high + 1))


_TAIL = _bytes(0x80, 0xBF)
_CHARACTER = either(
    one_of(set(range(0x20, 0x7F)) - {ord('"'), ord("\\")}),
    then(_bytes(0xC2, 0xDF), _TAIL),
    then(one_of([0xE0]), _bytes(0xA0, 0xBF), _TAIL),
    then(one_of([*range(0xE1, 0xED), 0xEE, 0xEF]), _TAIL, _TAIL),
    then(one_of([0xED]), _bytes(0x80, 0x9F), _TAIL),
    then(one_of([0xF0]), _bytes(0x90, 0xBF), _TAIL, _TAIL),
    then(_bytes(0xF1, 0xF3), _TAIL, _TAIL, _TAIL),
    then(one_of([0xF4]), _bytes(0x80, 0x8F), _TAIL, _TAIL),
    then(text("\\"), one_of(b'"\\/bfnrt')),
)
CHARACTERS = many(_CHARACTER)
"""The inside of a string: UTF-8 without control characters, and short escapes."""
STRING = then(text('"'), CHARACTERS, text('"'))
_DIGIT = _bytes(0x30, 0x39)
WHOLE = either(text("0"), then(_bytes(0x31, 0x39), up_to(DIGITS - 1, _DIGIT)))
POSITIVE = then(_bytes(0x31, 0x39), up_to(DIGITS - 1, _DIGIT))
_SIGN = either(text("-"), DONE)
INTEGER = either(WHOLE, then(text("-"), POSITIVE))
NUMBER = then(_SIGN, WHOLE, either(DONE, then(text("."), _DIGIT, up_to(DIGITS - 1, _DIGIT))))
BOOLEAN = texts([b"true", b"false"])
NULL = text("null")
COMMA = texts([b",", b", "])
COLON = texts([b":", b": "])
