"""What the report shows of the selection: how it chose, which rows, and what that cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from frugalrec.reporting import words
from frugalrec.reporting.document import Report
from frugalrec.reporting.facts import PartCost, SelectionFacts
from frugalrec.reporting.tables import Cell, Column, Row, Table

PARTS = {
    "surrogate": "Training the surrogate",
    "rest": "Rest of the selection",
    "choosing": "Choosing",
    "tuning": "Tuning on the kept samples",
}
"""Names of costs; other parts are scores, and called by their names."""


def selection_facts(report: Report) -> list[tuple[str, str]]:
    """Return how samples were chosen, as pairs of title and value."""
    facts = report.selection or {}
    options = ", ".join(f"{name}={value}" for name, value in (facts.get("options") or {}).items())
    pairs = [
        ("Scorer", words.clean(facts.get("scorer", words.DASH))),
        (
            "Prefers",
            words.clean(facts.get("prefers", words.DASH)) or "nothing: every row has the same chance",
        ),
        ("Options", words.clean(options) or "defaults" if "options" in facts else words.DASH),
        ("Candidate samples", words.count(facts.get("candidates"))),
        ("Budget", words.count(facts.get("budget"))),
        ("Kept", _of(facts.get("kept"), facts.get("candidates"))),
        ("Without a score", _undefined(facts)),
        ("Negative influence", _negative(facts)),
        ("Seed", words.clean(facts.get("seed", words.DASH))),
    ]
    return [pair for pair in pairs if pair[1] != words.DASH]


def length_table(report: Report) -> Table | None:
    """Return how long the histories of kept and of all samples are."""
    lengths = (report.selection or {}).get("lengths")
    if not lengths:
        return None
    edges = lengths["edges"]
    titles = ("All samples", "Kept samples")
    columns = (Column(title="History length", numeric=False), *(Column(title=title) for title in titles))
    rows = []
    for i, (everything, kept) in enumerate(zip(lengths["all"], lengths["kept"], strict=True)):
        span = f"{words.plain(edges[i])} to {words.plain(edges[i + 1])}"
        counts = (
            Cell(text=words.count(everything), sort=everything),
            Cell(text=words.count(kept), sort=kept),
        )
        rows.append(Row(cells=(Cell(text=span, sort=edges[i]), *counts)))
    caption = "Samples by history length; a span leaves out its upper end."
    return Table(key="lengths", caption=caption, columns=columns, rows=tuple(rows))


def decile_table(report: Report) -> Table | None:
    """Return the share of kept samples in each tenth of the scores."""
    deciles = (report.selection or {}).get("deciles")
    if not deciles:
        return None
    columns = (Column(title="Tenth of the scores", numeric=False), Column(title="Of the kept samples"))
    rows = tuple(
        Row(cells=(Cell(text=_tenth(i), sort=float(i)), Cell(text=words.percent(share), sort=share)))
        for i, share in enumerate(deciles)
    )
    caption = "Kept samples by tenth of the scores of all samples that have one. By chance, each holds 10 %."
    return Table(key="kept-deciles", caption=caption, columns=columns, rows=rows)


def example_table(report: Report) -> Table | None:
    """Return some of the kept samples, and some that were left out."""
    facts = report.selection or {}
    kept, left_out = facts.get("examples") or [], facts.get("left_out") or []
    shown = [*kept, *left_out]
    if not shown:
        return None
    keys = list(dict.fromkeys(key for row in shown for key in row))
    values = {key: [row.get(key) for row in shown] for key in keys}
    columns = tuple(
        Column(title=words.metric_name(key), numeric=all(map(_is_number, values[key]))) for key in keys
    )
    cells = [[_cell(value, _decimals(column)) for value in column] for column in values.values()]
    cells[0] = [
        replace(cell, note="left out") if number >= len(kept) else cell
        for number, cell in enumerate(cells[0])
    ]
    rows = tuple(Row(cells=row) for row in zip(*cells, strict=True))
    caption = "Some of the kept samples."
    if left_out:
        caption = "Some of the kept samples and, marked, some that were left out."
        if "score" in keys:
            caption = "The highest scores that were kept and, marked, the highest and lowest that were not."
    return Table(key="kept", caption=caption, columns=columns, rows=rows)


def cost_table(report: Report) -> Table | None:
    """Return what choosing and tuning cost, beside tuning on all candidates."""
    facts = report.selection or {}
    cost = facts.get("cost")
    if not cost or not cost.get("parts"):
        return None
    full = cost.get("full")
    titles = ["Wall time", "LLM tokens", *(["Share of time", "Share of tokens"] if full else [])]
    columns = (Column(title="Part", numeric=False), *(Column(title=title) for title in titles))
    rows = [_cost_row(_part_name(part["name"]), part, full) for part in cost["parts"]]
    rows.append(_cost_row("Together", cost["together"], full, mark="total"))
    caption = "Seconds and LLM tokens of choosing; nothing was tuned."
    if full:
        name = f"Tuning on all {words.count(facts.get('candidates'))} samples"
        rows.append(_cost_row(name, full, full, note="estimate"))
        caption = (
            f"Choosing and tuning took {words.percent(cost.get('time_ratio'))} of the time and "
            f"{words.percent(cost.get('token_ratio'))} of the tokens of tuning on all samples, to which all "
            f"shares refer. That is an estimate: what tuning took, and for each further sample what one took "
            f"in this run ({_further(cost['further'])})."
        )
    return Table(key="cost", caption=caption, columns=columns, rows=tuple(rows))


def _cost_row(name: str, part: PartCost, full: PartCost | None, *, note: str = "", mark: str = "") -> Row:
    cells = [Cell(text=name, note=note), Cell(text=words.duration(part["wall_s"]), sort=part["wall_s"])]
    cells.append(Cell(text=words.count(part["tokens"]), sort=part["tokens"]))
    if full:
        shares = (part["wall_s"] / full["wall_s"], part["tokens"] / full["tokens"])
        cells += [Cell(text=words.percent(share), sort=share) for share in shares]
    return Row(cells=tuple(cells), mark=mark)


def _part_name(name: str) -> str:
    return PARTS.get(name, f"Scoring: {words.clean(name)}")


def _further(one: PartCost) -> str:
    return f"{words.duration(one['wall_s'])}, {words.count(one['tokens'])} tokens"


def _of(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return words.count(part)
    return f"{words.count(part)} ({words.percent(part / whole)})"


def _undefined(facts: SelectionFacts) -> str:
    """Return how many rows have no score, and how many of them were kept, if there are any."""
    undefined, kept = facts.get("undefined"), facts.get("kept_undefined", 0)
    if not undefined:
        return words.DASH
    return f"{_of(undefined, facts.get('candidates'))}, {words.count(kept) if kept else 'none'} of them kept"


def _negative(facts: SelectionFacts) -> str:
    shares = (facts.get("negative_influence_kept"), facts.get("negative_influence_all"))
    if not any(words.defined(share) for share in shares):
        return words.DASH
    return f"{words.percent(shares[0])} of the kept, {words.percent(shares[1])} of all"


def _tenth(number: int) -> str:
    return f"{number + 1}{', the lowest' if number == 0 else ', the highest' if number == 9 else ''}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _decimals(column: list[Any]) -> int | None:
    """Return with how many decimals the largest number has four digits; None where that is too many."""
    sizes = [abs(value) for value in column if isinstance(value, float) and words.defined(value) and value]
    needed = 3 - math.floor(math.log10(max(sizes))) if sizes else 0
    return max(needed, 0) if needed <= 6 else None


def _cell(value: Any, decimals: int | None) -> Cell:
    if value is None or (isinstance(value, float) and not words.defined(value)):
        return Cell(text=words.DASH)
    if isinstance(value, float):
        return Cell(
            text=words.digits(value) if decimals is None else words.fixed(value, decimals), sort=value
        )
    if isinstance(value, list | tuple):
        return Cell(text=words.clean("; ".join(str(part) for part in value)))
    return Cell(text=words.clean(value), sort=value if isinstance(value, int) else words.clean(value))
