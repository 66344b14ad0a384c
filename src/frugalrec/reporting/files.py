"""Writes the report's three files, each whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from frugalrec.errors import StorageError
from frugalrec.reporting.document import Report
from frugalrec.reporting.html import render
from frugalrec.reporting.judge import verdict
from frugalrec.reporting.markdown import render_markdown


def write(report: Report, folder: Path) -> tuple[Path, Path, Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` into `folder`.

    Each file is written under another name and then renamed, so that a reader never sees half of one.
    A report without a verdict gets the derived one, the same in all three.

    Returns:
        The paths, in that order.

    Raises:
        StorageError: If a file cannot be written.
    """
    report = replace(report, verdict=report.verdict or verdict(report))
    data = json.dumps(report.to_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    contents = {"report.html": render(report), "report.md": render_markdown(report), "report.json": data}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            _replace(folder / name, text)
    except OSError as error:
        raise StorageError(
            f"cannot write the report into {folder}: {error.strerror}. Choose another folder."
        ) from error
    html, markdown, document = (folder / name for name in contents)
    return html, markdown, document


def _replace(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it over `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; a report is there to be read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
