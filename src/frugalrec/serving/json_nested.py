"""Grammars of arrays and objects, which nest and count: written out as a text reaches them."""

from __future__ import annotations

from dataclasses import dataclass

from frugalrec.serving.grammar import NOTHING, Expression, Lazy, either, text, then
from frugalrec.serving.json_values import BOOLEAN, COLON, COMMA, NULL, NUMBER, STRING

DEPTH = 6
"""How deep free-form JSON may nest."""


@dataclass(frozen=True, eq=False)
class _More(Lazy):
    """The rest of an array behind an item, its bracket included."""

    item: Expression
    least: int
    most: int | None

    def expand(self) -> Expression:
        close = text("]") if self.least <= 0 else NOTHING
        if self.most == 0:
            return close
        left = None if self.most is None else self.most - 1
        return either(close, then(COMMA, self.item, _More(self.item, max(self.least - 1, 0), left)))


@dataclass(frozen=True, eq=False)
class Different(Lazy):
    """Items of an array out of values that are used once each, the array's bracket included."""

    values: frozenset[bytes]
    least: int
    most: int

    def expand(self) -> Expression:
        """Write out the next item; the caller has seen to it that one may follow."""
        branches = []
        for value in self.values:
            rest = Different(self.values - {value}, max(self.least - 1, 0), self.most - 1)
            close = text("]") if rest.least == 0 else NOTHING
            more = then(COMMA, rest) if rest.most and rest.values else NOTHING
            branches.append(then(text(value), either(close, more)))
        return either(*branches)


@dataclass(frozen=True, eq=False)
class _Anything(Lazy):
    """Any JSON value, nested at most `depth` deep."""

    depth: int

    def expand(self) -> Expression:
        scalars = [STRING, NUMBER, BOOLEAN, NULL]
        if self.depth == 0:
            return either(*scalars)
        return either(*scalars, array(_Anything(self.depth - 1), 0, None), _free_object(self.depth))


@dataclass(frozen=True, eq=False)
class _Members(Lazy):
    """Further members of a free-form object, its brace included."""

    depth: int

    def expand(self) -> Expression:
        member = then(STRING, COLON, _Anything(self.depth - 1))
        return either(text("}"), then(COMMA, member, self))


def _free_object(depth: int) -> Expression:
    member = then(STRING, COLON, _Anything(depth - 1))
    return then(text("{"), either(text("}"), then(member, _Members(depth))))


def array(item: Expression, least: int, most: int | None) -> Expression:
    """Return an array of alike items, at least and at most so many."""
    empty = text("]") if least == 0 else NOTHING
    if most == 0:
        return then(text("["), empty)
    left = None if most is None else most - 1
    return then(text("["), either(empty, then(item, _More(item, max(least - 1, 0), left))))


ANYTHING: Expression = _Anything(DEPTH)
"""Any JSON value."""
ANY_OBJECT = _free_object(DEPTH)
"""Any JSON object."""
