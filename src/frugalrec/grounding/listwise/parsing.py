r"""The parse ladder: any text that a model may answer with becomes a permutation of the candidates.

Each rung is tried in turn: the text is the JSON that was asked for; JSON stands somewhere in the text
(fenced, nested, prose around it); numbers stand in the text (RankGPT, arXiv 2304.09542). Numbers that are
no candidate's, or named before, are dropped; candidates that were not named go to the end in the cheap
order. Nothing here raises, and long texts are cut, so that time is bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from frugalrec.types import IntArray

Stage = Literal["strict", "embedded", "digits", "failed"]
KEY = "ranking"
MOST_CHARS = 20_000
"""A longer text is cut to its first and its last half of this: answers stand at either end."""
MOST_STARTS = 50
"""Places in a text at which JSON is looked for."""
MOST_NODES = 2_000
"""Parts of one JSON value that are looked at."""

_NUMBER = re.compile(r"[0-9]+")
_BARE = re.compile(r"(?<![0-9.])[0-9]+(?![0-9]|\.[0-9])")
_DECIMAL = re.compile(r"^[ \t>*-]{0,8}[0-9]{1,4}\.[0-9]", re.MULTILINE)
_THINKS = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.){0,600}"')
_MARKED_LINE = re.compile(r"^[ \t>*-]{0,8}\[?([0-9]{1,4})\]?[.):]+[ \t*]{0,8}(\S[^\n]*)$", re.MULTILINE)
_LEADING = re.compile(
    r"^[(*]{0,3}(?:(?:\[|#|candidate|number|id)[ #:]{0,4}([0-9]{1,4})\b(?![-.][0-9a-z])"
    r"|([0-9]{1,4})[)*]{0,3}(?=$|[ \t]*$|:|[.),;][ \t]|[.),;]$|[ \t]+[-–—>=\"“]))",
    re.IGNORECASE,
)
"""A number that names a candidate; a title such as `12 Monkeys` or `9 (2009)` names none."""
_INLINE_MARK = re.compile(r"(?<![0-9.])([0-9]{1,4})[.)][ \t]+(?=[^\W\d_])")


@dataclass(frozen=True, kw_only=True)
class ParseReport:
    """How an answer was read."""

    stage: Stage
    """`strict`: the JSON asked for; `embedded`: JSON somewhere in the text; `digits`: numbers in the
    text; `failed`: no candidate is named."""
    repaired: int
    """Candidates that the answer did not name; they stand at the end, in the cheap order."""
    coverage: float
    """Share of the candidates that the answer named, from 0 to 1."""
    dropped: int
    """Entries that were no candidate, or one named before."""

    @property
    def valid(self) -> bool:
        """Whether the answer was all that was asked for."""
        return self.stage == "strict" and not self.repaired and not self.dropped


def parse_ranking(
    text: str | None, n: int, missing: Sequence[int] | None = None
) -> tuple[IntArray, ParseReport]:
    r"""Read an answer as an order of n candidates that were shown as 1 to n.

    >>> order, report = parse_ranking('Sure!\n```json\n{"ranking": [3, 1, 3, 9]}\n```', 3)
    >>> order.tolist(), report.stage, report.repaired, report.dropped
    ([2, 0, 1], 'embedded', 1, 2)

    Args:
        text: The answer; None counts as empty.
        n: Number of candidates.
        missing: The cheap order of all candidates, as numbers from 0; default: as they were shown.

    Returns:
        The candidates as numbers from 0, best first, (n,), always each once; and how they were read.
    """
    stage, entries = _entries(text or "", n)
    named = list(dict.fromkeys(entry - 1 for entry in entries if entry is not None and 1 <= entry <= n))
    rest = range(n) if missing is None else missing
    order = np.array([*named, *(item for item in rest if item not in set(named))], dtype=np.int32)
    return order, ParseReport(
        stage=stage if named else "failed",
        repaired=n - len(named),
        coverage=len(named) / n if n else 1.0,
        dropped=len(entries) - len(named),
    )


def _entries(text: str, n: int) -> tuple[Stage, list[int | None]]:
    """Return the rung and what it found there; None stands for an entry that is no number."""
    text = _THOUGHT.split(text)[-1].strip()
    if _THINKS.search(text):
        return "failed", []  # a thought that was cut: it names candidates as they come
    if len(text) > MOST_CHARS:
        text = f"{text[: MOST_CHARS // 2]}\n{text[-MOST_CHARS // 2 :]}"
    whole = _decoded(text)
    if _is_as_asked(whole, n):
        return "strict", list(whole[KEY])
    objects = [value for value in ([whole] if isinstance(whole, dict) else _embedded(text, "{"))]
    for value in objects:
        found = _listed(value)
        if any(entry is not None for entry in found):
            return "embedded", found
    if isinstance(whole, dict):
        return "failed", []  # JSON that ranks nothing: its numbers mean something else
    arrays = [_numbers(value) for value in _embedded(text, "[")]
    longest = max(arrays, key=len, default=[])
    # [3] > [1] > [2] are arrays too.
    return ("embedded", longest) if len(longest) > 1 else ("digits", list(_digits(text)))


def _is_as_asked(value: Any, n: int) -> bool:
    """Say whether a JSON value follows the schema: exactly the key, and numbers of candidates."""
    return (
        isinstance(value, dict)
        and list(value) == [KEY]
        and isinstance(value[KEY], list)
        and 1 <= len(value[KEY]) <= n
        and all(type(entry) is int and 1 <= entry <= n for entry in value[KEY])
    )


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _embedded(text: str, opening: str) -> Iterator[Any]:
    """Yield the JSON values that begin with a bracket; what is inside one is not looked at again."""
    decoder, start = json.JSONDecoder(), text.find(opening)
    for _ in range(MOST_STARTS):
        if start < 0:
            return
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find(opening, end)


def _listed(value: Any) -> list[int | None]:
    """Return the numbers below the first key `ranking`, or else of the first list that holds any."""
    level, lists, looked = [value], [], 0
    while level and looked < MOST_NODES:
        below: list[Any] = []
        for node in level[: MOST_NODES - looked]:
            if isinstance(node, dict) and KEY in node:
                named = node[KEY]
                return list(_digits(named)) if isinstance(named, str) else _numbers(named)
            if isinstance(node, list):
                lists.append(_numbers(node))
            below += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        looked, level = looked + len(level), below
    return next((found for found in lists if any(entry is not None for entry in found)), [])


def _numbers(value: Any) -> list[int | None]:
    """Return each entry of a list as a number, None where it is none; empty for what is no list."""
    if not isinstance(value, list):
        return []
    return [_number(entry) for entry in value]


def _number(entry: Any) -> int | None:
    if isinstance(entry, dict):  # {"id": 3, "title": ...}
        entry = next((part for part in entry.values() if _number_of(part) is not None), None)
    return _number_of(entry)


def _number_of(entry: Any) -> int | None:
    if isinstance(entry, bool):
        return None
    if isinstance(entry, int):
        return entry
    if isinstance(entry, float):
        return int(entry) if math.isfinite(entry) and entry.is_integer() else None
    if isinstance(entry, str):
        digits = _NUMBER.fullmatch(entry.strip())
        return _whole(digits.group()) if digits else None
    return None


def _digits(text: str) -> Iterator[int | None]:
    """Yield the numbers of a text; of lines that begin with a number, that number alone.

    Lines marked 1, 2, 3, ... are a numbered list: what follows the mark counts, so that titles copied
    into one name nobody. Decimals are scores.
    """
    _, key, after = text.partition(f'"{KEY}"')
    text = after if key else text
    lines = _MARKED_LINE.findall(text)
    if _are_ranks([int(mark) for mark, _ in lines]):
        yield from _led([line for _, line in lines])
        return
    marks = [int(mark) for mark, _ in _MARKED_LINE.findall(_DECIMAL.sub("-", text))]
    if len(marks) > 1:
        yield from marks
        return
    text = _QUOTED.sub(_without_words, text)
    if not _are_ranks([int(mark) for mark in _INLINE_MARK.findall(text)]):
        for digits in _BARE.findall(text):
            yield _whole(digits)


def _are_ranks(marks: Sequence[int]) -> bool:
    """Say whether marks count 1, 2, 3, ..., once or anew for another list."""
    steps = zip([0, *marks], marks, strict=False)
    return len(marks) > 1 and all(mark in (1, before + 1) for before, mark in steps)


def _led(lines: Sequence[str]) -> list[int | None]:
    """Return the number that each line begins with; none if most begin with none: those are titles."""
    leading = [_LEADING.match(line) for line in lines]
    found = [int(match.group(1) or match.group(2)) if match else None for match in leading]
    return found if 2 * sum(entry is not None for entry in found) > len(found) else [None] * len(found)


def _without_words(quoted: re.Match[str]) -> str:
    """Return a quoted text, or nothing where it holds a letter: digits inside of titles name nobody."""
    return " " if any(character.isalpha() for character in quoted.group()) else quoted.group()


def _whole(digits: str) -> int | None:
    """Return a number, None for one that is far too long; Python refuses to read some of those."""
    return int(digits) if len(digits.lstrip("0")) <= 9 else None
