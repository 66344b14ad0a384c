"""The report as Markdown: the same sections, tables and digits as the page, without drawings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from frugalrec.reporting import details, routing, samples
from frugalrec.reporting.document import Report
from frugalrec.reporting.judge import verdict
from frugalrec.reporting.tables import Cell, Table, quality_table, ranked
from frugalrec.reporting.words import DASH, clean


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown; the same report gives the same bytes."""
    sentences = report.verdict or verdict(report)
    blocks = [f"# {_text(report.title)}", f"**{_text(sentences[0])}**" if sentences else ""]
    blocks += [_text(sentence) for sentence in sentences[1:]]
    described = [
        f"- **{_text(arm.label)}:** {_text(arm.description)}" for arm in ranked(report) if arm.description
    ]
    selection = _facts(samples.selection_facts(report)) if report.selection else ""
    chosen = (samples.decile_table, samples.length_table, samples.example_table, samples.cost_table)
    tuning = _facts(details.tuning_facts(report)) if report.tuning else ""
    sections = [
        ("Quality and cost of every arm", [_table(quality_table(report)), "\n".join(described)]),
        ("Who should get the LLM", _allocation(report)),
        ("Read with care", ["\n".join(f"- {_text(note)}" for note in report.notes)]),
        ("Active and inactive users", [_table(details.decile_table(report))]),
        ("Cold and warm items", [_table(details.warmth_table(report))]),
        ("Audit of the data", [_audit(report)]),
        ("Samples kept for tuning", [selection, *(_table(make(report)) for make in chosen)]),
        ("Tuning", [tuning, _table(details.loss_table(report))]),
        ("Fusion weight", [_table(details.weight_table(report))]),
        ("Cost by stage", [_table(details.stage_table(report))]),
        ("How to repeat this run", _reproduce(report)),
    ]
    for title, parts in sections:
        if any(parts):
            blocks += [f"## {title}", *parts]
    program = f"frugalrec {report.versions.get('frugalrec', '')}"
    blocks.append(f"Written by {_text(program)} on {_text(report.created)}.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _allocation(report: Report) -> list[str]:
    if not report.allocation:
        return []
    tables = (routing.policy_table, routing.group_table, routing.signal_table, routing.place_table)
    sentences = [_text(sentence) for sentence in report.allocation.get("decision", ())]
    facts = _facts(routing.allocation_facts(report))
    return [*sentences, facts, *(_table(make(report)) for make in tables)]


def _text(text: object) -> str:
    """Return `text` with everything escaped that Markdown or HTML would read as markup."""
    plain = re.sub(r"([\\`*\[\]|~$])", r"\\\1", clean(text)).replace("&", "&amp;").replace("<", "&lt;")
    plain = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", plain)
    return re.sub(r"^([#>+-]|\d+[.)])(?=\s)", r"\\\1", plain)


def _cell(cell: Cell) -> str:
    text = f"**{_text(cell.text)}** ★" if cell.best else _text(cell.text)
    return f"{text} ({_text(cell.note)})" if cell.note else text


def _table(table: Table | None) -> str:
    if table is None:
        return ""
    heads = [_text(column.title) for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_cell(cell) for cell in row.cells] for row in table.rows]
    lines = [heads, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_text(table.caption)}"


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_text(title)}: {_text(value)}" for title, value in pairs)


def _audit(report: Report) -> str:
    lines = []
    for finding in details.findings(report):
        amount = details.finding_amount(finding)
        title = f"{finding.get('severity', 'info').capitalize()}: {finding.get('name', DASH)}"
        lines.append(
            f"- **{_text(title)}.** "
            f"{_text(finding.get('message', ''))}{f' ({_text(amount)})' if amount else ''}"
        )
        if finding.get("remedy"):
            lines.append(f"  - Remedy: {_text(finding['remedy'])}")
        lines += [f"  - Example: {_text(example)}" for example in finding.get("examples", ())]
    return "\n".join(lines)


def _reproduce(report: Report) -> list[str]:
    parts = [_code(report.command, "sh"), _facts(details.dataset_facts(report))]
    parts += [f"### {title}\n\n{_facts(pairs)}" for title, pairs in details.provenance(report)]
    if report.config_yaml:
        parts.append(f"### Configuration\n\n{_code(report.config_yaml, 'yaml')}")
    return parts


def _code(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"
