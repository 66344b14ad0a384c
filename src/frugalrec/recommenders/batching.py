"""Training windows and length-grouped batches of sequences, without work on padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.recommenders.networks import SequenceNetwork
from frugalrec.types import IntArray, LongArray


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Training windows in CSR form: every transition of every user exactly once.

    A user with more than `max_length` transitions has several windows, cut from the end.
    """

    users: IntArray
    """User of each window, (m,)."""
    indptr: LongArray
    """Row pointers, (m + 1,), into `inputs` and `targets`."""
    inputs: LongArray
    """Item codes fed to the network, oldest first inside a window, (n,)."""
    targets: LongArray
    """The item that followed each input, (n,)."""

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self.users.size)

    @property
    def lengths(self) -> LongArray:
        """Positions per window, (m,)."""
        return np.diff(self.indptr)


def training_windows(dataset: Dataset, max_length: int) -> Windows:
    """Cut a data set into windows of at most `max_length` transitions.

    Raises:
        DataError: If no user has two interactions.
    """
    users, starts, stops = [], [], []
    transitions = dataset.lengths - 1
    for back in range(int(max(-(-transitions.max(initial=0) // max_length), 0))):
        # Window `back` covers the transitions that end max_length * back before the last one.
        rows = np.flatnonzero(transitions > max_length * back)
        stop = transitions[rows] - max_length * back
        users.append(rows)
        starts.append(dataset.indptr[rows] + np.maximum(stop - max_length, 0))
        stops.append(dataset.indptr[rows] + stop)
    if not users:
        raise DataError(
            f"{dataset.name}: no user has two interactions in training, so there is no transition to learn. "
            f"Use a model that does not need sequences, for example popularity."
        )
    owner, first, last = (np.concatenate(parts).astype(np.int64) for parts in (users, starts, stops))
    order = np.lexsort((first, owner))
    owner, first, last = owner[order], first[order], last[order]
    indptr, positions = ranges(first, last - first)
    return Windows(
        users=owner.astype(np.int32),
        indptr=indptr,
        inputs=dataset.items[positions].astype(np.int64),
        targets=dataset.items[positions + 1].astype(np.int64),
    )


def recent(dataset: Dataset, users: IntArray, max_length: int) -> tuple[LongArray, LongArray]:
    """Return (indptr, items): the last `max_length` items of each user, oldest first."""
    lengths = np.minimum(dataset.lengths[users], max_length)
    indptr, positions = ranges(dataset.indptr[users + 1] - lengths, lengths)
    return indptr, dataset.items[positions].astype(np.int64)


def ranges(first: LongArray, lengths: LongArray) -> tuple[LongArray, LongArray]:
    """Return (indptr, positions) of the runs ``first[i] .. first[i] + lengths[i] - 1``, one after another."""
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return indptr, np.repeat(first - indptr[:-1], lengths) + np.arange(indptr[-1])


def length_groups(lengths: LongArray, *, shortest: int = 8) -> list[LongArray]:
    """Split rows into groups whose lengths differ at most by a factor of two, shortest first.

    Lengths up to `shortest` form one group; a group keeps the order of its rows.
    """
    level = np.ceil(np.log2(np.maximum(lengths, 1) / shortest)).clip(min=0).astype(np.int64)
    return [np.flatnonzero(level == one) for one in np.unique(level)]


def cells(lengths: LongArray) -> tuple[LongArray, LongArray]:
    """Return (take, real) for rows padded at the end to the longest.

    Args:
        lengths: Lengths of rows that lie one after another in a packed array, (b,).

    Returns:
        take: Packed position for each padded cell, (b, longest); any position where there is none.
        real: Which flat cells are real, in packed order, (n,).
    """
    first = np.cumsum(lengths) - lengths
    width = int(lengths.max())
    take = np.minimum(first[:, None] + np.arange(width), max(int(lengths.sum()) - 1, 0))
    real = np.flatnonzero((np.arange(width) < lengths[:, None]).ravel())
    return take, real


def grouped_positions(windows: Windows, rows: LongArray) -> tuple[list[LongArray], LongArray, LongArray]:
    """Return how a batch runs through a network: (groups, order, positions).

    `groups` splits the places in `rows` by length, `order` is the groups one after another, (b,), and
    `positions` lists the cells of those windows in that order, as places in `Windows.inputs`, (n,).
    """
    groups = length_groups(windows.lengths[rows])
    order = np.concatenate(groups)
    _, positions = ranges(windows.indptr[rows[order]], windows.lengths[rows[order]])
    return groups, order, positions


def position_states(
    network: SequenceNetwork, windows: Windows, rows: LongArray
) -> tuple[Tensor, Tensor, IntArray]:
    """Return hidden states (n, width), targets (n,) and users (n,) of all positions of some windows."""
    groups, order, positions = grouped_positions(windows, rows)
    lengths = windows.lengths[rows]
    # One look-up for all groups: the gradient of each look-up is as large as the embedding.
    embedded = network.items(torch.from_numpy(windows.inputs[positions]))
    states, start = [], 0
    for group in groups:
        take, real = cells(lengths[group])
        packed = embedded[start : start + real.size]
        states.append(network.encode(packed[torch.from_numpy(take)]).flatten(0, 1)[torch.from_numpy(real)])
        start += real.size
    targets = torch.from_numpy(windows.targets[positions])
    return torch.cat(states), targets, np.repeat(windows.users[rows[order]], lengths[order])


def last_states(network: SequenceNetwork, indptr: LongArray, items: LongArray) -> Tensor:
    """Return the state after the last item of each row, (m, width); zero for a row without items."""
    lengths = np.diff(indptr)
    states = torch.zeros(lengths.size, network.items.embedding_dim)
    filled = np.flatnonzero(lengths > 0)
    with torch.no_grad():
        for group in length_groups(lengths[filled]):
            rows = filled[group]
            for part in np.array_split(rows, -(-rows.size // 512)):
                _, positions = ranges(indptr[part], lengths[part])
                take, _ = cells(lengths[part])
                padded = torch.from_numpy(items[positions][take])
                states[part] = network.next_states(padded, torch.from_numpy(lengths[part]))
    return states
