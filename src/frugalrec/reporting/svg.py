"""Figures as inline SVG: text stays text, colours become CSS variables, bytes are the same every time.

matplotlib draws with stand-in colours (`COLOURS`), which are then exchanged for ``var(--name)``, so that
one drawing serves light pages, dark pages and print.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from frugalrec.reporting.words import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    "step": "#090909",
    "paper": "#040404",
    "cheap": "#050505",
    "llm": "#060606",
    "fusion": "#070707",
    "control": "#080808",
}
"""Name of a CSS variable -> the stand-in colour that matplotlib draws with."""

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "frugalrec",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with the report's settings and without matplotlib's warnings on missing glyphs."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context(_SETTINGS):
        # Names in scripts that the measuring font lacks are drawn by the reader's own fonts.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"constrained_layout not applied")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield


def blank(width: int, height: int) -> tuple[Figure, Axes]:
    """Return a figure of this many CSS pixels, with one axes and a horizontal grid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def inline(figure: Figure, *, key: str, title: str, description: str, css: str) -> str:
    """Return `figure` as an ``<svg>`` element for an HTML page.

    Args:
        figure: What to draw.
        key: Prefix of every id, unique on the page.
        title: Accessible name.
        description: Accessible description.
        css: Class of the element.
    """
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(
        r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*|<defs>\s*</defs>\s*", "", text, flags=re.S
    )
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    view = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">") + 1 :]
    body = _prefix_ids(body, key)
    body = re.sub(r" font-family: [^;\"]*;", "", body)  # the page's own font
    for name, stand_in in COLOURS.items():
        body = body.replace(stand_in, f"var(--{name})")
    opening = (
        f'<svg class="{css}" role="img" aria-labelledby="{key}-title {key}-desc" '
        f'viewBox="{view[1] if view else ""}">'
        f'<title id="{key}-title">{html.escape(clean(title))}</title>'
        f'<desc id="{key}-desc">{html.escape(clean(description))}</desc>'
    )
    return opening + re.sub(r">\s+<", "><", body).strip()


def _prefix_ids(body: str, key: str) -> str:
    """Make ids unique on a page that holds several drawings."""
    body = re.sub(r' id="([^"]+)"', rf' id="{key}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{key}-\1"', body)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", body)
