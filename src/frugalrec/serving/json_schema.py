"""A JSON schema as a grammar: every text of the grammar is valid JSON that follows the schema.

The grammar may be narrower than the schema (properties come in the order given, white space is at most
one blank after a comma or colon, numbers have no exponent); it is never wider. So a keyword that would
narrow it further and is not known here is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.serving.grammar import NOTHING, Expression, Lazy, either, text, texts, then
from frugalrec.serving.json_values import (
    BOOLEAN,
    COLON,
    COMMA,
    INTEGER,
    NULL,
    NUMBER,
    POSITIVE,
    STRING,
    WHOLE,
)

Schema = Mapping[str, Any]
DEPTH = 6
"""How deep free-form JSON may nest."""
MOST_INTEGERS = 10_000
"""The widest range of integers that is written out."""
MOST_DISTINCT = 128
"""The most different values of an array whose items must be unique."""
_IGNORED = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "type"}
_KNOWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "integer": {"minimum", "maximum"},
}


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
class _Different(Lazy):
    """Items of an array out of values that are used once each, the array's bracket included."""

    values: frozenset[bytes]
    least: int
    most: int

    def expand(self) -> Expression:
        """Write out the next item; the caller has seen to it that one may follow."""
        branches = []
        for value in self.values:
            rest = _Different(self.values - {value}, max(self.least - 1, 0), self.most - 1)
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
        return either(*scalars, _array(_Anything(self.depth - 1), 0, None), _free_object(self.depth))


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


def _array(item: Expression, least: int, most: int | None) -> Expression:
    empty = text("]") if least == 0 else NOTHING
    if most == 0:
        return then(text("["), empty)
    left = None if most is None else most - 1
    return then(text("["), either(empty, then(item, _More(item, max(least - 1, 0), left))))


ANY_OBJECT = _free_object(DEPTH)
"""Any JSON object."""


def grammar_of(schema: Any, where: str = "schema") -> Expression:
    """Return a grammar all of whose texts follow a JSON schema.

    Args:
        schema: ``type`` (object, array, string, integer, number, boolean, null), ``properties``,
            ``required``, ``items``, ``minItems``, ``maxItems``, ``uniqueItems`` (integers in a range, or
            an enum), ``minimum`` and ``maximum`` (integers), ``enum``, ``const`` and ``anyOf``.
        where: Its name in error messages.

    Raises:
        ConfigError: If the schema says something else, or nothing can follow it.
    """
    if schema is True or schema == {}:
        return _Anything(DEPTH)
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where} must be an object such as {{'type': 'string'}}, not {schema!r}.")
    for word in ("enum", "const", "anyOf"):
        if word in schema:
            return _choice(schema, word, where)
    kind = schema.get("type")
    if isinstance(kind, list):
        rest = {key: value for key, value in schema.items() if key != "type"}
        return either(*(grammar_of({**_own(rest, one), "type": one}, where) for one in kind))
    _check_keywords(schema, _KNOWN.get(str(kind), set()), where)
    if kind == "object":
        return _object(schema, where)
    if kind == "array":
        return _items(schema, where)
    if kind == "integer":
        bounds = _integers(schema, where)
        return bounds if isinstance(bounds, Expression) else texts(bounds)
    simple = {"string": STRING, "number": NUMBER, "boolean": BOOLEAN, "null": NULL}
    if kind not in simple:
        raise ConfigError(f"{where} has the type {kind!r}; known are {', '.join([*_KNOWN, *simple])}.")
    return simple[str(kind)]


def _own(schema: Schema, kind: str) -> dict[str, Any]:
    """Return the keywords that speak of one of several types; the others stay, to be refused."""
    others = {word for name, words in _KNOWN.items() if name != kind for word in words}
    return {key: value for key, value in schema.items() if key not in others - _KNOWN.get(kind, set())}


def _check_keywords(schema: Schema, known: set[str], where: str) -> None:
    if unknown := sorted(set(schema) - known - _IGNORED):
        raise ConfigError(
            f"{where} uses {unknown[0]!r}, which this server cannot hold an answer to; leave it out, and "
            "check the answer yourself."
        )


def _choice(schema: Schema, word: str, where: str) -> Expression:
    _check_keywords(schema, {word}, where)
    options = [schema[word]] if word == "const" else schema[word]
    if not isinstance(options, list) or not options:
        raise ConfigError(f"{where}.{word} must be a list of at least one entry.")
    if word == "anyOf":
        return either(*(grammar_of(one, f"{where}.anyOf[{n}]") for n, one in enumerate(options)))
    return texts(_written(value, where) for value in _of_type(options, schema.get("type"), where))


def _of_type(values: Sequence[Any], kind: Any, where: str) -> list[Any]:
    names = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    names |= {"object": dict, "array": list}
    if kind is None:
        return list(values)
    kinds = kind if isinstance(kind, list) else [kind]
    chosen = [
        value
        for value in values
        if any(
            isinstance(value, names.get(one, ())) and (one == "boolean" or not isinstance(value, bool))  # type: ignore[arg-type]
            for one in kinds
        )
    ]
    if not chosen:
        raise ConfigError(f"{where}: no value of the enum has the type {kind!r}.")
    return chosen


def _written(value: Any, where: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ConfigError(f"{where} holds the value {value!r}, which JSON cannot say: {error}") from None


def _object(schema: Schema, where: str) -> Expression:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise ConfigError(f"{where} needs properties as an object and required as a list.")
    if missing := [name for name in required if name not in properties]:
        raise ConfigError(f"{where} requires {missing[0]!r}, which its properties do not describe.")
    if not properties and schema.get("additionalProperties", True) is True:
        return ANY_OBJECT
    first = behind = text("}")
    for name, inner in reversed(list(properties.items())):
        value = grammar_of(inner, f"{where}.properties.{name}")
        member = then(text(_written(name, where)), COLON, value)
        can_lack = name not in required
        first = either(then(member, behind), first if can_lack else NOTHING)
        behind = either(then(COMMA, member, behind), behind if can_lack else NOTHING)
    return then(text("{"), first)


def _items(schema: Schema, where: str) -> Expression:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if not _count(least) or not (most is None or (_count(most) and most >= least)):
        raise ConfigError(f"{where} needs whole numbers minItems <= maxItems, not {least!r} and {most!r}.")
    inner = schema.get("items", {})
    if not schema.get("uniqueItems", False):
        return _array(grammar_of(inner, f"{where}.items"), least, most)
    values = _values(inner, f"{where}.items")
    if len(values) < least:
        raise ConfigError(f"{where} wants {least} different items, but there are only {len(values)}.")
    some = _Different(values, least, len(values) if most is None else min(most, len(values)))
    empty = text("]") if least == 0 else NOTHING
    return then(text("["), either(empty, some if some.most else NOTHING))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _values(schema: Any, where: str) -> frozenset[bytes]:
    """Return the texts of the values that unique items may take."""
    found: Expression | frozenset[bytes] = NOTHING
    if isinstance(schema, Mapping) and "enum" in schema:
        _check_keywords(schema, {"enum"}, where)
        options = _of_type(schema["enum"], schema.get("type"), where)
        found = frozenset(_written(value, where) for value in options)
    elif isinstance(schema, Mapping) and schema.get("type") == "integer":
        _check_keywords(schema, _KNOWN["integer"], where)
        found = _integers(schema, where)
    if isinstance(found, Expression) or len(found) > MOST_DISTINCT:
        raise ConfigError(
            f"{where}: unique items must be an enum or integers from minimum to maximum, at most "
            f"{MOST_DISTINCT} of them."
        )
    return found


def _integers(schema: Schema, where: str) -> Expression | frozenset[bytes]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return INTEGER
    if high is None and low in (0, 1) and not isinstance(low, bool):
        return WHOLE if low == 0 else POSITIVE
    if isinstance(low, int) and isinstance(high, int) and 0 <= high - low < MOST_INTEGERS:
        return frozenset(str(value).encode() for value in range(low, high + 1))
    raise ConfigError(
        f"{where} needs whole numbers minimum <= maximum, at most {MOST_INTEGERS:,} values, not "
        f"{low!r} and {high!r}."
    )
