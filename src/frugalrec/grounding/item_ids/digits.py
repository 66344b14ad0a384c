"""Random numbers as item ids: what P5 and POD write, without the order that gives test items away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError
from frugalrec.grounding.item_ids.assembly import working_order
from frugalrec.grounding.item_ids.base import ItemIds, catalogue_hash
from frugalrec.types import LongArray

MOST_DIGITS = 4


def random_numbers(item_ids: NDArray[np.str_], *, digits: int = 2, seed: int = 0) -> ItemIds:
    """Return the numbers 0 to n - 1 in random order, written in pieces of some digits, none left out.

    All numbers have the same number of pieces, so none is the beginning of another.

    >>> ids = random_numbers(np.array([f"B{i}" for i in range(300)]))
    >>> ids.max_length, len(ids.text(0)), sorted(ids.text(i) for i in range(300))[-1]
    (2, 4, '0299')

    Args:
        item_ids: External id of each item code, (n_items,).
        digits: Digits of a symbol, 1 to 4: more make ids shorter and the vocabulary larger.
        seed: Seed of the order.

    Raises:
        ConfigError: If `digits` is out of range.
    """
    if not 1 <= digits <= MOST_DIGITS:
        raise ConfigError(f"digits={digits} must lie in 1..{MOST_DIGITS}.")
    order = working_order(item_ids, "random-numbers", seed)
    numbers: LongArray = np.empty(order.size, dtype=np.int64)
    numbers[order] = np.arange(order.size)
    pieces = -(-len(str(order.size - 1)) // digits)
    base = 10**digits
    weights = base ** np.arange(pieces - 1, -1, -1)
    return ItemIds(
        kind="random-numbers",
        seed=seed,
        codes=(numbers[:, None] // weights % base).astype(np.int32),
        symbols=tuple(f"{i:0{digits}d}" for i in range(base)),
        collisions=0,
        catalogue=catalogue_hash(item_ids),
        evidence={"digits": digits},
    )
