"""Seeded orders in which candidates are shown: a function of what is asked, never of who is asked for.

`shuffled` draws an independent permutation for each replica; `balanced` shows one permutation, its reverse
and rotations of it, so that each candidate stands early and late; `cheap` keeps the cheap model's order,
which a model that repeats what it reads will return.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from frugalrec.rng import generator

Presentation = Literal["shuffled", "balanced", "cheap"]
PRESENTATIONS: tuple[str, ...] = get_args(Presentation)


def shown_orders(
    titles: Sequence[str], presentation: Presentation, replicas: int, *, seed: int, content: str
) -> Iterator[list[int]]:
    """Yield different orders of some candidates: first those of the replicas, then more permutations.

    The permutations are drawn for the *set* of titles: whatever the cheap order is, the same titles are
    shown in the same way. No two orders read alike, so a few titles have few.

    Args:
        titles: Titles as they will be shown, in the cheap order.
        presentation: How replicas differ.
        replicas: How many orders `balanced` spreads its rotations over.
        seed: Seed.
        content: What else is shown, for example the history.
    """
    namesakes = math.prod(math.factorial(count) for count in Counter(titles).values())
    most, seen = math.factorial(len(titles)) // namesakes, set()
    for order in _drawn(titles, presentation, replicas, seed, content):
        text = tuple(titles[i] for i in order)
        if text not in seen:
            seen.add(text)
            yield order
        if len(seen) == most:
            return


def _drawn(
    titles: Sequence[str], presentation: Presentation, replicas: int, seed: int, content: str
) -> Iterator[list[int]]:
    n = len(titles)
    alphabetic = sorted(range(n), key=titles.__getitem__)
    text = "\x1f".join([content, *(titles[i] for i in alphabetic)])
    if presentation == "cheap":
        yield list(range(n))
    replica = 0
    while True:
        drawn = generator(seed, "listwise", text, replica).permutation(n)
        base = [alphabetic[i] for i in drawn]
        yield base
        if presentation == "balanced" and replica == 0:
            yield base[::-1]
            for turn in range(1, replicas - 1):
                start = round(n * turn / (replicas - 1))
                yield base[start:] + base[:start]
        replica += 1
