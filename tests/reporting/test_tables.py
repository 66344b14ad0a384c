import math
from dataclasses import replace

from rich.console import Console
from sample import sample

from frugalrec.reporting import details, samples, terminal_table
from frugalrec.reporting.document import Interval, StageCost
from frugalrec.reporting.tables import quality_table, ranked


def column(table, title):
    at = [c.title for c in table.columns].index(title)
    return [row.cells[at] for row in table.rows]


def test_arms_stand_best_first_and_undefined_ones_last():
    report = sample()
    lost = replace(
        report.arms[0], name="lost", label="Lost", metrics={"ndcg@10": Interval(math.nan, math.nan, math.nan)}
    )
    names = [arm.name for arm in ranked(replace(report, arms=(lost, *report.arms)))]
    naive = sorted((arm for arm in report.arms), key=lambda arm: arm.metrics["ndcg@10"].mean, reverse=True)
    assert names == [*(arm.name for arm in naive), "lost"]


def test_the_best_value_is_marked_once_and_not_for_figures_without_an_interval():
    table = quality_table(sample())
    assert [cell.text for cell in column(table, "NDCG@10") if cell.best] == ["0.0968"]
    assert not any(cell.best for cell in column(table, "Coverage@10"))


def test_an_oracle_is_never_best():
    report = sample()
    arms = tuple(replace(arm, oracle=True) if arm.name == "fusion" else arm for arm in report.arms)
    assert [c.text for c in column(quality_table(replace(report, arms=arms)), "NDCG@10") if c.best] == [
        "0.0913"
    ]


def test_money_has_a_column_only_where_prices_are_known():
    assert "USD / 1,000 users" in [c.title for c in quality_table(sample()).columns]
    report = sample()
    arms = tuple(replace(arm, cost=replace(arm.cost, money_per_1000_users=None)) for arm in report.arms)
    assert not any("1,000" in c.title for c in quality_table(replace(report, arms=arms)).columns)


def test_cost_stands_beside_the_primary_metric():
    titles = [c.title for c in quality_table(sample()).columns]
    assert titles[:6] == ["Arm", "NDCG@10", "Difference", "ms / user", "Tokens / user", "Fit, once"]


def test_a_missing_metric_is_a_dash():
    report = sample()
    arms = tuple(
        replace(a, metrics={"ndcg@10": a.metrics["ndcg@10"]}) if a.name == "als" else a for a in report.arms
    )
    table = quality_table(replace(report, arms=arms))
    row = next(row for row in table.rows if row.cells[0].text == "ALS")
    assert row.cells[[c.title for c in table.columns].index("Recall@10")].text == "–"


def test_totals_add_up_and_memory_takes_the_peak():
    stages = (
        StageCost(name="a", wall_s=10, cpu_s=20, peak_memory_bytes=2**30, tokens_in=5),
        StageCost(name="b", wall_s=30, cpu_s=1, peak_memory_bytes=3 * 2**30, tokens_in=7),
    )
    total = details.stage_table(sample(stages=stages)).rows[-1]
    # 10 + 30 s; 20 + 1 s; max(1, 3) GiB; 5 + 7 tokens
    assert [cell.text for cell in total.cells] == [
        "Total",
        "40.0 s",
        "21.0 s",
        "3.0 GiB",
        "0",
        "12",
        "0",
        "0",
        "0",
    ]


def test_an_unknown_price_makes_the_total_unknown_not_smaller():
    stages = (StageCost(name="a", wall_s=1, money=0.5), StageCost(name="b", wall_s=1, money=None))
    assert details.stage_table(sample(stages=stages)).rows[-1].cells[-1].text == "–"


def test_findings_come_errors_first():
    audit = tuple({"name": s, "severity": s, "message": s} for s in ("info", "warning", "error"))
    assert [f["name"] for f in details.findings(sample(audit=audit))] == ["error", "warning", "info"]


def test_the_chosen_weight_is_marked_in_words():
    marked = [row.cells[0] for row in details.weight_table(sample()).rows if row.cells[0].note == "chosen"]
    assert [cell.text for cell in marked] == ["0.3"]


def test_a_long_loss_curve_is_thinned_but_keeps_both_ends():
    table = details.loss_table(sample(tuning={"loss": [[step, 1.0] for step in range(0, 10_000)]}))
    steps = [row.cells[0].text for row in table.rows]
    assert (len(steps), steps[0], steps[-1]) == (25, "0", "9,999")
    assert "25 of 10000 recorded steps" in table.caption


def test_a_short_loss_curve_is_whole():
    table = details.loss_table(sample(tuning={"loss": [[1, 2.0], [2, 1.5], [3, 1.0]]}))
    assert [row.cells[1].text for row in table.rows] == ["2.0000", "1.5000", "1.0000"]


def test_absent_parts_have_no_table():
    report = sample(deciles=None, warmth=(), stages=(), selection=None, tuning=None, weights=None)
    makers = (details.decile_table, details.warmth_table, details.stage_table, samples.length_table,
              samples.example_table, details.loss_table, details.weight_table)  # fmt: skip
    assert [make(report) for make in makers] == [None] * len(makers)


def printed(report, width):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(terminal_table(report))
    return captured.get()


def test_the_terminal_table_fits_80_columns_and_keeps_its_numbers_whole():
    text = printed(sample(), 80)
    assert max(map(len, text.splitlines())) <= 80
    for row in quality_table(sample()).rows:
        assert row.cells[1].text in text and row.cells[2].text in text


def test_the_terminal_table_gives_every_arm_one_line_with_its_digits():
    lines = [line.strip() for line in printed(sample(), 90).splitlines()]
    for row in quality_table(sample()).rows:
        line = next(line for line in lines if line.startswith(f"{row.cells[0].text}  "))
        assert row.cells[1].text in line and row.cells[2].text in line
    assert "+0.0029 to +0.0081" in next(line for line in lines if "★ 0.0968" in line)
    assert len(lines) <= len(sample().arms) + 4


def test_labels_with_brackets_are_not_rich_markup():
    report = sample()
    arms = tuple(replace(arm, label="[red]A[/red]") if arm.name == "als" else arm for arm in report.arms)
    assert "[red]A[/red]" in printed(replace(report, arms=arms), 120)
