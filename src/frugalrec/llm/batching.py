"""Token-budget batches: sequences of similar length together, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Sequence


def token_batches(
    lengths: Sequence[int], max_tokens: int, *, quadratic: int | None = None
) -> list[list[int]]:
    """Split positions into batches whose padded size stays within a budget.

    Longest first: the first batch needs the most memory, so a machine that is too small fails at
    once and not at the end.

    Args:
        lengths: Tokens of each sequence, (n,).
        max_tokens: Budget for rows times the longest row; a longer single row makes its own batch.
        quadratic: Budget for rows times the longest row squared (size of a dense attention mask).

    Returns:
        Batches of positions into `lengths`; each position exactly once.

    >>> token_batches([3, 9, 2, 8], max_tokens=18)
    [[1, 3], [0, 2]]
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        rows = len(batches[-1]) + 1 if batches else 1
        fits = rows * longest <= max_tokens and (quadratic is None or rows * longest**2 <= quadratic)
        if batches and fits:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = lengths[position]
    return batches
