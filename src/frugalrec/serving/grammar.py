r"""Grammars over bytes that are read one byte at a time, by derivatives (Brzozowski, 1964).

An expression stands for a set of texts. `after(expression, byte)` stands for what may follow that first
byte, so a text belongs to the grammar if the derivative by all of its bytes holds the empty text. Parts
that nest or count are expanded when they are reached, which lets one small algebra speak of JSON.

>>> digits = many(one_of(range(48, 58)))
>>> ends(after(after(digits, ord("4")), ord("2"))), after(digits, ord("x")) is NOTHING
(True, True)
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self
from weakref import WeakValueDictionary

KEPT_BYTES = 64 << 20
"""How much is remembered of grammars that were written out; what a text needs is made again."""
AN_OBJECT = 500
"""Bytes of an expression beside its parts: itself, its names and its places in the caches."""
_made: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
_kept = 0


def _remember(size: int) -> None:
    """Count bytes that the caches may keep alive; once they are too many, all is forgotten and made anew."""
    global _kept
    _kept += size
    if _kept > KEPT_BYTES:
        _kept = 0
        for cache in (_heads, _expanded, ends):
            cache.cache_clear()


def _size(part: Any) -> int:
    """Return the bytes of a part of an expression, without other expressions in it."""
    contents = [one for one in part if isinstance(one, bytes)] if isinstance(part, frozenset) else []
    return sys.getsizeof(part) + sum(map(sys.getsizeof, contents))


@dataclass(frozen=True, eq=False)
class Expression:
    """A set of texts. Equal expressions are one object, so that comparing and hashing them is cheap."""

    def __new__(cls, *parts: Any) -> Self:
        """Return the expression with these parts that there is, or a new one."""
        found: Self | None = _made.get((cls, *parts))
        if found is None:
            found = _made[(cls, *parts)] = super().__new__(cls)
            _remember(AN_OBJECT + sum(map(_size, parts)))
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
    found = frozenset(values)
    return OneOf(found) if found else NOTHING


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


def after(expression: Expression, byte: int) -> Expression:
    """Return what may follow a first byte."""
    return _heads(expression).get(byte, NOTHING)


@lru_cache(maxsize=1 << 14)
def _heads(expression: Expression) -> dict[int, Expression]:
    """Return what may follow each first byte that there is: one look, however many bytes are tried."""
    match expression:
        case OneOf(values):
            found = dict.fromkeys(values, DONE)
        case Texts(contents):
            rests: defaultdict[int, list[bytes]] = defaultdict(list)
            for content in filter(None, contents):
                rests[content[0]].append(content[1:])
            found = {byte: texts(some) for byte, some in rests.items()}
        case Either(parts):
            found = _merged(_heads(part) for part in parts)
        case Then(first, second):
            found = {byte: then(rest, second) for byte, rest in _heads(first).items()}
            found = _merged([found, _heads(second)]) if ends(first) else found
        case Many(part):
            found = {byte: then(rest, expression) for byte, rest in _heads(part).items()}
        case Lazy():
            found = _heads(_expanded(expression))
        case _:
            found = {}
    _remember(sys.getsizeof(found))
    return found


def _merged(heads: Iterable[dict[int, Expression]]) -> dict[int, Expression]:
    behind: defaultdict[int, list[Expression]] = defaultdict(list)
    for one in heads:
        for byte, rest in one.items():
            behind[byte].append(rest)
    return {byte: either(*rests) for byte, rests in behind.items()}


def matches(expression: Expression, content: bytes) -> bool:
    """Return whether a text belongs to an expression.

    >>> matches(then(text("a"), many(text("b"))), b"abb"), matches(text("a"), b"ab")
    (True, False)
    """
    for byte in content:
        expression = after(expression, byte)
    return ends(expression)
