"""The page's sections: each function returns the HTML of one, or nothing where the run has no such part."""

from __future__ import annotations

import html

from frugalrec.reporting import details, plots, routing, samples, words
from frugalrec.reporting.document import Report
from frugalrec.reporting.frontier import quality_cost
from frugalrec.reporting.judge import verdict
from frugalrec.reporting.markup import (
    draw_table,
    escape,
    facts_list,
    figure,
    folded,
    kind_mark,
    prose,
    whisker_scale,
)
from frugalrec.reporting.tables import Table, quality_table, ranked


def page_sections(report: Report) -> list[tuple[str, str, str]]:
    """Return the sections that this run has, as anchor, title and HTML."""
    candidates = [
        ("quality", "Quality and cost of every arm", quality(report)),
        ("frontier", "Quality against cost", frontier(report)),
        ("allocation", "Who should get the LLM", allocation(report)),
        ("caveats", "Read with care", caveats(report)),
        ("activity", "Active and inactive users", activity(report)),
        ("warmth", "Cold and warm items", _table(details.warmth_table(report))),
        ("audit", "Audit of the data", audit(report)),
        ("samples", "Samples kept for tuning", chosen_samples(report)),
        ("tuning", "Tuning", tuning(report)),
        ("weights", "Fusion weight", _table(details.weight_table(report))),
        ("stages", "Cost by stage", stages(report)),
        ("reproduce", "How to repeat this run", reproduce(report)),
    ]
    return [(key, title, content) for key, title, content in candidates if content]


def headline(report: Report) -> str:
    """Return the verdict and the figures to remember."""
    sentences = report.verdict or verdict(report)
    first = sentences[0] if sentences else "No verdict."
    figures = "".join(
        f'<div><dt>{escape(title)}</dt><dd><span class="value">{escape(value)}</span>'
        f'<div class="beside">{escape(beside)}</div></dd></div>'
        for title, value, beside in details.key_figures(report)
    )
    strip = f'<dl class="figures">{figures}</dl>' if figures else ""
    rest = "".join(f"<p>{prose(sentence)}</p>" for sentence in sentences[1:])
    opening = f'<section id="verdict" aria-label="Verdict"><p class="headline">{escape(first)}</p>'
    return f"{opening}{strip}{rest}</section>"


def quality(report: Report) -> str:
    """Return the table of all arms and what each arm is."""
    table = draw_table(quality_table(report), scale=whisker_scale(report), sortable=True)
    described = "".join(
        f"<dt>{escape(arm.label)}</dt><dd>{escape(arm.description)}</dd>"
        for arm in ranked(report)
        if arm.description
    )
    return table + (folded("What each arm is", f'<dl class="arms">{described}</dl>') if described else "")


def frontier(report: Report) -> str:
    """Return the drawing of quality against cost, with a key to its marks."""
    plot = quality_cost(report)
    if plot is None:
        return ""
    kinds = [kind for kind in plots.MARKERS if any(arm.kind == kind for arm in report.arms)]
    items = "".join(f"<li>{kind_mark(kind)}{escape(words.kind_name(kind))}</li>" for kind in kinds)
    below = '<p class="small"><a href="#quality">The table above</a> holds the numbers.</p>'
    return figure(plot, above=f'<ul class="legend">{items}</ul>', below=below)


def allocation(report: Report) -> str:
    """Return who gets the LLM, on what evidence, and what other rules would have been worth."""
    if not report.allocation:
        return ""
    sentences = "".join(f"<p>{prose(text)}</p>" for text in report.allocation.get("decision", ()))
    parts = [sentences, facts_list(routing.allocation_facts(report))]
    plot, table = routing.policy_curves(report), routing.policy_table(report)
    parts.append(figure(plot) if plot else "")
    parts.append(_table(table))
    folds = (
        ("Who was routed, by activity", routing.group_table(report)),
        ("What the expected gain is read from", routing.signal_table(report)),
    )
    parts += [folded(title, draw_table(held)) for title, held in folds if held]
    bias, places = routing.place_bias(report), routing.place_table(report)
    if bias:
        below = folded("The numbers behind the drawing", _table(places))
        parts.append(figure(bias, half=True, below=below))
    return "".join(parts)


def caveats(report: Report) -> str:
    """Return what limits the conclusions."""
    return (
        "<ul>" + "".join(f"<li>{prose(note)}</li>" for note in report.notes) + "</ul>" if report.notes else ""
    )


def activity(report: Report) -> str:
    """Return the metric by activity group."""
    plot, table = plots.deciles(report), details.decile_table(report)
    drawn = figure(plot) if plot else ""
    return drawn + (
        folded("The numbers behind the drawing", draw_table(table)) if table and plot else _table(table)
    )


def audit(report: Report) -> str:
    """Return the findings of the audit, errors first."""
    items = []
    for finding in details.findings(report):
        severity = finding.get("severity", "info")
        css = severity if severity in ("error", "warning") else "info"
        found = details.finding_amount(finding)
        amount = f' <span class="small">{escape(found)}</span>' if found else ""
        examples = "".join(f"<li>{escape(example)}</li>" for example in finding.get("examples", ()))
        remedy = (
            f"<p><strong>Remedy:</strong> {escape(finding['remedy'])}</p>" if finding.get("remedy") else ""
        )
        items.append(
            f'<li><h3><span class="severity {css}">{escape(severity.capitalize())}:</span>'
            f"{escape(finding.get('name', ''))}</h3>"
            f"<p>{escape(finding.get('message', ''))}{amount}</p>"
            f"{remedy}{f'<ul>{examples}</ul>' if examples else ''}</li>"
        )
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def chosen_samples(report: Report) -> str:
    """Return how the training samples were chosen, which they are, and what that cost."""
    if not report.selection:
        return ""
    parts = [facts_list(samples.selection_facts(report))]
    for plot, table in (
        (plots.kept_deciles(report), samples.decile_table(report)),
        (plots.lengths(report), samples.length_table(report)),
    ):
        if plot:
            below = folded("The numbers behind the drawing", _table(table))
            parts.append(figure(plot, half=True, below=below))
    for title, table in (
        ("Some samples", samples.example_table(report)),
        ("Cost of choosing and tuning", samples.cost_table(report)),
    ):
        parts.append(f"<h3>{title}</h3>{draw_table(table)}" if table else "")
    return "".join(parts)


def tuning(report: Report) -> str:
    """Return how the LLM was tuned."""
    if not report.tuning:
        return ""
    plot, table = plots.loss(report), details.loss_table(report)
    drawn = (
        figure(plot, half=True, below=folded("The numbers behind the drawing", _table(table))) if plot else ""
    )
    return facts_list(details.tuning_facts(report)) + drawn


def stages(report: Report) -> str:
    """Return what each stage spent."""
    plot, table = plots.stages(report), details.stage_table(report)
    return _table(table) + (figure(plot, half=True) if plot else "")


def reproduce(report: Report) -> str:
    """Return all it takes to run this again."""
    parts = [f"<p>The command:</p><pre><code>{_verbatim(report.command)}</code></pre>"]
    parts.append(facts_list(details.dataset_facts(report)))
    for title, pairs in details.provenance(report):
        parts.append(f"<h3>{escape(title)}</h3>{facts_list(pairs)}")
    if report.config_yaml:
        parts.append(folded("Configuration", f"<pre><code>{_verbatim(report.config_yaml)}</code></pre>"))
    return "".join(parts)


def _table(table: Table | None) -> str:
    return draw_table(table) if table else ""


def _verbatim(text: str) -> str:
    """Return text with its line breaks."""
    return "\n".join(html.escape(line.rstrip()) for line in text.strip("\n").split("\n")).replace("\x00", "")
