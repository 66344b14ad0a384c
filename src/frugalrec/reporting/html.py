"""The report as one HTML file: no request, no dependency, light and dark, screen, phone and paper.

A content security policy forbids every request and every script but the page's own, named by its hash;
all text from data is escaped besides. Without scripts the page loses sorting and the theme button only.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from frugalrec.reporting.document import Report
from frugalrec.reporting.markup import escape
from frugalrec.reporting.sections import headline, page_sections
from frugalrec.reporting.words import clean, count


def render(report: Report) -> str:
    """Return the whole page; the same report gives the same bytes."""
    css, script = _asset("report.css"), _asset("report.js")
    sections = page_sections(report)
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{title}</h2>\n'
        f"{content}</section>"
        for key, title, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(report.title)} – frugalrec</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f'<div class="page">\n{_masthead(report)}\n<main>\n{headline(report)}\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n{body}\n</main>\n{_footer(report)}\n</div>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _policy(script: str) -> str:
    """Return a policy under which nothing loads and only `script` runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _masthead(report: Report) -> str:
    facts = report.dataset
    sizes = (
        ("users", facts.get("users")),
        ("items", facts.get("items")),
        ("interactions", facts.get("interactions")),
    )
    parts = [clean(facts.get("name", ""))]
    parts += [f"{count(size)} {name}" for name, size in sizes if size is not None]
    parts.append(report.created[:10])
    line = " · ".join(escape(part) for part in parts if part)
    return (
        f'<header class="masthead"><div><h1>{escape(report.title)}</h1><p class="small">{line}</p></div>'
        f'<button type="button" id="theme" hidden>Dark</button></header>'
    )


def _footer(report: Report) -> str:
    program = f"frugalrec {report.versions.get('frugalrec', '')}"
    return (
        f'<footer class="small"><p>Written by {escape(program)} on {escape(report.created)}. '
        f"The same content lies beside this page as report.md and report.json.</p></footer>"
    )


def _asset(name: str) -> str:
    return files("frugalrec.reporting").joinpath(name).read_text(encoding="utf-8")
