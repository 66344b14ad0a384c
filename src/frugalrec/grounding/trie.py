"""A token trie over catalogue titles in flat arrays: children, depths and items of many nodes at once.

Nodes are numbered level by level, and inside a level in the order of their paths, so that the children
of a node are neighbours: node v has the children ``first[v]``, ..., ``first[v + 1] - 1``. Titles are
numbered in the order of their token sequences, so those below a node are neighbours too. A title is a
token sequence here; items that share one stay apart as a list of item codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import DataError, ModelError
from frugalrec.llm.prompts import has_text
from frugalrec.types import FloatArray, IntArray, LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt


@dataclass(frozen=True, kw_only=True)
class TitleTrie:
    """A trie of token sequences; node 0 is the root.

    >>> trie = TitleTrie.build([[5, 7], [5, 8, 9], [5, 7]])
    >>> trie.children(0), trie.children(1)
    ([5], [7, 8])
    >>> trie.items_of(0), trie.items_of(1)
    ([0, 2], [1])
    """

    first: LongArray
    """First child of each node, (n_nodes + 1,)."""
    token: LongArray
    """The token that leads to each node, (n_nodes,); -1 at the root."""
    depth: LongArray
    """Tokens on the way to each node, (n_nodes,)."""
    title: LongArray
    """The title that ends at each node, (n_nodes,), or -1."""
    below: LongArray
    """Titles below each node, the one that ends there included: from and to, (n_nodes, 2)."""
    path_indptr: LongArray
    """Row pointers into `path`, (n_titles + 1,)."""
    path: LongArray
    """Tokens of all titles."""
    item_indptr: LongArray
    """Row pointers into `items`, (n_titles + 1,)."""
    items: IntArray
    """Item codes of all titles, ascending inside a title; items without a title are not there."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], items: Sequence[int] | None = None) -> TitleTrie:
        """Build the trie of one token sequence an item.

        Args:
            sequences: Tokens, one sequence an item.
            items: The items' codes, ascending; default: 0, 1, 2, ...

        Raises:
            DataError: If there is no sequence, or one is empty.
        """
        codes = np.arange(len(sequences)) if items is None else np.asarray(items)
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if not lengths.size or not lengths.min():
            empty = f"item {codes[lengths.argmin()]} has none" if lengths.size else "there are no items"
            raise DataError(f"a trie needs a title of at least one token an item; {empty}.")
        tokens = np.full((lengths.size, int(lengths.max())), -1, dtype=np.int64)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate([list(s) for s in sequences])
        rows, owner = _distinct_rows(tokens)
        sizes = (rows >= 0).sum(axis=1)
        by_title = codes[np.argsort(owner, kind="stable")].astype(np.int32)
        counts = np.bincount(owner, minlength=len(rows))
        return cls(
            **_nodes(rows, sizes),
            path_indptr=_pointers(sizes),
            path=rows[rows >= 0],
            item_indptr=_pointers(counts),
            items=by_title,
        )

    @property
    def n_nodes(self) -> int:
        """Number of nodes, the root included."""
        return int(self.token.size)

    @property
    def n_titles(self) -> int:
        """Number of different titles."""
        return int(self.item_indptr.size - 1)

    @property
    def n_items(self) -> int:
        """Number of items with a title."""
        return int(self.items.size)

    @property
    def longest(self) -> int:
        """Tokens of the longest title."""
        return int(self.depth[-1])

    def children(self, node: int) -> list[int]:
        """Return the tokens that may follow a node."""
        return [int(token) for token in self.token[self.first[node] : self.first[node + 1]]]

    def items_of(self, title: int) -> list[int]:
        """Return the item codes of a title."""
        return [int(item) for item in self.items[self.item_indptr[title] : self.item_indptr[title + 1]]]

    def title_values(self, values: NDArray[Any]) -> FloatArray:
        """Return the highest value among each title's items, (rows, n_titles), of (rows, n_items)."""
        highest = np.maximum.reduceat(values[:, self.items], self.item_indptr[:-1], axis=1)
        return highest.astype(np.float32)

    def node_values(self, values: FloatArray) -> FloatArray:
        """Return the highest value below each node, (rows, n_nodes), of (rows, n_titles)."""
        found = np.full((values.shape[0], self.n_nodes), -np.inf, dtype=np.float32)
        ends = np.flatnonzero(self.title >= 0)
        found[:, ends] = values[:, self.title[ends]]
        edges = np.searchsorted(self.depth, np.arange(self.longest + 2))
        for level in range(self.longest - 1, -1, -1):
            low, high = edges[level : level + 2]
            parents = low + np.flatnonzero(self.first[low + 1 : high + 1] > self.first[low:high])
            below = found[:, high : edges[level + 2]]  # all of them are children of these parents, in order
            highest = np.maximum.reduceat(below, self.first[parents] - high, axis=1)
            found[:, parents] = np.maximum(found[:, parents], highest)
        return found


def title_trie(lm: LocalLM, prompt: NextTitlePrompt, titles: Sequence[str]) -> TitleTrie:
    """Return the trie of the answers that `prompt` expects, as `lm` splits them into tokens.

    A path ends with the end-of-text token where the model has one, as in training. Items whose title
    holds no text are left out.

    Args:
        lm: The model.
        prompt: How questions and answers are written.
        titles: Title of each item code.

    Raises:
        ModelError: If the tokenizer merges the end of a prompt with the beginning of an answer.
    """
    question = prompt.question([])
    items = [item for item, title in enumerate(titles) if has_text(title)]
    return TitleTrie.build(answer_tokens(lm, question, [prompt.answer(titles[i]) for i in items]), items)


def answer_tokens(lm: LocalLM, question: str, answers: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each answer after a question, the end-of-text token included.

    Raises:
        ModelError: If question and answer do not stay apart in tokens.
    """
    from frugalrec.llm.queries import continuation_queries

    (queries,) = continuation_queries(lm, [question], [answers])
    border = 0 if lm.is_encoder_decoder else len(lm.encode([question])[0]) - 1
    end = lm.tokenizer.eos_token_id
    rows = []
    for answer, query in zip(answers, queries, strict=True):
        if query.positions[:1] != (border,):
            raise ModelError(
                f"{lm.model} does not split {question[-12:]!r} and {answer[:24]!r} where the answer begins, "
                "so titles cannot be put into a trie. Use a prompt whose end does not merge with an answer."
            )
        rows.append([*query.targets[:, 0].tolist(), *([] if end is None else [end])])
    return rows


def _distinct_rows(tokens: LongArray) -> tuple[LongArray, LongArray]:
    """Return the different rows in ascending order, and the number of each row's own among them."""
    order = np.lexsort(tokens.T[::-1])
    ordered = tokens[order]
    fresh = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    owner = np.empty(order.size, dtype=np.int64)
    owner[order] = np.cumsum(fresh) - 1
    return ordered[fresh], owner


def _nodes(rows: LongArray, sizes: LongArray) -> dict[str, LongArray]:
    """Return the node arrays of different rows in ascending order, padded with -1.

    Args:
        rows: Tokens, (n, longest).
        sizes: Length of each row, (n,).
    """
    present = rows >= 0
    differs = np.ones(rows.shape, dtype=np.bool_)
    differs[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    opens = present & differs  # this row is the first below its node at this level
    level, row = np.nonzero(opens.T)  # level by level, inside a level in the order of rows
    n = level.size + 1
    number = np.zeros(rows.shape, dtype=np.int64)  # the node that a row passes at a level
    number[row, level] = np.arange(1, n)
    number = np.maximum.accumulate(number, axis=0)
    parent = np.where(level > 0, number[row, level - 1], 0)
    title = np.full(n, -1, dtype=np.int64)
    title[number[np.arange(len(rows)), sizes - 1]] = np.arange(len(rows))
    below = np.zeros((n, 2), dtype=np.int64)
    below[0, 1] = len(rows)
    below[1:, 0] = row
    np.maximum.at(below[:, 1], number[present], np.nonzero(present)[0] + 1)
    return {
        "first": np.searchsorted(parent, np.arange(n + 1)) + 1,
        "token": np.concatenate([[-1], rows[row, level]]),
        "depth": np.concatenate([[0], level + 1]),
        "title": title,
        "below": below,
    }


def _pointers(counts: LongArray) -> LongArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
