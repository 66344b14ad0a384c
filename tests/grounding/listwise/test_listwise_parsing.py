import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frugalrec.grounding.listwise.parsing import MOST_CHARS, MOST_STARTS, ParseReport, parse_ranking
from frugalrec.grounding.listwise.prompt import answer_schema

FIVE = "[4, 2, 5, 1, 3]"
WANTED = [3, 1, 4, 0, 2]


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (f'{{"ranking": {FIVE}}}', "strict"),
        (f'\n {{"ranking":{FIVE}}} ', "strict"),
        (f'```json\n{{"ranking": {FIVE}}}\n```', "embedded"),
        (f'Sure, here are the 5 films: {{"ranking": {FIVE}}} Enjoy number 1!', "embedded"),
        (f'{{"user": 3, "ranking": {FIVE}}}', "embedded"),
        (f'{{"result": {{"note": [1], "ranking": {FIVE}}}}}', "embedded"),
        (f'{{"note": "no"}} and then {{"ranking": {FIVE}}}', "embedded"),
        (f'{{"order": {FIVE}}}', "embedded"),
        ('{"ranking": ["4", "2", "5", "1", "3"]}', "embedded"),
        ('{"ranking": [4.0, 2.0, 5.0, 1.0, 3.0]}', "embedded"),
        ('{"ranking": "4 > 2 > 5 > 1 > 3"}', "embedded"),
        ('{"ranking": [{"id": 4}, {"id": 2}, {"id": 5, "t": "1"}, {"id": 1}, {"id": 3}]}', "embedded"),
        (f"<think>maybe 1, 2 or {{}}</think>{{\"ranking\": {FIVE}}}", "strict"),
        (f"Of 3 good ones I choose {FIVE}.", "embedded"),
        ("[4] > [2] > [5] > [1] > [3]", "digits"),
        ("4, 2, 5, 1, 3", "digits"),
        ("4\n2\n5\n1\n3", "digits"),
        ('The 3 best: {"ranking": [4, 2, 5, 1, 3', "digits"),
        ('4: "3 Idiots"\n2: "5 Films"\n5: "x"\n1: "y"\n3: "z"', "digits"),
        ("1. 4\n2. [2]\n3. candidate 5\n4. #1\n5. 3: Alien", "digits"),
        ('1. **4**\n2. 2 - Heat\n3. 5. Big\n4. Candidate 1\n5. 3 "12 Monkeys"', "digits"),
        ("4 (score 0.95), 2 (0.3), 5 (0.25), 1 (.2), 3 (12.5).", "digits"),
        ("4: 0.95\n2: 0.9\n5: 0.5\n1: 0.3\n3: 0.1", "digits"),
        ("<thinking>1, 2, 3, 4, 5</thinking>4, 2, 5, 1, 3", "digits"),
        ('"12 Monkeys and 3 more" 4 2 5 1 3', "digits"),
    ],
)  # fmt: skip
def test_each_rung_reads_the_same_order(text, stage):
    order, report = parse_ranking(text, 5)
    assert order.tolist() == WANTED
    assert report.stage == stage
    assert (report.repaired, report.coverage) == (0, 1.0)
    assert report.valid == (stage == "strict")


@pytest.mark.parametrize(
    "text",
    [None, "", "   ", "I cannot rank films.", "{}", '{"ranking": []}', '{"1": 2, "2": 1}', '{"ranking": {"1": 3}}',
     '{"ranking": ["Alien", "Heat"]}', "0 99 -7", '1: "Alien"\n2: "Heat"\n3: "Big"', "1. Alien (1979)\n2. Heat (1995)",
     "<think>Candidate 1 is close, candidate 2 is", f'<think>{{"ranking": {FIVE}}} or', "<Reasoning>\n1, 2, 3",
     "</think><think>4, 2, 5, 1, 3", "a score of 0.95, of 0.3 and 12.5", "4.5: Alien\n3.5: Heat\n1.5: Big",
     "1. 12 Monkeys\n2. 3 Idiots\n3. 9 (2009)\n4. 5 Centimeters", "1. Alien\n2. 2 Days in Paris\n3. 3",
     "1. Alien 2. Heat 3. Big", "1. Alien\n2. Heat\n\nOthers:\n1. Big\n2. Jaws", "1.12 Monkeys\n2.Heat\n3.3 Idiots",
     "NaN", "true", '{"ranking": [true, null, NaN, Infinity, 1e400]}', '{"ranking": [' + "9" * 6000 + "]}"],
)  # fmt: skip
def test_answers_that_name_nobody_keep_the_cheap_order(text):
    order, report = parse_ranking(text, 5, missing=[2, 0, 1, 4, 3])
    assert order.tolist() == [2, 0, 1, 4, 3]
    assert (report.stage, report.repaired, report.coverage) == ("failed", 5, 0.0)


def test_repairs_are_counted():
    # 5 and 2 are named; the second 5, 0, 6 and "x" are dropped; 1, 3 and 4 follow in the cheap order 4, 1, 3.
    order, report = parse_ranking('{"ranking": [5, 5, 0, 6, "x", 2]}', 5, missing=[1, 3, 0, 2, 4])
    assert order.tolist() == [4, 1, 3, 0, 2]
    assert report == ParseReport(stage="embedded", repaired=3, coverage=0.4, dropped=4)
    _, strict = parse_ranking('{"ranking": [5, 5, 2]}', 5)
    assert (strict.stage, strict.dropped, strict.valid) == ("strict", 1, False)


def test_strict_means_the_schema():
    schema = answer_schema(5)
    assert schema["properties"]["ranking"]["items"] == {"type": "integer", "minimum": 1, "maximum": 5}
    for broken in ([], [0], [6], [1.5], ["1"], [True], [1, 2, 3, 4, 5, 1]):
        assert parse_ranking(json.dumps({"ranking": broken}), 5)[1].stage != "strict"
    assert parse_ranking('{"ranking": [1], "more": 1}', 5)[1].stage == "embedded"


PIECES = st.sampled_from(
    ['{"ranking": [', "]", "}", "[", "{", '"', "\\", "1", "2", "17", "0", "-3", ",", " ", "\n", "```json", "null",
     "999999999999", "1. ", "> ", "true", '{"a":', "é", "²", "٣", "\u200b", "\ud800", "</think>", "ranking", ":"]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(
    text=st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=60).map("".join)), n=st.integers(0, 25)
)
@example(text="[" * 100_000, n=20)
@example(text='{"a":' * 50_000, n=20)
@example(text='"' * 60_001 + "a", n=20)
@example(text='{"ranking": [' + "1, " * 50_000, n=20)
def test_any_text_gives_a_permutation_and_never_raises(text, n):
    missing = np.random.default_rng(n).permutation(n).tolist()
    order, report = parse_ranking(text, n, missing)
    assert sorted(order.tolist()) == list(range(n))
    assert 0 <= report.coverage <= 1 and report.dropped >= 0
    assert report.repaired == n - round(report.coverage * n)
    tail = order[n - report.repaired :].tolist()
    assert tail == [item for item in missing if item in tail]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(values=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
       lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["ranking", "a", "b"]), inner), max_leaves=30))  # fmt: skip
def test_any_json_gives_a_permutation(values):
    order, _ = parse_ranking(json.dumps(values), 7)
    assert sorted(order.tolist()) == list(range(7))


@settings(max_examples=200, deadline=None)
@given(order=st.permutations(range(20)), cut=st.integers(0, 120))
def test_a_truncated_answer_keeps_what_was_said(order, cut):
    text = json.dumps({"ranking": [item + 1 for item in order]})
    found, report = parse_ranking(text[: len(text) - cut], 20)
    named = 20 - report.repaired
    # The last number may be cut in half, so that it names another candidate or one named before.
    assert found[: max(named - 1, 0)].tolist() == order[: max(named - 1, 0)]


@pytest.mark.parametrize("unit", ["[", "{", '{"a":', '[{"ranking":', "[{}", "{[]"])
def test_work_is_bounded_however_long_the_text_is(unit, monkeypatch):
    looked = []

    class Spy(json.JSONDecoder):
        def raw_decode(self, text, start=0):
            looked.append(len(text))
            return super().raw_decode(text, start)

    monkeypatch.setattr(json, "JSONDecoder", Spy)
    parse_ranking(unit * 1_000_000, 20)
    assert max(looked) <= MOST_CHARS + 1
    assert len(looked) <= 2 * MOST_STARTS


def test_the_answer_counts_at_either_end_of_a_long_text():
    filler = "so many films " * 5_000
    assert parse_ranking(f'{{"ranking": {FIVE}}} {filler}', 5)[0].tolist() == WANTED
    assert parse_ranking(f'{filler} {{"ranking": {FIVE}}}', 5)[0].tolist() == WANTED
