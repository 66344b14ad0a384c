"""From groups inside groups to ids: one symbol a level, and one more where items share all of them.

Whatever depends on a position is computed in a working order: external ids sorted, then shuffled by the
seed. So ids are a function of external ids, data and seed, whichever codes the items have, and nothing in
them follows the order in which a file numbers its items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError
from frugalrec.grounding.item_ids.base import ItemIds, catalogue_hash, sharing
from frugalrec.rng import generator
from frugalrec.types import LongArray

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def working_order(item_ids: NDArray[np.str_], kind: str, seed: int) -> LongArray:
    """Return the item codes in an order that depends on external ids, kind and seed alone, (n_items,).

    Raises:
        DataError: If there are no items, or two have the same id.
    """
    ids = np.asarray(item_ids)
    if ids.ndim != 1 or not ids.size or np.unique(ids).size < ids.size:
        raise DataError(f"item ids need at least one item and external ids that differ; got {ids.size}.")
    return np.argsort(ids, kind="stable")[generator(seed, "item-ids", kind).permutation(ids.size)]


def assembled(
    kind: str,
    levels: LongArray,
    *,
    item_ids: NDArray[np.str_],
    order: LongArray,
    seed: int,
    evidence: Mapping[str, Any],
) -> ItemIds:
    """Return the ids of items whose groups are known.

    Each level has symbols of its own, ``<a_0>``, ``<a_1>``, ..., ``<b_0>``, ...; items that share all
    groups get one more, ``<#0>``, ``<#1>``, ..., in working order.

    Args:
        kind: Name of the kind.
        levels: Group of each item at each level, (n_items, n_levels), in working order, padded with -1.
        item_ids: External id of each item code.
        order: Item code of each row of `levels`.
        seed: Seed.
        evidence: Goes into the result.
    """
    alphabets = [int(column.max(initial=-1)) + 1 for column in levels.T]
    starts = np.concatenate([[0], np.cumsum(alphabets)])
    numbers = _numbers(levels)
    names = [f"<{LETTERS[at]}_{i}>" for at, size in enumerate(alphabets) for i in range(size)]
    names += [f"<#{i}>" for i in range(int(numbers.max(initial=-1)) + 1)]
    codes = np.full((len(levels), levels.shape[1] + 1), -1, dtype=np.int32)
    codes[:, :-1] = np.where(levels >= 0, levels + starts[:-1], -1)
    lengths = (levels >= 0).sum(axis=1)
    codes[np.arange(len(levels)), lengths] = np.where(numbers >= 0, numbers + starts[-1], -1)
    by_item = np.empty_like(codes)
    by_item[order] = codes
    longest = int((by_item >= 0).sum(axis=1).max())
    return ItemIds(
        kind=kind,
        seed=seed,
        codes=np.ascontiguousarray(by_item[:, :longest]),
        symbols=tuple(names),
        collisions=int((numbers >= 0).sum()),
        catalogue=catalogue_hash(item_ids),
        evidence=evidence,
    )


def _numbers(levels: LongArray) -> LongArray:
    """Return the place of each row among the equal ones before it, and -1 where a row is alone, (n,)."""
    _, owner = np.unique(levels, axis=0, return_inverse=True)
    owner = owner.reshape(-1)  # numpy 2.0 gives it another shape
    order = np.argsort(owner, kind="stable")
    places = np.arange(order.size) - np.searchsorted(owner[order], owner[order])
    numbers = np.empty(order.size, dtype=np.int64)
    numbers[order] = places
    return np.where(sharing(levels), numbers, -1)
