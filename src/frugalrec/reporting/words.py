"""How numbers and names become text: one function a unit, shared by every output format.

Undefined values (``None``, NaN, infinity) become an en dash. Thousands take a comma, negative numbers a
true minus sign, so that columns of tabular numerals line up.
"""

from __future__ import annotations

import math
import re

DASH = "–"
_ABBREVIATIONS = {"ndcg", "mrr", "map", "auc", "rmse"}
_KINDS = {"cheap": "cheap model", "llm": "LLM", "fusion": "LLM + cheap model", "control": "control"}


def shorten(text: object, length: int) -> str:
    """Return `text` on one line, cut to at most `length` characters."""
    line = clean(text)
    return line if len(line) <= length else line[: length - 1].rstrip(" ,;:(") + "…"


def defined(value: float | None) -> bool:
    """Return whether `value` is a finite number."""
    return value is not None and math.isfinite(value)


def clean(text: object) -> str:
    """Return `text` on one line, without control characters."""
    return " ".join(
        re.sub(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", " ", str(text)).split()
    )


def fixed(value: float | None, digits: int = 4) -> str:
    """Return a metric value with a fixed number of decimals, such as ``0.0912``."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{abs(value):,.{digits}f}"
    return f"−{text}" if value < 0 and float(text.replace(",", "")) != 0 else text


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference with its sign, such as ``+0.0042``."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and text[0] not in f"−{DASH}" and value > 0 else text


def short(value: float | None) -> str:
    """Return an amount with about three significant digits, such as ``0.12``, ``41.2`` or ``1,240``."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    sign = "−" if value < 0 else ""
    if size == 0:
        return "0"
    if size < 0.001:
        return f"{sign}<0.001"
    for bound, digits in ((0.01, 4), (0.1, 3), (10, 2), (100, 1)):
        if size < bound:
            return f"{sign}{size:.{digits}f}"
    return f"{sign}{size:,.0f}"


def plain(value: float | None) -> str:
    """Return a setting as it was given, such as ``3``, ``0.3`` or ``1,000``."""
    return f"{value:,.6g}".replace("-", "−") if value is not None and math.isfinite(value) else DASH


def digits(value: float | None) -> str:
    """Return a number of any size with three significant digits, such as ``0.912`` or ``−3.1e−06``."""
    return DASH if value is None or not math.isfinite(value) else plain(float(f"{value:.3g}"))


def count(value: float | None) -> str:
    """Return a whole number with commas."""
    return f"{value:,.0f}" if value is not None and math.isfinite(value) else DASH


def percent(share: float | None) -> str:
    """Return a fraction of 1 as per cent, such as ``2.0 %``; never rounds a rest to ``0`` or ``100``."""
    if share is None or not math.isfinite(share):
        return DASH
    for digits in (1, 2, 3):
        text = f"{share * 100:.{digits}f}"
        if float(text) not in (0.0, 100.0) or share in (0, 1):
            return f"{text} %"
    return "under 0.001 %" if share < 0.5 else "over 99.999 %"


def level(confidence: float) -> str:
    """Return a confidence level, such as ``95 %`` or ``99.5 %``."""
    return f"{plain(confidence * 100)} %"


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that suits them, such as ``85 ms``, ``12.3 s`` or ``1 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 or seconds == 0 else f"{seconds * 1000:.1f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float | None) -> str:
    """Return bytes as MiB or GiB; 0 means that nothing was measured."""
    if size is None or not size or not math.isfinite(size):
        return DASH
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def p_value(p: float | None) -> str:
    """Return a p value with three decimals, never ``0.000``."""
    if p is None or not math.isfinite(p):
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def metric_name(metric: str) -> str:
    """Return ``"ndcg@10"`` as ``"NDCG@10"`` and ``"recall@10"`` as ``"Recall@10"``."""
    stem, at, rest = clean(metric).partition("@")
    plain = stem.replace("_", " ")
    return (stem.upper() if stem.lower() in _ABBREVIATIONS else plain[:1].upper() + plain[1:]) + at + rest


def kind_name(kind: str) -> str:
    """Return the kind of an arm in plain words."""
    return _KINDS[kind]


def listing(names: list[str]) -> str:
    """Return names joined as in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
