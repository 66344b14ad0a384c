import math

import pytest
from sample import sample

from frugalrec.reporting import render, render_markdown, samples


def texts(table):
    return [[cell.text for cell in row.cells] for row in table.rows]


COST = {
    "parts": [
        {"name": "surrogate", "wall_s": 5.0, "tokens": 0},
        {"name": "my scorer", "wall_s": 12.0, "tokens": 300},
        {"name": "rest", "wall_s": 2.0, "tokens": 0},
        {"name": "tuning", "wall_s": 30.0, "tokens": 800},
    ],
    "together": {"name": "together", "wall_s": 49.0, "tokens": 1100},
    "further": {"name": "one", "wall_s": 10.0, "tokens": 400.0},
    "full": {"name": "full", "wall_s": 90.0, "tokens": 3200.0},
    "time_ratio": 49 / 90,
    "token_ratio": 1100 / 3200,
}


def test_the_cost_stands_beside_the_estimate():
    table = samples.cost_table(sample(selection={"candidates": 1008, "cost": COST}))
    assert texts(table) == [
        ["Training the surrogate", "5.0 s", "0", "5.6 %", "0.0 %"],  # 5 / 90
        ["Scoring: my scorer", "12.0 s", "300", "13.3 %", "9.4 %"],  # 12 / 90, 300 / 3200
        ["Rest of the selection", "2.0 s", "0", "2.2 %", "0.0 %"],
        ["Tuning on the kept samples", "30.0 s", "800", "33.3 %", "25.0 %"],
        ["Together", "49.0 s", "1,100", "54.4 %", "34.4 %"],
        ["Tuning on all 1,008 samples", "90.0 s", "3,200", "100.0 %", "100.0 %"],
    ]
    assert [row.cells[0].note for row in table.rows][-2:] == ["", "estimate"]
    assert "54.4 % of the time and 34.4 % of the tokens" in table.caption
    assert "10.0 s, 400 tokens" in table.caption


def test_without_tuning_the_cost_has_no_estimate():
    part = {"name": "choosing", "wall_s": 0.02, "tokens": 0}
    cost = {"parts": [part], "together": {**part, "name": "together"}}
    table = samples.cost_table(sample(selection={"cost": cost}))
    assert texts(table) == [["Choosing", "20 ms", "0"], ["Together", "20 ms", "0"]]
    assert "nothing was tuned" in table.caption


def test_rows_say_whether_they_were_kept():
    table = samples.example_table(sample())
    assert [column.title for column in table.columns] == ["Target", "History", "Influence", "Effort", "Score"]
    assert [column.numeric for column in table.columns] == [False, True, True, True, True]
    assert texts(table)[2] == ["Thief (1981)", "3", "−1.3e−06", "2.103", "1.201"]
    assert [row.cells[0].note for row in table.rows] == ["", "", "", "left out", "left out"]


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ([12345.6, 0.2], ["12,346", "0"]),
        ([0.0123, -0.001], ["0.01230", "−0.00100"]),
        ([0.0, 0.0], ["0", "0"]),
        ([1e-7, 2.5e-9], ["1e−07", "2.5e−09"]),
    ],
)
def test_the_largest_number_of_a_column_sets_its_decimals(scores, shown):
    rows = [{"target": "x", "score": score} for score in scores]
    assert [row[1] for row in texts(samples.example_table(sample(selection={"examples": rows})))] == shown


def test_rows_without_a_part_have_a_dash_there():
    rows = [
        {"target": "Heat", "effort": None, "score": 0.5},
        {"target": "Ali", "effort": math.nan, "score": 1.0},
    ]
    table = samples.example_table(sample(selection={"examples": rows}))
    assert texts(table) == [["Heat", "–", "0.500"], ["Ali", "–", "1.000"]]
    assert table.columns[1].numeric


def test_the_facts_say_how_and_how_many():
    facts = dict(samples.selection_facts(sample()))
    assert facts["Options"] == "preset=frugal, effort={'pool': 2048}"
    assert facts["Kept"] == "1,024 (2.0 %)"  # of 51,200
    assert facts["Without a score"] == "49,152 (96.0 %), none of them kept"
    assert facts["Negative influence"] == "21.4 % of the kept, 48.7 % of all"


def test_a_random_choice_is_sensible():
    facts = dict(
        samples.selection_facts(
            sample(selection={"scorer": "random", "prefers": "", "kept": 3, "undefined": 0})
        )
    )
    assert facts == {"Scorer": "random", "Prefers": "nothing: every row has the same chance", "Kept": "3"}


def test_deciles_are_named_from_low_to_high():
    rows = texts(samples.decile_table(sample(selection={"deciles": [0.25, *[0.0] * 8, 0.75]})))
    assert rows[0] == ["1, the lowest", "25.0 %"] and rows[-1] == ["10, the highest", "75.0 %"]
    assert [row[1] for row in rows[1:-1]] == ["0.0 %"] * 8


@pytest.mark.slow
@pytest.mark.parametrize("draw", [render, render_markdown])
def test_page_and_markdown_show_the_same_rows_and_costs(draw):
    text = draw(sample())
    for part in (
        "Scoring: effort",
        "Tuning on all 51,200 samples",
        "The City of Lost Children",
        "10, the highest",
    ):
        assert part in text


@pytest.mark.slow
def test_titles_are_inert():
    rows = [{"target": "<script>alert(1)</script>", "score": 1.0}]
    assert "<script>alert" not in render(sample(selection={"examples": rows, "left_out": rows}))


def test_nothing_known_nothing_shown():
    for selection in (None, {}, {"deciles": [], "examples": [], "cost": {}}):
        report = sample(selection=selection)
        for make in (samples.decile_table, samples.example_table, samples.cost_table, samples.length_table):
            assert make(report) is None
