from sample import sample

from frugalrec.reporting import render_markdown
from frugalrec.reporting.document import Arm, ArmCost, Difference, Interval, Report

GOLDEN = """\
# Small

**No proven gain: keep the cheap model, Markov.**

Tuned reaches NDCG@10 0.2100; Markov reaches 0.2000. The paired difference over 50 users is +0.0100, +5.0 % of \
the reference; its 95 % interval, −0.0100 to +0.0300, includes zero.

It costs 50.0 ms (reference: 0.50 ms) and 100 LLM tokens per user; fitting takes 2 min 00 s once (reference: 1.0 s).

The best cheap model is Markov, which is also the reference: NDCG@10 0.2000 (95 % interval 0.1500 to 0.2500).

No control was run, so part of any gain may come from something other than the model.

## Quality and cost of every arm

| Arm | NDCG@10 | Difference | ms / user | Tokens / user | Fit, once |
| --- | ---: | ---: | ---: | ---: | ---: |
| Tuned (LLM) | **0.2100** ★ (0.1600 to 0.2600) | +0.0100 (−0.0100 to +0.0300, p = 0.300) | 50.0 | 100 | 2 min 00 s |
| Markov (cheap model, reference) | 0.2000 (0.1500 to 0.2500) | reference | 0.50 | – | 1.0 s |

Means over users; the second line of a cell is the 95 % interval. ★ marks the best value of a metric, oracles left \
out. ms: milliseconds.

- **Tuned:** All layers, rank 8.

## How to repeat this run

```sh
frugalrec run
```

- Data set: toy
- Users: 50

### Seeds

- split: 0

Written by frugalrec 0.1.0 on 2026-11-20.
"""


def small(**changes):
    values = dict(
        title="Small",
        created="2026-11-20",
        command="frugalrec run",
        dataset={"name": "toy", "users": 50},
        primary="ndcg@10",
        reference="markov",
        arms=(
            Arm(name="markov", label="Markov", kind="cheap", users=50, metrics={"ndcg@10": Interval(0.2, 0.15, 0.25)},
                cost=ArmCost(fit_s=1.0, ms_per_user=0.5)),
            Arm(name="tuned", label="Tuned", kind="llm", users=50, description="All layers, rank 8.",
                metrics={"ndcg@10": Interval(0.21, 0.16, 0.26)},
                difference={"ndcg@10": Difference(0.01, -0.01, 0.03, 0.3)},
                cost=ArmCost(fit_s=120.0, ms_per_user=50.0, tokens_per_user=100.0)),
        ),
        seeds={"split": 0},
    )  # fmt: skip
    return Report(**{**values, **changes})


def test_a_small_report_reads_as_written_here():
    text = render_markdown(small(versions={}))
    assert text == GOLDEN.replace("frugalrec 0.1.0 on", "frugalrec on")


def test_every_section_of_the_full_report_is_there():
    headings = [line[3:] for line in render_markdown(sample()).splitlines() if line.startswith("## ")]
    assert headings == [
        "Quality and cost of every arm",
        "Who should get the LLM",
        "Read with care",
        "Active and inactive users",
        "Cold and warm items",
        "Audit of the data",
        "Samples kept for tuning",
        "Tuning",
        "Fusion weight",
        "Cost by stage",
        "How to repeat this run",
    ]


def test_every_table_row_has_as_many_cells_as_its_head():
    width = None
    for line in render_markdown(sample()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = line.replace(r"\|", "").count("|")
        assert width in (None, cells)
        width = cells


def test_markup_in_data_is_text():
    text = render_markdown(small(title="# <b>*x*</b> [a](b) | `c` _d_ snake_case"))
    assert text.splitlines()[0] == r"# \# &lt;b>\*x\*&lt;/b> \[a\](b) \| \`c\` \_d\_ snake_case"


def test_a_line_break_cannot_start_a_heading():
    assert "\n# Fake" not in render_markdown(small(title="Real\n# Fake", notes=("a\n\n# Fake",)))


def test_backticks_do_not_end_a_code_block():
    text = render_markdown(small(config_yaml="a: ```\n# Fake\n```\n"))
    assert "````yaml\na: ```\n# Fake\n```\n````" in text


def test_the_same_report_gives_the_same_bytes():
    assert render_markdown(sample()) == render_markdown(sample())
