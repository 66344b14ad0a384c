import re

import pytest
from sample import bare, routing, sample

from frugalrec.reporting import render, render_markdown
from frugalrec.reporting import routing as routed
from frugalrec.reporting.document import Report


def texts(table):
    return [[cell.text for cell in row.cells] for row in table.rows]


def test_the_facts_name_users_cost_and_evidence():
    facts = dict(routed.allocation_facts(sample()))
    assert facts["Users routed"] == "795 of 2,384 (33.3 %)"  # 795 / 2384
    assert facts["Estimated cost"] == "301,122 of 1,003,741 tokens for everybody"
    assert facts["Gain on them, NDCG@10"] == "+0.0061 (+0.0007 to +0.0118)"
    assert facts["Cheap lists, and their candidates in the best order"] == "0.0905 and 0.2411"
    assert facts["Users with a right item among the candidates"] == "41.2 %"
    # 421 tokens a user at 0.00006 a token is 0.0253 USD per 1,000 users; the gain is 0.55 hundredths
    assert facts["LLM cost of +0.01 NDCG@10, per 1,000 users"] == "0.046 USD (prices of 2026-11-01)"


def test_rules_stand_side_by_side_and_the_oracle_is_never_the_best():
    table = routed.policy_table(sample())
    rows = {row[0]: row for row in texts(table)}
    # the area under x ** .35 is 1 / 1.35, of a gain of .0055; .95 ** (1 / .35)
    assert rows["Gain per cost"][1:] == ["+0.0041", "0.741", "86.4 %"]
    assert rows["Random"][1:] == ["+0.0027", "0.500", "95.0 %"]
    best = [row.cells[0].text for row in table.rows if row.cells[1].best]
    assert best == ["Gain per cost"]
    assert [row.cells[0].note for row in table.rows if row.cells[0].text == "Oracle"] == ["reads the answers"]
    assert "600 test users drawn at random" in table.caption


def test_groups_say_who_was_routed():
    rows = texts(routed.group_table(sample()))
    assert rows[0] == ["5–6", "239", "120", "50.2 %", "+0.0100"]
    assert sum(int(row[2]) for row in rows) == sum(120 - 9 * i for i in range(10))


@pytest.mark.slow
def test_a_run_that_spends_nothing_says_so_and_draws_nothing():
    facts = dict(policy="gain-per-cost", budget="300 users", users=90, routed=0, spent=0.0, whole=33120.0,
                 unit="tokens", decision=("Nothing is spent: the LLM gains nothing on calibration users.",),
                 effect=[-0.004, -0.011, 0.003])  # fmt: skip
    report = bare(allocation=facts)
    assert routed.policy_curves(report) is None
    assert routed.policy_table(report) is None
    pairs = dict(routed.allocation_facts(report))
    assert pairs["Users routed"] == "0 of 90 (0.0 %)"
    assert pairs["Estimated cost"] == "0 of 33,120 tokens for everybody"
    for text in (render(report), render_markdown(report)):
        assert "Nothing is spent" in text
        assert "Who should get the LLM" in text


def test_shares_of_a_gain_that_is_not_proven_are_dashes():
    policies = [dict(name="random", curve=[[0, 0.1], [1, 0.1]], area=[0.0004, -0.001, 0.002])]
    table = routed.policy_table(bare(allocation=dict(policies=policies, measured_users=10)))
    assert texts(table) == [["Random", "+0.0004", "–", "–"]]
    assert table.rows[0].cells[1].note == "−0.0010 to +0.0020"
    assert [cell.best for cell in table.rows[0].cells] == [False, True, False, False]


@pytest.mark.slow
def test_the_drawing_holds_a_line_for_each_rule_and_names_it():
    plot = routed.policy_curves(sample())
    for policy in routing()["policies"]:
        label = policy["name"].replace("-", " ").capitalize()
        assert label in plot.wide
        assert label in plot.narrow
    assert "var(--" in plot.wide
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0", plot.wide)


@pytest.mark.slow
def test_a_run_without_an_llm_has_no_such_section():
    assert "Who should get the LLM" not in render(bare())
    assert routed.allocation_facts(bare()) == []


@pytest.mark.slow
def test_the_facts_survive_json():
    report = sample()
    again = Report.from_dict(report.to_dict())
    assert again.allocation["policies"] == routing()["policies"]
    assert render(again) == render(report)


@pytest.mark.slow
def test_position_bias_is_drawn_from_the_answers_themselves():
    rows = texts(routed.place_table(sample()))
    assert rows[0] == ["1", "0.31"]
    assert rows[-1] == ["8", "0.61"]
    plot = routed.place_bias(sample())
    assert "differ by 0.30" in plot.description  # .61 - .31
    known = dict(routing(), places=[None, 0.5])
    assert routed.place_bias(bare(allocation=known)) is None
    assert texts(routed.place_table(bare(allocation=known)))[0] == ["1", "–"]
    assert routed.place_table(bare(allocation={k: v for k, v in known.items() if k != "places"})) is None
