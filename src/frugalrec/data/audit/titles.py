"""Checks on item titles: what a language model would read, and what a title cannot tell apart."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frugalrec.data.audit.view import Finding, View, percent, share_of, shorten
from frugalrec.data.dataset import TITLE

LONG_TITLE = 300
"""Characters; a longer title is a description, and crowds the others out of a prompt."""
SEPARATOR = "; "
"""What several published prompts put between the titles of a history."""

PLACEHOLDER = (
    r"(?i)^(?:(?:title|item|product|movie|film|book|game|video|name)[_#-]?\d+"
    r"|unknown|untitled|none|null|nan|n/?a|no title|tbd|\?+|-+|\.+)$"
)
ENTITY = r"&(?:[A-Za-z]{2,8}\d{0,2}|#\d{1,6}|#[xX][0-9A-Fa-f]{1,6});"
# UTF-8 bytes read as Latin-1 or Windows-1252: a lead byte's letter, then continuation bytes, which
# are controls or signs in Latin-1 and the listed punctuation in Windows-1252.
_CONTINUATION = r"[\u{80}-\u{BF}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
MOJIBAKE = rf"\u{{FFFD}}|[ÂÃÐÑ]{_CONTINUATION}|[âãäåæçèé]{_CONTINUATION}{{2}}"


def missing_titles(view: View) -> Finding | None:
    """Items with no title at all."""
    missing = view.titles.fill_null("") == ""
    count, share = int(missing.sum()), share_of(int(missing.sum()), missing.len())
    if not count:
        return None
    return Finding(
        name="missing-titles",
        severity="warning",
        count=count,
        share=share,
        message=f"{count:,} of {missing.len():,} items ({percent(share)}) have no title.",
        examples=view.item_examples(np.flatnonzero(missing.to_numpy())),
        remedy="Map the title column; a language model sees nothing but titles.",
    )


def placeholder_titles(view: View) -> Finding | None:
    """Titles that stand for a missing one: `title_168`, `unknown`, the item's own number."""
    titles = view.titles
    own_id = (titles == pl.Series(view.dataset.item_ids)) & titles.str.contains(r"^\S*\d\S*$")
    return _titles_finding(
        view,
        name="placeholder-titles",
        mask=titles.str.contains(PLACEHOLDER) | own_id,
        what="are placeholders",
        remedy="Correct them, or leave these items out of prompts and of generated lists.",
    )


def duplicate_titles(view: View) -> Finding | None:
    """Items that share a title: a generated title does not name one of them."""
    mask = view.titles.fill_null("") != ""
    titled, exact = view.titles.filter(mask), view.dataset.item_text[TITLE].cast(pl.String).filter(mask)
    shared = titled.filter(titled.is_duplicated())
    if shared.is_empty():
        return None
    count, distinct, share = shared.len(), shared.n_unique(), share_of(shared.len(), titled.len())
    same = int(exact.is_duplicated().sum())
    spaces = (
        f" (counting outer spaces, {same:,} and {exact.len() - exact.n_unique():,})" if same < count else ""
    )
    counts = shared.value_counts(name="n").sort(["n", shared.name], descending=[True, False])
    return Finding(
        name="duplicate-titles",
        severity="warning",
        count=count,
        share=share,
        message=f"{count:,} of {titled.len():,} titled items ({percent(share)}) share {distinct:,} titles, "
        f"{count - distinct:,} more items than titles{spaces}.",
        examples=tuple(f"{shorten(title)} ({n} items)" for title, n in counts.head(3).iter_rows()),
        remedy="Count hits by item, never by title; add a year, a maker or a platform to tell them apart.",
    )


def mojibake(view: View) -> Finding | None:
    """Titles with UTF-8 read as Latin-1 (`AmÃ©lie`), or replacement characters."""
    return _titles_finding(
        view,
        name="mojibake",
        mask=view.titles.str.contains(MOJIBAKE),
        what="look wrongly decoded",
        remedy="Read the file as UTF-8 (or as what it really is), or drop the replacement characters.",
    )


def html_entities(view: View) -> Finding | None:
    """Titles with `&amp;` and the like."""
    return _titles_finding(
        view,
        name="html-entities",
        mask=view.titles.str.contains(ENTITY),
        what="contain HTML entities",
        remedy="Unescape them (html.unescape); they cost tokens and never match a generated title.",
    )


def very_long_titles(view: View) -> Finding | None:
    """Titles above 300 characters."""
    return _titles_finding(
        view,
        name="very-long-titles",
        mask=view.titles.str.len_chars() > LONG_TITLE,
        what=f"are longer than {LONG_TITLE} characters",
        remedy="Cut them; one such title pushes the rest of a history out of the prompt.",
    )


def separator_titles(view: View) -> Finding | None:
    """Titles that contain the usual separator of a history."""
    return _titles_finding(
        view,
        name="separator-titles",
        mask=view.titles.str.contains(SEPARATOR, literal=True),
        what=f"contain {SEPARATOR!r}, the usual separator of a history",
        remedy="Number or quote the titles of a history in prompts.",
        severe=False,
    )


def _titles_finding(
    view: View, *, name: str, mask: pl.Series, what: str, remedy: str, severe: bool = True
) -> Finding | None:
    marked: NDArray[np.bool_] = mask.fill_null(False).to_numpy()
    count, share = int(marked.sum()), share_of(int(marked.sum()), marked.size)
    if not count:
        return None
    return Finding(
        name=name,
        severity="warning" if severe else "info",
        count=count,
        share=share,
        message=f"the titles of {count:,} of {marked.size:,} items ({percent(share)}) {what}.",
        examples=view.item_examples(np.flatnonzero(marked)),
        remedy=remedy,
    )
