"""Training rows: each selected example becomes one Yes and a few Nos of the cheap model's list."""

from __future__ import annotations

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.rng import generator
from frugalrec.tuning.base import TrainingRow
from frugalrec.types import PAD, IntArray


def build_rows(
    examples: Examples,
    dataset: Dataset,
    cheap_negatives: IntArray,
    prompt: RerankPrompt,
    *,
    n_negatives: int = 3,
    seed: int = 0,
) -> list[TrainingRow]:
    """Turn examples into yes/no rows: the target, and candidates of the cheap model in its place.

    Where the prompt shows ratings (`prompt.min_like`) and the target was rated below it, the target
    is a No too: the user chose it and was disappointed.

    Args:
        examples: The selected rows.
        dataset: The data set of the examples, for titles and for what else the user has consumed.
        cheap_negatives: The cheap model's list for each row, (n, m), best first, padded with -1.
        prompt: The prompt that inference will use.
        n_negatives: Negatives per row, drawn from the list without replacement; fewer where the
            list, less the target and everything the user has consumed, is shorter.
        seed: Seed of the draw; a row's draw depends on its user and target only.

    Raises:
        DataError: If the list has another number of rows than the examples.
    """
    lists = np.asarray(cheap_negatives)
    if lists.ndim != 2 or lists.shape[0] != len(examples):
        raise DataError(
            f"cheap_negatives must have one row per example, ({len(examples)}, m); got {lists.shape}."
        )
    if n_negatives < 0:
        raise ConfigError(f"n_negatives must be at least 0, not {n_negatives}.")
    rows: list[TrainingRow] = []
    for number, (user, target) in enumerate(zip(examples.users, examples.targets, strict=True)):
        history = examples.history(number)
        window = slice(examples.indptr[number], examples.indptr[number + 1])
        values = None if examples.values is None else examples.values[window]
        prefix = prompt.for_history(history.tolist(), values, dataset.titles)
        known = np.concatenate([history, dataset.history(int(user)), [target, PAD]])
        free = lists[number][~np.isin(lists[number], known)]
        draw = generator(seed, "negatives", int(user), int(target)).permutation(free.size)[:n_negatives]
        liked = (
            prompt.min_like is None
            or examples.labels is None
            or bool(examples.labels[number] >= prompt.min_like)
        )
        for item, label in [(int(target), liked), *((int(free[i]), False) for i in draw)]:
            text = prefix + prompt.suffix(dataset.titles[item])
            rows.append(TrainingRow(prompt=text, label=label, group=number))
    return rows
