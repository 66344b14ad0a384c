import base64
import hashlib
import html as stdlib_html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from sample import bare, sample

from frugalrec.reporting import render, render_markdown, words
from frugalrec.reporting.document import Report
from frugalrec.reporting.markup import prose
from frugalrec.reporting.tables import quality_table

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Collects tags and attributes, and fails on a tag that does not balance."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def parse(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def page():
    return render(sample())


@pytest.mark.slow
def test_every_tag_is_closed(page):
    assert parse(page).tags.count("section") == 13


def test_the_page_asks_for_nothing(page):
    for tag, key, value in parse(page).attributes:
        if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert value.startswith("#"), (tag, key, value)
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & set(parse(page).tags)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "http://" not in page and "https://" not in page


def test_only_the_page_s_own_script_may_run_and_nothing_may_load(page):
    policy = next(v for _, k, v in parse(page).attributes if k == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and "base-uri 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.count("<script") == 1


def test_no_event_handlers_or_scripted_links(page):
    assert not [k for _, k, _ in parse(page).attributes if k.startswith("on")]
    assert "javascript:" not in page


HOSTILE = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>\" onload=\"x"


def poisoned():
    report = sample()
    arms = tuple(
        replace(a, label=HOSTILE, description=HOSTILE) if a.name == "ease" else a for a in report.arms
    )
    finding = {
        "name": HOSTILE,
        "severity": HOSTILE,
        "message": HOSTILE,
        "examples": [HOSTILE],
        "remedy": HOSTILE,
    }
    return replace(
        report, title=HOSTILE, created=HOSTILE, command=HOSTILE, arms=arms, audit=(finding,), notes=(HOSTILE,),
        verdict=(HOSTILE, HOSTILE), dataset={"name": HOSTILE, "split": HOSTILE}, config_yaml=HOSTILE, currency=HOSTILE,
        versions={HOSTILE: HOSTILE, "frugalrec": HOSTILE}, hashes={HOSTILE: HOSTILE},
        selection={"scorer": HOSTILE, "examples": [{HOSTILE: HOSTILE}]}, tuning={"base": HOSTILE},
        stages=(replace(report.stages[0], name=HOSTILE),),
        deciles=replace(report.deciles, labels=(HOSTILE, *report.deciles.labels[1:])),
        weights={"metric": HOSTILE, "grid": [[0.0, 1.0]]},
    )  # fmt: skip


@pytest.mark.slow
def test_hostile_text_stays_text_everywhere():
    page = render(poisoned())
    checker = parse(page)
    assert checker.tags.count("script") == 1 and "img" not in checker.tags
    assert not [k for _, k, _ in checker.attributes if k.startswith("on")]
    assert "<script>alert" not in page
    # The hostile text is there to read, once for each place that shows it.
    assert "".join(checker.text).count("alert(1)") > 15


def test_every_arm_has_the_same_digits_on_the_page_in_markdown_and_in_json(page):
    report = sample()
    text, markdown = "".join(parse(page).text), render_markdown(report)
    again = Report.from_dict(report.to_dict())
    for arm in report.arms:
        assert arm.label in text and arm.label in markdown
        row = next(r for r in quality_table(again).rows if r.cells[0].text == arm.label)
        line = next(li for li in markdown.splitlines() if li.startswith(f"| {arm.label} ("))
        for cell in row.cells:
            assert cell.text in text and cell.text in line
        assert words.fixed(again.arm(arm.name).metrics["ndcg@10"].mean) in line


def test_cells_carry_what_to_sort_by(page):
    table = re.search(r'<table id="quality-table".*?</table>', page, re.S)[0]
    assert table.count("data-sort") > 14 * 5
    assert f'data-sort="{sample().arm("fusion").metrics["ndcg@10"].mean}"' in table


def test_the_best_value_is_marked_in_words_too(page):
    assert '<span class="sr">best </span>0.0968' in page


def test_undefined_values_are_dashes_and_never_nan(page):
    text = "".join(parse(page).text)
    assert "–" in text
    assert not re.search(r"\b(nan|NaN|None|inf)\b", text)


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes(page):
    assert render(sample()) == page


@pytest.mark.slow
def test_a_report_with_nothing_but_arms_is_a_page():
    checker = parse(render(bare()))
    assert checker.tags.count("section") == 4  # verdict, quality, frontier, reproduce


def test_both_themes_print_and_phones_are_styled(page):
    for rule in ("prefers-color-scheme: dark", '[data-theme="dark"]', "@media print", "max-width: 699px"):
        assert rule in page


def test_every_colour_of_a_drawing_is_defined_in_every_theme(page):
    css = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    blocks = [block for block in re.findall(r"\{[^{}]*--paper:[^{}]*\}", css)]
    assert len(blocks) == 4  # light, dark by preference, dark by choice, print
    for name in set(re.findall(r"var\((--[a-z]+)\)", page)):
        assert all(f"{name}:" in block for block in blocks), name


def test_numbers_and_units_do_not_part():
    assert prose("95 % of 3 ms for 4 sentences") == "95\u00a0% of 3\u00a0ms for 4 sentences"


def test_line_breaks_of_command_and_configuration_are_kept(page):
    shown = stdlib_html.unescape(
        re.search(r"<summary>Configuration</summary><pre><code>(.*?)</code>", page, re.S)[1]
    )
    assert shown == sample().config_yaml.strip()
