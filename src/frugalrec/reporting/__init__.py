"""Quality against cost, for people: one offline HTML page, Markdown, JSON and a terminal table."""

from frugalrec.reporting.document import Report
from frugalrec.reporting.files import write
from frugalrec.reporting.html import render
from frugalrec.reporting.judge import verdict
from frugalrec.reporting.markdown import render_markdown
from frugalrec.reporting.tables import terminal_table

__all__ = ["Report", "render", "render_markdown", "terminal_table", "verdict", "write"]
