import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from sample import sample

from frugalrec.reporting import plots
from frugalrec.reporting.document import ArmCost, Interval
from frugalrec.reporting.frontier import _frontier, quality_cost
from frugalrec.reporting.svg import COLOURS, blank

MAKERS = [quality_cost, plots.deciles, plots.loss, plots.lengths, plots.kept_deciles, plots.stages]


@pytest.fixture(scope="module")
def drawn():
    return [make(sample()) for make in MAKERS]


def both(plot):
    return (plot.wide, plot.narrow)


@pytest.mark.slow
def test_every_drawing_is_well_formed_and_the_same_each_time(drawn):
    for make, plot in zip(MAKERS, drawn, strict=True):
        for svg in both(plot):
            ElementTree.fromstring(svg)
        assert both(make(sample())) == both(plot)


def test_drawings_have_a_name_and_a_description(drawn):
    for plot in drawn:
        for svg in both(plot):
            root = ElementTree.fromstring(svg)
            assert root.get("role") == "img"
            named = root.get("aria-labelledby").split()
            texts = {child.get("id"): child.text for child in root if child.tag in ("title", "desc")}
            assert [texts[key] for key in named] == [plot.title, plot.description]


def test_colours_are_variables_so_that_dark_pages_work(drawn):
    for plot in drawn:
        for svg in both(plot):
            assert "var(--" in svg
            assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []


def test_no_drawing_refers_to_the_network_or_carries_a_date(drawn):
    for plot in drawn:
        for svg in both(plot):
            assert "http" not in svg
            assert "<metadata" not in svg and "<style" not in svg and "dc:date" not in svg


def test_ids_are_unique_over_all_drawings_and_every_reference_is_met(drawn):
    page = "".join(svg for plot in drawn for svg in both(plot))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert used and {a or b for a, b in used} <= set(ids)


def test_text_stays_text_and_names_every_arm(drawn):
    assert all(arm.label in drawn[0].wide for arm in sample().arms)
    assert "<text" in drawn[0].narrow


@pytest.mark.slow
def test_a_hostile_label_is_inert_and_no_formula():
    report = sample()
    arms = tuple(replace(a, label="<script>$x^2$</script>") if a.name == "ease" else a for a in report.arms)
    for make in (quality_cost, plots.deciles):
        plot = make(replace(report, arms=arms))
        assert "<script" not in plot.wide + plot.narrow
        assert "$x^2$" in plot.wide


@pytest.mark.slow
def test_names_in_other_scripts_are_drawn():
    report = sample()
    arms = tuple(replace(a, label="推薦モデル") if a.name == "sasrec" else a for a in report.arms)
    assert "推薦モデル" in quality_cost(replace(report, arms=arms)).wide


def test_the_line_joins_exactly_the_arms_that_no_cheaper_arm_beats():
    report = sample()
    found = {arm.name for arm in _frontier(report, report.arms)}
    allowed = [a for a in report.arms if a.kind != "control" and not a.oracle]
    naive = {
        a.name
        for a in allowed
        if not any(
            b is not a
            and b.cost.ms_per_user <= a.cost.ms_per_user
            and b.metrics["ndcg@10"].mean >= a.metrics["ndcg@10"].mean
            for b in allowed
        )
    }
    assert found == naive


@pytest.mark.slow
def test_arms_without_a_measured_time_or_value_are_left_out_of_the_drawing():
    report = sample()
    nothing = {"ndcg@10": Interval(math.nan, math.nan, math.nan)}
    arms = [replace(a, cost=ArmCost()) if a.name == "als" else a for a in report.arms]
    arms = [replace(a, metrics=nothing) if a.name == "markov" else a for a in arms]
    plot = quality_cost(replace(report, arms=tuple(arms)))
    assert plot.description.startswith("12 arms")  # 14 less 2
    assert ">ALS<" not in plot.wide and ">Markov chain<" not in plot.wide
    assert quality_cost(replace(report, arms=tuple(replace(a, cost=ArmCost()) for a in arms))) is None


@pytest.mark.slow
def test_a_time_of_zero_and_a_single_arm_are_drawn():
    report = sample(deciles=None, warmth=())
    arm = replace(report.arm("ease"), cost=ArmCost(ms_per_user=0.0))
    assert ">EASE (reference)<" in quality_cost(replace(report, arms=(arm,))).wide


def test_wider_bars_mean_longer_stages():
    svg = plots.stages(sample()).wide
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ [^"]*" clip-path', svg)
    widths = [float(right) - float(left) for left, right in bars]
    walls = [stage.wall_s for stage in reversed(sample().stages)]
    assert widths == pytest.approx([wall / walls[2] * widths[2] for wall in walls], rel=1e-3)


@pytest.mark.slow
def test_higher_bars_mean_larger_shares_of_the_kept():
    shares = [0.0, 0.1, 0.05, 0.05, 0.0, 0.1, 0.1, 0.1, 0.2, 0.3]
    svg = plots.kept_deciles(sample(selection={"deciles": shares})).wide
    bars = re.findall(
        r'<path d="M [\d.]+ ([\d.]+) \nL [\d.]+ [\d.]+ \nL [\d.]+ ([\d.]+) [^"]*" clip-path', svg
    )
    heights = [float(bottom) - float(top) for bottom, top in bars]
    assert heights == pytest.approx([share / 0.3 * heights[-1] for share in shares], abs=0.01)
    # the dashed line stands where a tenth of the kept would reach
    line = re.search(r'<path d="M [\d.]+ ([\d.]+) \nL [\d.]+ \1 \n"[^>]*stroke-dasharray', svg)
    assert float(bars[0][0]) - float(line[1]) == pytest.approx(heights[1], abs=0.01)


@pytest.mark.slow
def test_a_histogram_of_many_lengths_shows_no_more_ticks_than_fit():
    lengths = {"edges": list(range(1, 42)), "all": [100] * 40, "kept": list(range(40))}
    plot = plots.lengths(sample(selection={"lengths": lengths}))
    ticks = [re.findall(r">(\d+)</text>", svg.split("matplotlib.axis_2")[0]) for svg in both(plot)]
    # 40 bins: every 4th in 12 ticks' room, every 7th in 6 ticks' room.
    assert ticks == [[str(n) for n in range(1, 41, 4)], [str(n) for n in range(1, 41, 7)]]


def test_drawings_without_data_are_absent():
    report = sample(deciles=None, stages=(), tuning={"loss": [[0, 1.0]]}, selection={"lengths": None})
    assert [make(report) for make in MAKERS[1:]] == [None] * 5


def test_every_role_has_its_own_stand_in_colour():
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_figures_keep_no_global_state():
    import sys

    blank(100, 100)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
