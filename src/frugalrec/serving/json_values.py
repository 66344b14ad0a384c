"""Grammars of the plain values of JSON, and of what stands between them."""

from __future__ import annotations

from frugalrec.serving.grammar import (
    DONE,
    NOTHING,
    Expression,
    either,
    many,
    one_of,
    text,
    texts,
    then,
    up_to,
)

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
_WHOLE = either(text("0"), then(_bytes(0x31, 0x39), up_to(DIGITS - 1, _DIGIT)))
_SIGN = either(text("-"), DONE)
NUMBER = then(_SIGN, _WHOLE, either(DONE, then(text("."), _DIGIT, up_to(DIGITS - 1, _DIGIT))))
BOOLEAN = texts([b"true", b"false"])
NULL = text("null")
COMMA = texts([b",", b", "])
COLON = texts([b":", b": "])
LARGEST = 10**DIGITS - 1
"""The largest integer that is written."""


def integers(low: int, high: int) -> Expression:
    """Return the integers of a range, both ends included, by their digits: a wide range costs no more.

    >>> from frugalrec.serving.grammar import matches
    >>> [matches(integers(-2, 130), text) for text in (b"-2", b"0", b"99", b"130", b"131", b"-3", b"07")]
    [True, True, True, True, False, False, False]
    """
    below = then(text("-"), _counts(max(1, -high), -low)) if low < 0 else NOTHING
    return either(below, _counts(max(0, low), high))


def _counts(low: int, high: int) -> Expression:
    """Return whole numbers from 0 upwards, one choice for each length."""
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1 if low <= high else 0):
        shortest = 10 ** (length - 1) if length > 1 else 0
        parts.append(_between(str(max(low, shortest)), str(min(high, 10**length - 1))))
    return either(*parts)


def _between(low: str, high: str) -> Expression:
    """Return the digits from `low` to `high`, which are equally long."""
    if low == high:
        return text(low)
    first, last, left = ord(low[0]), ord(high[0]), len(low) - 1
    if first == last:
        return then(text(low[0]), _between(low[1:], high[1:]))
    from_first, to_last = low[1:] == "0" * left, high[1:] == "9" * left
    parts = [then(_bytes(first + (not from_first), last - (not to_last)), *[_DIGIT] * left)]
    if not from_first:
        parts.append(then(text(low[0]), _between(low[1:], "9" * left)))
    if not to_last:
        parts.append(then(text(high[0]), _between("0" * left, high[1:])))
    return either(*parts)
