import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError
from frugalrec.serving.grammar import NOTHING, after, ends, matches
from frugalrec.serving.json_nested import ANY_OBJECT
from frugalrec.serving.json_schema import grammar_of
from frugalrec.serving.json_values import integers

RANKING = {
    "type": "object",
    "required": ["ranking"],
    "additionalProperties": False,
    "properties": {
        "ranking": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 12},
            "minItems": 1,
            "maxItems": 3,
        }
    },
}
DIFFERENT = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1, "maximum": 12},
    "minItems": 3,
    "maxItems": 4,
    "uniqueItems": True,
}


def holds(schema, text):
    return matches(grammar_of(schema), text.encode())


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ('{"ranking":[1]}', True),
        ('{"ranking": [12, 3,3]}', True),
        ('{"ranking":[]}', False),
        ('{"ranking":[1,2,3,4]}', False),
        ('{"ranking":[0]}', False),
        ('{"ranking":[13]}', False),
        ('{"ranking":[01]}', False),
        ('{"ranking":[1.0]}', False),
        ('{"ranking":[1,]}', False),
        ('{"ranking":[1]', False),
        ('{"ranking":[1]} ', False),
        ('{"ranking":[1],"why":1}', False),
        ("[1]", False),
    ],
)
def test_a_ranking_is_held_to_its_schema(text, held):
    assert holds(RANKING, text) is held


@pytest.mark.parametrize(
    ("text", "held"),
    [("[1,2,3]", True), ("[12,1,2,11]", True), ("[1,2]", False), ("[1,2,1]", False), ("[1,2,3,4,5]", False)],
)
def test_unique_items_are_used_once(text, held):
    assert holds(DIFFERENT, text) is held


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "string"}, ['""', '"é \\n 東"'], ['"', '"\x01"', '"\\x"', "a"]),
        ({"type": "integer"}, ["0", "-7", "123"], ["-0", "007", "1.5", "1e3", "9" * 16]),
        ({"type": "integer", "minimum": 0}, ["0", "9"], ["-1"]),
        ({"type": "integer", "maximum": 3}, ["3", "-999"], ["4", "10"]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["0", "-" + "9" * 15], ["1" * 16]),
        ({"type": "number"}, ["0", "-0.25", "12"], [".5", "1.", "NaN"]),
        ({"type": ["integer", "null"], "minimum": 1}, ["1", "null"], ["0", "true"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
        ({"enum": ["a", 1, None]}, ['"a"', "1", "null"], ['"b"', "2"]),
        ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
        ({"const": {"a": [1]}}, ['{"a": [1]}'], ["{}"]),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, ["null", "true"], ["0"]),
        ({"type": "array", "items": {"type": "boolean"}}, ["[]", "[true, false,true]"], ["[1]", "[true,]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({}, ["1", '{"a": [null, {"b": []}]}'], ["", "x"]),
    ],
)
def test_keywords(schema, yes, no):
    assert [text for text in yes if not holds(schema, text)] == []
    assert [text for text in no if holds(schema, text)] == []


@settings(max_examples=150, deadline=None)
@given(st.integers(-1200, 1200), st.integers(0, 1500), st.integers(-1500, 1500))
def test_a_range_holds_its_integers_and_no_others(low, width, value):
    grammar = integers(low, low + width)
    assert matches(grammar, str(value).encode()) is (low <= value <= low + width)
    for end in (low, low + width):
        assert matches(grammar, str(end).encode())
    assert not matches(grammar, f"0{value}".encode()) and not matches(grammar, b"-0")


def test_a_range_is_all_that_is_counted():
    every = [value for value in range(-1100, 1100) if matches(integers(-997, 1010), str(value).encode())]
    assert every == list(range(-997, 1011))


WORDS = ["type", "items", "properties", "required", "enum", "const", "anyOf", "minItems", "maxItems"]
WORDS += ["uniqueItems", "minimum", "maximum", "additionalProperties", "title", "pattern"]
TYPES = ["object", "array", "string", "integer", "number", "boolean", "null"]
ODD = st.none() | st.booleans() | st.integers(-3, 200) | st.sampled_from([0.5, "ab", *TYPES, *WORDS])
ODD_SCHEMAS = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
        | st.builds(lambda kind, rest: {**rest, "type": kind}, st.sampled_from(TYPES),
                    st.dictionaries(st.sampled_from(WORDS), inner, max_size=3))
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(ODD_SCHEMAS)
def test_whatever_is_sent_is_a_grammar_with_texts_or_refused(schema):
    try:
        grammar = grammar_of(schema)
    except ConfigError:
        return
    assert grammar is not NOTHING
    assert ends(grammar) or any(after(grammar, byte) is not NOTHING for byte in range(256))


def nested(depth, schema):
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (nested(65, {"type": "null"}), "64 levels"),
        ({"type": "object", "properties": {f"a{n}": {} for n in range(2001)}}, "2,000 entries"),
        ({"anyOf": [{"type": "null", "title": "x"}] * 1001}, "2,000 entries"),
        ({"enum": list(range(70_000))}, "65,536 characters"),
        ({"const": "x" * 70_000}, "65,536 characters"),
    ],
)
def test_a_schema_has_a_size(schema, said):
    with pytest.raises(ConfigError, match=said):
        grammar_of(schema)


def test_a_type_named_many_times_is_not_written_out_each_time():
    schema = {"type": "null"}
    for _ in range(40):  # 2^40 arrays, if each were
        schema = {"type": ["array", "array"], "items": schema}
    with pytest.raises(ConfigError, match="each once"):
        grammar_of(schema)


def test_what_is_remembered_of_grammars_is_bounded_and_changes_nothing(monkeypatch):
    from frugalrec.serving import grammar

    words = [f"{letter}{'x' * 300}{letter}" for letter in "abc"]
    contents = [json.dumps(word).encode() for word in [*words, "a" + "x" * 300 + "b"]]
    expected = [matches(grammar_of({"enum": words}), content) for content in contents]
    assert expected == [True, True, True, False]
    grammar._heads.cache_clear()
    monkeypatch.setattr(grammar, "KEPT_BYTES", 50_000)
    monkeypatch.setattr(grammar, "_kept", 0)
    most = 0
    for content in contents:
        state = grammar_of({"enum": words})
        for byte in content:
            state = after(state, byte)
            most = max(most, grammar._heads.cache_info().currsize)
        assert ends(state) is expected.pop(0)
    assert most < 100  # of some 900 states, each with the rest of its word


def test_optional_properties_may_be_left_out_and_required_ones_not():
    schema = {
        "type": "object",
        "properties": {name: {"type": "null"} for name in "abc"},
        "required": ["b"],
        "additionalProperties": False,
    }
    for kept in ("b", "ab", "bc", "abc"):
        assert holds(schema, json.dumps(dict.fromkeys(kept)))
    for kept in ("", "a", "ac", "c", "ba"):
        assert not holds(schema, json.dumps(dict.fromkeys(kept)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-999, 999)
    | st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("ab", max_size=2), JSON, max_size=3))
def test_any_object_takes_what_json_writes(value):
    text = json.dumps(value, ensure_ascii=False)
    assert matches(ANY_OBJECT, text.encode()) or text.count("[") + text.count("{") > 6


@pytest.mark.parametrize("schema", [RANKING, DIFFERENT, {"type": "object"}, {"type": ["number", "string"]}])
def test_every_text_of_the_grammar_is_valid_and_no_state_is_a_dead_end(schema):
    # A random walk that ends as soon as it may: whatever it wrote must be JSON.
    for seed in range(30):
        rng, state, text = random.Random(seed), grammar_of(schema), b""
        for _ in range(200):
            if ends(state) and rng.random() < 0.5:
                break
            fitting = [byte for byte in range(256) if after(state, byte) is not NOTHING]
            assert fitting or ends(state)
            if not fitting:
                break
            byte = (
                rng.choice([b for b in fitting if b in b'"}],'] or fitting)
                if rng.random() < 0.5
                else rng.choice(fitting)
            )
            state, text = after(state, byte), text + bytes([byte])
        if ends(state):
            value = json.loads(text.decode())
            if schema is RANKING:
                assert 1 <= len(value["ranking"]) <= 3
            if schema is DIFFERENT:
                assert len(set(value)) == len(value) >= 3


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "string", "maxLength": 3}, "maxLength"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "3 and 1"),
        ({"type": "integer", "minimum": 1, "maximum": True}, "whole numbers"),
        ({"type": "integer", "minimum": 0.5, "maximum": 2}, "whole numbers"),
        ({"type": "integer", "minimum": 10**15}, "15 digits"),
        ({"type": []}, "at least one type"),
        ({"type": ["array", "array"]}, "each once"),
        ({"type": ["string", ["x"]]}, "the type \\['x'\\]"),
        ({"enum": [1], "type": [["x"]]}, "the type \\['x'\\]"),
        ({"type": "object", "required": [["x"]]}, "requires \\['x'\\]"),
        ({"type": "object", "additionalProperties": "no"}, "additionalProperties"),
        ({"type": "array", "uniqueItems": 1}, "uniqueItems"),
        ({"type": "array", "items": {"enum": "ab"}, "uniqueItems": True}, "list of at least one"),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}, "uniqueItems": True}, "at most 128"),
        ({"type": "array", "minItems": True}, "whole numbers minItems"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "unique items"),
        ({"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "minItems": 2}, "only 1"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems <= maxItems"),
        ({"type": "object", "required": ["a"], "properties": {}}, "'a'"),
        ({"type": "object", "properties": {"a": {"$ref": "#/x"}}}, "properties.a uses '\\$ref'"),
        ({"type": "date"}, "'date'"),
        ({"enum": []}, "at least one"),
        ({"type": "null", "enum": [1]}, "no value"),
        ({"const": float("nan")}, "JSON cannot say"),
        ([], "must be an object"),
        ({"oneOf": [{}]}, "oneOf"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(schema, said):
    with pytest.raises(ConfigError, match=said):
        grammar_of(schema)
