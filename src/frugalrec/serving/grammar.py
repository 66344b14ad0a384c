r"""Grammars over bytes that are read one byte at a time, by derivatives (Brzozowski, 1964).

An expression stands for a set of texts. `after(expression, byte)` stands for what may follow that first
byte, so a text belongs to the grammar if the derivative by all of its bytes holds the empty text. Parts
that nest or count are expanded when they are reached, which lets one small algebra speak of JSON.

>>> digits = many(one_of(range(48, 58)))
>>> ends(after(after(digits, ord("4")), ord("2"))), after(digits, ord("x")) is NOTHING
(True, True)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self
from weakref import WeakValueDictionary

_made: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Expression:
    """A set of texts. Equal expressions are one object, so that comparing and hashing them is cheap."""

    def __new__(cls, *parts: Any) -> Self:
        """Return the expression with these parts that there is, or a new one."""
        found: Self | None = _made.get((cls, *parts))
        if found is None:
            found = _made[(cls, *parts)] = super().__new__(cls)
        return found


@dataclass(frozen=True, eq=False)
class OneOf(Expression):
    """One byte out of a set."""

    bytes: frozenset[int]


@dataclass(frozen=True, eq=False)
class Texts(Expression):
    """One of some texts."""

    texts: frozenset[bytes]


@dataclass(frozen=True, eq=False)
class Either(Expression):
    """What any of the parts stands for."""

    parts: frozenset[Expression]


@dataclass(frozen=True, eq=False)
class Then(Expression):
    """A text of the first part, then one of the second."""

    first: Expression
    second: Expression


@dataclass(frozen=True, eq=False)
class Many(Expression):
    """Any number of texts of a part, none included."""

    part: Expression


@dataclass(frozen=True, eq=False)
class Lazy(Expression):
    """An expression that is written out when it is reached."""

    def expand(self) -> Expression:
        """Return what it stands for, which must not begin with itself."""
        raise NotImplementedError


NOTHING: Expression = Either(frozenset())
"""No text at all."""
DONE: Expression = Texts(frozenset([b""]))
"""The empty text."""


def text(content: str | bytes) -> Expression:
    """Return one text."""
    return Texts(frozenset([content.encode() if isinstance(content, str) else content]))


def texts(contents: Iterable[bytes]) -> Expression:
    """Return some texts to choose among."""
    found = frozenset(contents)
    return Texts(found) if found else NOTHING


def one_of(values: Iterable[int]) -> Expression:
    """Return one byte out of some."""
    return OneOf(frozenset(values))


def either(*parts: Expression) -> Expression:
    """Return a choice, as flat as it gets."""
    flat: set[Expression] = set()
    for part in parts:
        flat |= part.parts if isinstance(part, Either) else {part}
    return next(iter(flat)) if len(flat) == 1 else Either(frozenset(flat))


def then(*parts: Expression) -> Expression:
    """Return a sequence."""
    whole = DONE
    for part in reversed(parts):
        if part is NOTHING or whole is NOTHING:
            return NOTHING
        if part is not DONE:
            whole = part if whole is DONE else Then(part, whole)
    return whole


def many(part: Expression) -> Expression:
    """Return any number of texts of a part."""
    return Many(part)


def up_to(n: int, part: Expression) -> Expression:
    """Return at most n texts of a part."""
    whole = DONE
    for _ in range(n):
        whole = either(DONE, then(part, whole))
    return whole


@lru_cache(maxsize=1 << 12)
def _expanded(expression: Lazy) -> Expression:
    return expression.expand()


@lru_cache(maxsize=1 << 14)
def ends(expression: Expression) -> bool:
    """Return whether the empty text belongs to an expression."""
    match expression:
        case Texts(found):
            return b"" in found
        case Either(parts):
            return any(ends(part) for part in parts)
        case Then(first, second):
            return ends(first) and ends(second)
        case Lazy():
            return ends(_expanded(expression))
        case _:
            return isinstance(expression, Many)


@lru_cache(maxsize=1 << 16)
def after(expression: Expression, byte: int) -> Expression:
    """Return what may follow a first byte."""
    match expression:
        case OneOf(values):
            return DONE if byte in values else NOTHING
        case Texts(found):
            return texts(rest[1:] for rest in found if rest[:1] == bytes([byte]))
        case Either(parts):
            return either(*(after(part, byte) for part in parts))
        case Then(first, second):
            behind = then(after(first, byte), second)
            return either(behind, after(second, byte)) if ends(first) else behind
        case Many(part):
            return then(after(part, byte), expression)
        case Lazy():
            return after(_expanded(expression), byte)
        case _:
            return NOTHING


def matches(expression: Expression, content: bytes) -> bool:
    """Return whether a text belongs to an expression.

    >>> matches(then(text("a"), many(text("b"))), b"abb"), matches(text("a"), b"ab")
    (True, False)
    """
    for byte in content:
        expression = after(expression, byte)
    return ends(expression)
