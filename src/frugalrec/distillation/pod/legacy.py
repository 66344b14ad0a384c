"""POD as it was published, faults included, to be compared with; not to be used.

What is wrong with it, each repaired in `PodConfig`'s defaults: see `WRONG`. Published figures rest on the
first of these faults: with item ids in random order, others found .0245 for POD's HR@10 on Beauty, not .0688.
Not kept: the published validation draws its negatives anew in every epoch.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from frugalrec.data.dataset import NUMBER, Dataset
from frugalrec.distillation.pod.model import Faults, PodConfig
from frugalrec.distillation.pod.templates import EXPLANATION, SEQUENTIAL, TOP_N, IdWriter
from frugalrec.errors import ConfigError
from frugalrec.grounding.item_ids import catalogue_hash
from frugalrec.types import LongArray

FAULTS = Faults(
    pads_in_loss=True,
    no_cross_mask=True,
    row_zero=True,
    patience_in_total=True,
    telling_negatives=True,
    equal_turns=True,
)
RATES = {"sports": 1e-3, "beauty": 5e-4, "toys": 5e-4}
"""The published learning rates of the data sets."""
WRONG = (
    "items numbered in order of first appearance give test items away",
    "the loss averages over the padding of answers",
    "the decoder attends to the padding of prompts, so that a row's answer depends on its batch",
    "whole-word rows start at N(0, 1), and row 0 is added to all words",
    "patience never starts anew, and is judged by a loss over padding",
    "negatives of the top-n task are kept apart from held-out items",
    "no warm-up, no clipping",
    "every task gets as many batches, whatever its size, first in the order of the file",
)


def published(data: str = "beauty", **changes: Any) -> PodConfig:
    """Return the options of the published runs, with a warning that says what is wrong with them.

    Args:
        data: `sports`, `beauty` or `toys`, whose learning rates differ.
        changes: Options of `PodConfig` to change, such as `weights` where there are no explanations.
    """
    if data not in RATES:
        raise ConfigError(f"published rates are known for {', '.join(RATES)}, not for {data!r}.")
    warnings.warn(
        "POD as published is for comparison only: " + "; ".join(WRONG) + ".", UserWarning, stacklevel=2
    )
    config = PodConfig(
        mode="joint",
        n_vectors=10,  # of the logged runs; the code's default is 3
        start="uniform",
        weights={SEQUENTIAL: 1.0, TOP_N: 1.0, EXPLANATION: 1.0},
        window=20,
        negatives=99,
        whole_word=True,
        epochs=100,
        learning_rate=RATES[data],
        constant_rate=True,
        weight_decay=0.01,
        clip=0.0,
        batch_size=64,
        patience=5,
        choose_by="loss",
        faults=FAULTS,
    )
    return replace(config, **changes)


def appearance_numbers(dataset: Dataset) -> IdWriter:
    """Return the published numbers of users and items: from 1, by first appearance, held-out items included.

    Where a folder gives numbers of its own (the column `NUMBER`), these are taken.

    Args:
        dataset: The whole data set, in the order of its file where it gives no numbers.
    """
    own = dataset.item_text[NUMBER].to_list() if NUMBER in dataset.item_text.columns else None
    if own is None or None in own:
        order: LongArray = np.full(dataset.n_items, dataset.n, dtype=np.int64)
        by_user = _file_order(dataset)
        np.minimum.at(order, dataset.items[by_user], np.arange(dataset.n))
        numbers = np.empty(dataset.n_items, dtype=np.int64)
        numbers[np.argsort(order, kind="stable")] = np.arange(1, dataset.n_items + 1)
        own = numbers.tolist()
    users = np.empty(dataset.n_users, dtype=np.int64)
    users[_user_order(dataset)] = np.arange(1, dataset.n_users + 1)
    return IdWriter(
        items=tuple(f"item_{number}" for number in own),
        answers=tuple(str(number) for number in own),
        users=tuple(f"user_{number}" for number in users.tolist()),
        catalogue=catalogue_hash(dataset.item_ids),
    )


def _user_order(dataset: Dataset) -> LongArray:
    """Return users in the order of their ids: as numbers where they are numbers."""
    ids = dataset.user_ids.tolist()
    if all(name.isdigit() for name in ids):
        return np.argsort(np.array([int(name) for name in ids]), kind="stable")
    return np.argsort(dataset.user_ids, kind="stable")


def _file_order(dataset: Dataset) -> LongArray:
    """Return the interactions user after user, in the order of users' ids."""
    spans = [np.arange(dataset.indptr[u], dataset.indptr[u + 1]) for u in _user_order(dataset)]
    return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
