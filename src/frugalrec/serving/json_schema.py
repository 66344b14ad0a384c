"""A JSON schema as a grammar: every text of the grammar is valid JSON that follows the schema.

The grammar may be narrower than the schema (properties come in the order given, white space is at most
one blank after a comma or colon, numbers have no exponent); it is never wider. So a keyword that would
narrow it further and is not known here is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from frugalrec.errors import ConfigError
from frugalrec.serving.grammar import NOTHING, Expression, either, text, texts, then
from frugalrec.serving.json_nested import ANY_OBJECT, ANYTHING, Different, array
from frugalrec.serving.json_values import (
    BOOLEAN,
    COLON,
    COMMA,
    DIGITS,
    LARGEST,
    NULL,
    NUMBER,
    STRING,
    integers,
)
from frugalrec.serving.schema_size import check_size

Schema = Mapping[str, Any]
MOST_DISTINCT = 128
"""The most different values of an array whose items must be unique."""
_IGNORED = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "type"}
_KNOWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "integer": {"minimum", "maximum"},
}
_SIMPLE = {"string": STRING, "number": NUMBER, "boolean": BOOLEAN, "null": NULL}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
"""How Python reads values of each type."""


def grammar_of(schema: Any, where: str = "schema") -> Expression:
    """Return a grammar all of whose texts follow a JSON schema.

    Args:
        schema: ``type`` (object, array, string, integer, number, boolean, null), ``properties``,
            ``required``, ``items``, ``minItems``, ``maxItems``, ``uniqueItems`` (integers in a range, or
            an enum), ``minimum`` and ``maximum`` (integers), ``enum``, ``const`` and ``anyOf``.
        where: Its name in error messages.

    Raises:
        ConfigError: If the schema says something else, is too large, or nothing can follow it.
    """
    check_size(schema, where)
    return _grammar(schema, where)


def _grammar(schema: Any, where: str) -> Expression:
    if schema is True or schema == {}:
        return ANYTHING
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where} must be an object such as {{'type': 'string'}}, not {schema!r}.")
    for word in ("enum", "const", "anyOf"):
        if word in schema:
            return _choice(schema, word, where)
    _check_keywords(schema, set().union(*_KNOWN.values()), where)
    kinds = _kinds(schema, where)
    if len(kinds) == 1:
        return _typed(schema, kinds[0], where)
    rest = {key: value for key, value in schema.items() if key != "type"}
    return either(*(_typed(_own(rest, kind), kind, where) for kind in kinds))


def _typed(schema: Schema, kind: str, where: str) -> Expression:
    _check_keywords(schema, _KNOWN.get(kind, set()), where)
    match kind:
        case "object":
            return _object(schema, where)
        case "array":
            return _items(schema, where)
        case "integer":
            return integers(*_bounds(schema, where))
        case _:
            return _SIMPLE[kind]


def _kinds(schema: Schema, where: str) -> list[str]:
    """Return the types that a schema names, of which each is written out once."""
    kind = schema.get("type")
    kinds: list[Any] = kind if isinstance(kind, list) else [kind]
    for one in kinds:
        if not isinstance(one, str) or one not in _TYPES:
            raise ConfigError(f"{where} has the type {one!r}; known are {', '.join(_TYPES)}.")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(f"{where}.type must be a list of at least one type, each once, not {kinds!r}.")
    return kinds


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
    if word == "anyOf":
        options = _options(schema[word], f"{where}.anyOf")
        return either(*(_grammar(one, f"{where}.anyOf[{n}]") for n, one in enumerate(options)))
    return texts(_enum(schema, [schema[word]] if word == "const" else schema[word], where))


def _options(found: Any, where: str) -> list[Any]:
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where} must be a list of at least one entry.")
    return found


def _enum(schema: Schema, options: Any, where: str) -> frozenset[bytes]:
    """Return the texts of those listed values that have the schema's type."""
    options = _options(options, f"{where}.enum")
    if "type" in schema:
        kinds = _kinds(schema, where)
        options = [value for value in options if any(_is_a(value, kind) for kind in kinds)]
        if not options:
            raise ConfigError(f"{where}: no value of the enum has the type {schema['type']!r}.")
    return frozenset(_written(value, where) for value in options)


def _is_a(value: Any, kind: str) -> bool:
    # Python takes booleans for integers; JSON does not.
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def _written(value: Any, where: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} holds the value {value!r}, which JSON cannot say: {error}") from None


def _object(schema: Schema, where: str) -> Expression:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    further = schema.get("additionalProperties", True)
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise ConfigError(f"{where} needs properties as an object and required as a list.")
    if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
        raise ConfigError(f"{where} requires {missing[0]!r}, which its properties do not describe.")
    if not isinstance(further, bool | Mapping):
        raise ConfigError(f"{where}.additionalProperties must be true, false or a schema, not {further!r}.")
    if not properties and further is True:
        return ANY_OBJECT
    first = behind = text("}")
    for name, inner in reversed(list(properties.items())):
        value = _grammar(inner, f"{where}.properties.{name}")
        member = then(text(_written(name, where)), COLON, value)
        can_lack = name not in required
        first = either(then(member, behind), first if can_lack else NOTHING)
        behind = either(then(COMMA, member, behind), behind if can_lack else NOTHING)
    return then(text("{"), first)


def _items(schema: Schema, where: str) -> Expression:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if not _whole(least) or least < 0 or not (most is None or (_whole(most) and most >= least)):
        raise ConfigError(f"{where} needs whole numbers minItems <= maxItems, not {least!r} and {most!r}.")
    inner, unique = schema.get("items", {}), schema.get("uniqueItems", False)
    if not isinstance(unique, bool):
        raise ConfigError(f"{where}.uniqueItems must be true or false, not {unique!r}.")
    if not unique:
        return array(_grammar(inner, f"{where}.items"), least, most)
    values = _values(inner, f"{where}.items")
    if len(values) < least:
        raise ConfigError(f"{where} wants {least} different items, but there are only {len(values)}.")
    some = Different(values, least, len(values) if most is None else min(most, len(values)))
    empty = text("]") if least == 0 else NOTHING
    return then(text("["), either(empty, some if some.most else NOTHING))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _values(schema: Any, where: str) -> frozenset[bytes]:
    """Return the texts of the values that unique items may take."""
    found: frozenset[bytes] = frozenset()
    if isinstance(schema, Mapping) and "enum" in schema:
        _check_keywords(schema, {"enum"}, where)
        found = _enum(schema, schema["enum"], where)
    elif isinstance(schema, Mapping) and schema.get("type") == "integer":
        _check_keywords(schema, _KNOWN["integer"], where)
        low, high = _bounds(schema, where)
        if high - low < MOST_DISTINCT:
            found = frozenset(str(value).encode() for value in range(low, high + 1))
    if not 1 <= len(found) <= MOST_DISTINCT:
        raise ConfigError(
            f"{where}: unique items must be an enum or integers from minimum to maximum, at most "
            f"{MOST_DISTINCT} of them."
        )
    return found


def _bounds(schema: Schema, where: str) -> tuple[int, int]:
    low, high = schema.get("minimum", -LARGEST), schema.get("maximum", LARGEST)
    if not _whole(low) or not _whole(high) or max(low, -LARGEST) > min(high, LARGEST):
        raise ConfigError(
            f"{where} needs whole numbers minimum <= maximum with integers of {DIGITS} digits between them, "
            f"not {low!r} and {high!r}."
        )
    return max(low, -LARGEST), min(high, LARGEST)
