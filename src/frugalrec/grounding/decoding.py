"""Trie grounding: the LLM writes titles, but only titles of the catalogue; its beams are the list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding.base import Grounder, ItemValues, Progress, item_values
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.grounding.trie import TitleTrie, title_trie
from frugalrec.ledger import Usage
from frugalrec.llm.batching import token_batches
from frugalrec.llm.prefix import attention_window
from frugalrec.recommenders.base import Seen
from frugalrec.types import PAD, FloatArray, IntArray, LongArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt

COLUMNS = 10
"""Tokens that a beam appends to the cache, roughly: what batches are made by."""


class TrieGrounder(Grounder):
    """Lists the titles that the model finds likeliest, by beam search over a trie of all titles.

    An item's score is the log-probability (nats) of its title after the user's prompt, plus a prior if
    there is one. Items that share a title share its log-probability; ties are in order of item code.
    """

    name: ClassVar[str] = "trie"

    def __init__(
        self,
        lm: LocalLM,
        prompt: NextTitlePrompt,
        *,
        beams: int = 20,
        titles: Sequence[str] | None = None,
        prior: ItemValues | None = None,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.beams = beams
        """Unfinished titles kept a user; titles that end on the way are all kept."""
        self.titles = titles
        """Title of each item code; default: those of the histories."""
        self.prior = prior
        """What to add to log-probabilities: log-popularity, (n_items,), or a function that returns another
        model's scores of users, (b,) -> (b, n_items). It guides the search; -inf rules an item out."""
        self._trie: tuple[list[str], TitleTrie] | None = None
        self._checked = False

    def trie(self, histories: Dataset) -> TitleTrie:
        """Return the trie of all titles; it is built once a catalogue."""
        titles = checked_titles(self.titles, histories)
        if self._trie is None or self._trie[0] != titles:
            self._trie = (titles, title_trie(self.lm, self.prompt, titles))
        return self._trie[1]

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        from frugalrec.grounding.beam import TrieTensors, search

        if self.beams < 1:
            raise ConfigError(f"beams must be at least 1, not {self.beams}.")
        items = np.full((users.size, k), PAD, dtype=np.int32)
        scores = np.full((users.size, k), -np.inf, dtype=np.float32)
        with self.lm._running() as meter:
            self._check()
            trie = self.trie(histories)
            prompts = self._prompts(histories, users, trie)
            tensors = TrieTensors(trie, self.lm.network.device)
            done = 0
            held = [len(p) + COLUMNS * self.beams for p in prompts]
            for batch in token_batches(held, self.lm.max_batch_tokens):
                values = self._values(histories, users[batch], seen)
                of_titles = None if values is None else trie.title_values(values)
                titles, found, usage = search(
                    self.lm, tensors, [prompts[b] for b in batch], k=k, beams=self.beams, values=of_titles
                )
                items[batch], scores[batch] = spread(trie, titles, found, values, of_titles)
                meter.add(usage)
                progress(done := done + len(batch), users.size)
        return Ranking(users=users, items=items, scores=scores), self.lm._spent(meter.usage)

    def _check(self) -> None:
        """Find out once whether the network can read trees of tokens."""
        if not self._checked:
            from frugalrec.llm.tree import check_trees

            check_trees(self.lm)
            self._checked = True

    def _prompts(self, histories: Dataset, users: IntArray, trie: TitleTrie) -> list[list[int]]:
        titles = checked_titles(self.titles, histories)
        texts = questions(self.lm, self.prompt, histories, users, titles, room=trie.longest)
        prompts = self.lm.encode(texts)
        longest = max(map(len, prompts), default=0) + trie.longest
        window = attention_window(self.lm.network)
        if longest > window:
            raise ModelError(
                f"prompt and title take up to {longest:,} tokens, but some layers of {self.lm.model} look "
                f"back {window:,} only. Give a prompt with a smaller window or max_title_chars."
            )
        if not self.lm.is_encoder_decoder:
            self._check_border(texts, prompts, self.prompt.answer(titles[trie.items_of(0)[0]]), trie)
        return prompts

    def _check_border(
        self, texts: Sequence[str], prompts: Sequence[Sequence[int]], answer: str, trie: TitleTrie
    ) -> None:
        """See that the trie's first title is split after each prompt as it is in the trie."""
        path = trie.path[: trie.path_indptr[1]].tolist()
        both = self.lm.encode([text + answer for text in texts])
        for text, own, whole in zip(texts, prompts, both, strict=True):
            if whole != [*own, *path][: len(whole)]:
                raise ModelError(
                    f"{self.lm.model} splits the answer {answer[:24]!r} otherwise after {text[-24:]!r} "
                    "than after an empty history. Use a prompt whose end does not merge with the answer."
                )

    def _values(self, histories: Dataset, users: IntArray, seen: Seen) -> FloatArray | None:
        """Return what to add to each item's score, (n_users or 1, n_items), or None for nothing."""
        if self.prior is None and seen == "include":
            return None
        prior = np.zeros(histories.n_items) if self.prior is None else self.prior
        rows = 1 if seen == "include" and not callable(prior) else users.size
        found = item_values("prior", prior, users, histories.n_items)
        values = np.broadcast_to(found, (rows, histories.n_items)).astype(np.float32)  # a copy
        if not (values < np.inf).all():
            raise DataError("the prior holds NaN or +inf; give finite numbers, or -inf to rule an item out.")
        if seen == "exclude":
            for row, user in zip(values, users, strict=True):
                row[histories.history(int(user))] = -np.inf
        return values


def spread(
    trie: TitleTrie,
    titles: LongArray,
    scores: FloatArray,
    values: FloatArray | None = None,
    title_values: FloatArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Return the best items of some titles, and their scores; ties in order of item code.

    Args:
        trie: Knows the items of each title.
        titles: Titles, (n, k), padded with -1.
        scores: Their scores, (n, k), with `title_values` in them.
        values: What was to be added to items' scores, (n or 1, n_items); -inf leaves an item out.
        title_values: The highest of them a title, (n or 1, n_titles).

    Returns:
        Items, (n, k), padded with -1, and scores, (n, k), -inf at the padding.
    """
    n, k = titles.shape
    row, column = np.nonzero(titles >= 0)
    title, score = titles[row, column], scores[row, column]
    if values is not None and title_values is not None:
        values, title_values = (np.broadcast_to(part, (n, part.shape[1])) for part in (values, title_values))
        score = score - title_values[row, title]
    counts = trie.item_indptr[title + 1] - trie.item_indptr[title]
    source = np.repeat(np.arange(title.size), counts)
    step = np.arange(source.size) - np.repeat(np.cumsum(counts) - counts, counts)
    row, score = row[source], score[source]
    item = trie.items[trie.item_indptr[title][source] + step]
    if values is not None:
        score = score + values[row, item]
    order = np.lexsort((item, -score, row))
    row, item, score = row[order], item[order], score[order]
    place = np.arange(row.size) - np.searchsorted(row, row)
    kept = (place < k) & (score > -np.inf)
    items = np.full((n, k), PAD, dtype=np.int32)
    found = np.full((n, k), -np.inf, dtype=np.float32)
    items[row[kept], place[kept]], found[row[kept], place[kept]] = item[kept], score[kept]
    return items, found
