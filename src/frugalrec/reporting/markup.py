"""HTML for the report's building blocks: tables, figures, lists of facts, marks and interval drawings."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from frugalrec.reporting.document import Difference, Report
from frugalrec.reporting.plots import Plot
from frugalrec.reporting.tables import Cell, Column, Row, Table
from frugalrec.reporting.words import clean, defined

_SHAPES = {
    "cheap": '<circle cx="6" cy="6" r="4.5"/>',
    "llm": '<rect x="1.75" y="1.75" width="8.5" height="8.5"/>',
    "fusion": '<path d="M6 .5 11.5 6 6 11.5.5 6z"/>',
    "control": '<path d="M2 2 10 10M10 2 2 10" stroke="currentColor" stroke-width="2.6"/>',
}
_HALF = 60.0
"""Half the width of an interval drawing, in its own units."""


def escape(text: object) -> str:
    """Return `text` as inert HTML on one line."""
    return html.escape(clean(text), quote=True)


def prose(text: object) -> str:
    """Return `text` as `escape` does, with numbers and their units kept on one line."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|min|h|USD|EUR)(?!\w))", "\u00a0", escape(text))


def kind_mark(kind: str) -> str:
    """Return the small mark of a kind of arm; its name is always written beside it."""
    opening = f'<svg class="k-{kind}" viewBox="0 0 12 12" fill="currentColor" aria-hidden="true">'
    return f"{opening}{_SHAPES[kind]}</svg>"


def facts_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Return titles and values as a description list."""
    return (
        '<dl class="facts">'
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
        + "</dl>"
    )


def figure(plot: Plot, *, below: str = "", above: str = "", half: bool = False) -> str:
    """Return a drawing in both widths, its words, and what stands around it."""
    return (
        f'<figure id="{plot.key}"{" class=half" if half else ""}>{above}{plot.wide}{plot.narrow}'
        f"<figcaption>{escape(plot.description)}</figcaption></figure>{below}"
    )


def folded(summary: str, content: str) -> str:
    """Return content that the reader opens."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def whisker_scale(report: Report) -> float:
    """Return the difference at the end of the interval drawings.

    The scale fits the LLM arms; a control far below would otherwise flatten everything that matters.
    """
    found = [
        difference
        for arm in report.arms
        if arm.kind in ("llm", "fusion") and not arm.oracle
        if (difference := (arm.difference or {}).get(report.primary)) is not None and difference.known
    ]
    best = max(found, key=lambda difference: difference.mean, default=None)
    return 2.5 * max(abs(best.low), abs(best.high), 1e-9) if best else 0.0


def draw_table(table: Table, *, scale: float = 0.0, sortable: bool = False) -> str:
    """Return a table in a container of its own that scrolls sideways.

    Args:
        table: What to draw.
        scale: The difference at the end of the interval drawings; 0 draws none.
        sortable: Whether the page's script may let the reader sort.
    """
    heads = "".join(_head(column) for column in table.columns)
    body = "\n".join(_row(table, row, scale) for row in table.rows)
    css = _classes(sortable=sortable, full=len(table.columns) > 5)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(table.caption)}" tabindex="0">'
        f'<table id="{table.key}-table"{css} aria-describedby="{table.key}-caption">'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        f'<p class="caption" id="{table.key}-caption">{prose(table.caption)}</p>'
    )


def _classes(**wanted: bool) -> str:
    """Return the class attribute with the names that are true, or nothing."""
    names = " ".join(name for name, is_wanted in wanted.items() if is_wanted)
    return f' class="{names}"' if names else ""


def _head(column: Column) -> str:
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    return f'<th scope="col"{_classes(number=column.numeric)}{hint}>{escape(column.title)}</th>'


def _row(table: Table, row: Row, scale: float) -> str:
    cells = [_first(row)]
    for column, cell in zip(table.columns[1:], row.cells[1:], strict=True):
        css = _classes(number=column.numeric, best=cell.best, zero=cell.text == "0")
        inside = _whisker(cell.whisker, scale, row.kind) + _inside(cell)
        cells.append(f"<td{css}{_sort(cell)}>{inside}</td>")
    css = f' class="{row.mark}"' if row.mark else ""
    return f"<tr{css}>{''.join(cells)}</tr>"


def _first(row: Row) -> str:
    cell = row.cells[0]
    inside = _inside(cell)
    if row.kind:
        inside = f'<span class="arm">{kind_mark(row.kind)}<span>{inside}</span></span>'
    return f'<th scope="row"{_sort(cell)}>{inside}</th>'


def _inside(cell: Cell) -> str:
    star = '<span class="star" aria-hidden="true">★</span><span class="sr">best </span>' if cell.best else ""
    note = f'<span class="note">{escape(cell.note)}</span>' if cell.note else ""
    return f"{star}{escape(cell.text)}{note}"


def _sort(cell: Cell) -> str:
    if cell.sort is None or (isinstance(cell.sort, float) and not defined(cell.sort)):
        return ""
    return f' data-sort="{escape(cell.sort)}"'


def _whisker(difference: Difference | None, scale: float, kind: str) -> str:
    """Return a small drawing of an interval around zero; ends beyond the scale are cut at the edge."""
    if difference is None or not scale:
        return ""
    low, mean, high = (
        max(-_HALF, min(_HALF, value / scale * _HALF))
        for value in (difference.low, difference.mean, difference.high)
    )
    dot = f'<circle class="dot" cx="{mean:.1f}" cy="8" r="3"/>' if abs(mean) < _HALF else ""
    if mean <= -_HALF:
        dot = f'<path class="dot" d="M{-_HALF} 8l6-3.5v7z"/>'
    if mean >= _HALF:
        dot = f'<path class="dot" d="M{_HALF} 8l-6-3.5v7z"/>'
    return (
        f'<svg class="whisker k-{kind}" viewBox="{-_HALF - 2} 0 {2 * _HALF + 4} 16" aria-hidden="true">'
        f'<line class="zero" x1="0" x2="0" y1="0" y2="16"/>'
        f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8"/>{dot}</svg>'
    )
