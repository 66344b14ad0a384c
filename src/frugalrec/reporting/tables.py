"""Every table of the report, built once and drawn as HTML, Markdown or terminal text.

A `Table` holds formatted text and the numbers to sort by; the formats differ only in how they draw it,
so the same digits appear everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from frugalrec.reporting import words
from frugalrec.reporting.document import Arm, Difference, Interval, Report
from frugalrec.reporting.judge import primary

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its text, a smaller second line, and what to sort by."""

    text: str
    note: str = ""
    sort: float | str | None = None
    best: bool = False
    whisker: Difference | None = None
    """A difference to draw as a small interval plot, where the format can draw."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; `hint` explains it."""

    title: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row; `kind` is the kind of arm it shows, if any."""

    cells: tuple[Cell, ...]
    kind: str = ""
    mark: str = ""
    """``"reference"``, ``"total"``, ``"chosen"`` or nothing."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption that can stand alone."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def quality_table(report: Report) -> Table:
    """Return every arm with quality, difference to the reference and cost, best first.

    Cost stands right beside the primary metric, so that no number of further metrics hides it.
    """
    metrics = metric_names(report)
    best = {metric: _best(report, metric) for metric in metrics}
    money = any(words.defined(arm.cost.money_per_1000_users) for arm in report.arms)
    columns = [Column(title="Arm", numeric=False), Column(title=words.metric_name(report.primary))]
    columns.append(Column(title="Difference", hint="paired, to the reference; below: interval and p value"))
    columns += [Column(title="ms / user"), Column(title="Tokens / user"), Column(title="Fit, once")]
    if money:
        columns.append(Column(title=f"{report.currency or 'Money'} / 1,000 users"))
    columns += [Column(title=words.metric_name(metric)) for metric in metrics[1:]]
    rows = []
    for arm in ranked(report):
        cells = [_arm_cell(report, arm), _metric_cell(arm, report.primary, best)]
        cells.append(_difference_cell(report, arm))
        cells += _cost_cells(arm, money)
        cells += [_metric_cell(arm, metric, best) for metric in metrics[1:]]
        mark = "reference" if arm.name == report.reference else ""
        rows.append(Row(cells=tuple(cells), kind=arm.kind, mark=mark))
    caption = (
        f"Means over users; the second line of a cell is the {words.level(report.confidence)} interval. "
        f"★ marks the best value of a metric, oracles left out. ms: milliseconds."
    )
    return Table(key="quality", caption=caption, columns=tuple(columns), rows=tuple(rows))


def metric_names(report: Report) -> list[str]:
    """Return every metric of any arm, the primary one first."""
    return list(dict.fromkeys([report.primary, *(metric for arm in report.arms for metric in arm.metrics)]))


def ranked(report: Report) -> list[Arm]:
    """Return the arms, best primary metric first; undefined ones last, ties in the given order."""
    values = {arm.name: primary(report, arm) for arm in report.arms}
    return sorted(
        report.arms,
        key=lambda arm: -value if (value := values[arm.name]) is not None and words.defined(value) else 9e9,
    )


def terminal_table(report: Report) -> RichTable:
    """Return one line an arm for the terminal; 80 columns hold names of up to 20 characters.

    It keeps the primary metric, the difference to the reference with its interval, and the cost of a
    user; the report itself holds the rest.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("Arm", overflow="fold")
    level = words.level(report.confidence)
    for title in (words.metric_name(report.primary), "Difference", f"{level} interval", "ms/user", "Tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    best = {report.primary: _best(report, report.primary)}
    for arm in ranked(report):
        value, gap = _metric_cell(arm, report.primary, best), _difference_cell(report, arm)
        cost = [words.short(arm.cost.ms_per_user), words.short(arm.cost.tokens_per_user)]
        texts = [
            words.clean(arm.label),
            ("★ " if value.best else "") + value.text,
            gap.text,
            _ends(gap),
            *cost,
        ]
        style = "bold" if value.best else "dim" if arm.kind == "control" else ""
        table.add_row(*(Text(text, style=style) for text in texts))
    return table


def _ends(cell: Cell) -> str:
    """Return the interval of a difference without its p value."""
    gap = cell.whisker
    return "" if gap is None else f"{words.signed(gap.low)} to {words.signed(gap.high)}"


def _arm_cell(report: Report, arm: Arm) -> Cell:
    tags = [words.kind_name(arm.kind)]
    tags += ["reference"] if arm.name == report.reference else []
    tags += ["oracle"] if arm.oracle else []
    label = words.clean(arm.label)
    return Cell(text=label, note=", ".join(tags), sort=label)


def interval_cell(interval: Interval | None, *, best: bool = False) -> Cell:
    """Return a mean with its interval below."""
    if interval is None or not words.defined(interval.mean):
        return Cell(text=words.DASH)
    ends = words.defined(interval.low) and words.defined(interval.high)
    note = f"{words.fixed(interval.low)} to {words.fixed(interval.high)}" if ends else ""
    return Cell(text=words.fixed(interval.mean), note=note, sort=interval.mean, best=best)


def _metric_cell(arm: Arm, metric: str, best: dict[str, float | None]) -> Cell:
    interval = arm.metrics.get(metric)
    return interval_cell(
        interval, best=interval is not None and not arm.oracle and interval.mean == best[metric]
    )


def _difference_cell(report: Report, arm: Arm) -> Cell:
    if arm.name == report.reference:
        return Cell(text="reference", sort=0.0)
    found = (arm.difference or {}).get(report.primary)
    if found is None or not words.defined(found.mean):
        return Cell(text=words.DASH)
    note = f"{words.signed(found.low)} to {words.signed(found.high)}" if found.known else ""
    if words.defined(found.p):
        p = words.p_value(found.p)
        note += f"{', ' if note else ''}p {p if p[0] == '<' else '= ' + p}"
    return Cell(
        text=words.signed(found.mean), note=note, sort=found.mean, whisker=found if found.known else None
    )


def _cost_cells(arm: Arm, money: bool) -> list[Cell]:
    cost = arm.cost
    cells = [
        Cell(text=words.short(cost.ms_per_user), sort=cost.ms_per_user),
        Cell(text=words.short(cost.tokens_per_user), sort=cost.tokens_per_user),
        Cell(text=words.duration(cost.fit_s), sort=cost.fit_s),
    ]
    if money:
        cells.append(Cell(text=words.short(cost.money_per_1000_users), sort=cost.money_per_1000_users))
    return cells


def _best(report: Report, metric: str) -> float | None:
    """Return the largest mean; figures without an interval, such as coverage, have no best."""
    found = [arm.metrics[metric] for arm in report.arms if metric in arm.metrics and not arm.oracle]
    return max((interval.mean for interval in found if interval.known), default=None)
