import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError
from frugalrec.serving.grammar import NOTHING, after, ends, matches
from frugalrec.serving.json_schema import ANY_OBJECT, grammar_of

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
        ({"type": "integer", "maximum": 3}, "minimum <= maximum"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "3 and 1"),
        ({"type": "integer", "minimum": 0, "maximum": 10**9}, "10,000"),
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
