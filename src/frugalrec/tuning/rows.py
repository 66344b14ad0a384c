"""Training rows: yes/no rows with negatives of the cheap model's list, title rows, few-shot draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.questions import known_titles
from frugalrec.llm.prompts import RerankPrompt, has_text
from frugalrec.rng import generator
from frugalrec.tuning.base import TitleRow, TrainingRow
from frugalrec.types import PAD, BoolArray, IntArray, LongArray


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
    is a No too: the user chose it and was disappointed. Items without a title are neither shown nor asked
    about, as at inference, so an example whose target has none gives no row.

    Args:
        examples: The selected rows.
        dataset: The data set of the examples, for titles and for what else the user has consumed.
        cheap_negatives: The cheap model's list for each row, (n, m), best first, padded with -1.
        prompt: The prompt that inference will use.
        n_negatives: Negatives per row, drawn from the list without replacement; fewer where the
            list, less the target and everything the user has consumed, is shorter.
        seed: Seed of the draw; a row's draw depends on its user and target only.

    Raises:
        DataError: If the list has another number of rows than the examples, or no target has a title.
    """
    lists = np.asarray(cheap_negatives)
    if lists.ndim != 2 or lists.shape[0] != len(examples):
        raise DataError(
            f"cheap_negatives must have one row per example, ({len(examples)}, m); got {lists.shape}."
        )
    if n_negatives < 0:
        raise ConfigError(f"n_negatives must be at least 0, not {n_negatives}.")
    titles = known_titles(None, dataset)
    titled = np.array([bool(title) for title in titles])
    named = np.flatnonzero(titled[examples.targets])
    if len(examples) and not named.size:
        raise DataError(f"none of {len(examples)} targets has a title; a language model needs titles.")
    rows: list[TrainingRow] = []
    for number in named.tolist():
        user, target, history = examples.users[number], examples.targets[number], examples.history(number)
        window = slice(examples.indptr[number], examples.indptr[number + 1])
        values = None if examples.values is None else examples.values[window][titled[history]]
        prefix = prompt.for_history(history[titled[history]].tolist(), values, titles)
        known = np.concatenate([history, dataset.history(int(user)), [target, PAD]])
        free = lists[number][~np.isin(lists[number], known)]
        free = free[titled[free]]
        draw = generator(seed, "negatives", int(user), int(target)).permutation(free.size)[:n_negatives]
        liked = (
            prompt.min_like is None
            or examples.labels is None
            or bool(examples.labels[number] >= prompt.min_like)
        )
        for item, label in [(int(target), liked), *((int(free[i]), False) for i in draw)]:
            text = prefix + prompt.suffix(titles[item])
            rows.append(TrainingRow(prompt=text, label=label, group=number))
    return rows


def title_rows(examples: Examples, titles: Sequence[str]) -> list[TitleRow]:
    """Turn examples into rows for `GenerativeTuner`; rows whose target has no title are left out.

    Args:
        examples: The rows.
        titles: Title of each item; history items without one are not shown.
    """
    rows: list[TitleRow] = []
    for number, target in enumerate(examples.targets):
        if has_text(titles[target]):
            shown = [titles[item] for item in examples.history(number)]
            rows.append(([title for title in shown if has_text(title)], titles[target]))
    return rows


def few_shots(labels: BoolArray, k: int, *, seed: int, balanced: bool) -> LongArray:
    """Draw `k` rows for few-shot tuning; with one seed, more shots include the fewer.

    >>> few_shots(np.array([True, False, True, False, False]), 4, seed=0, balanced=True).size
    4

    Args:
        labels: True where the answer is Yes, (n,).
        k: Rows to draw.
        seed: Seed of the draw.
        balanced: As many Yes as No (one more Yes where `k` is odd); else rows as they come.

    Returns:
        Row numbers, (k,), in the order of the draw.

    Raises:
        DataError: If there are too few rows, or too few of one answer.
    """
    labels = np.asarray(labels, dtype=np.bool_)
    if not 1 <= k <= labels.size:
        raise DataError(f"cannot draw {k} shots from {labels.size} rows; choose 1 to {labels.size}.")
    order = generator(seed, "few-shots").permutation(labels.size)
    if not balanced:
        return order[:k].astype(np.int64)
    parts = []
    for answer, wanted in ((True, k - k // 2), (False, k // 2)):
        found = order[labels[order] == answer][:wanted]
        if found.size < wanted:
            raise DataError(
                f"a balanced draw of {k} shots needs {wanted} rows with the answer "
                f"{'Yes' if answer else 'No'}, and there are {found.size}; draw fewer, or plainly."
            )
        parts.append(found)
    return np.concatenate(parts).astype(np.int64)
