"""Candidate grounding: a given list's items, in the order of their exact log-probabilities.

Every candidate's tokens are read, none is searched for: one pass for all of a user's, over a prompt that is
computed once. With a list of a hundred this finds what no number of beams finds for sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.grounding.base import Grounder, Progress
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.grounding.trie import TitleTrie, title_trie
from frugalrec.ledger import Usage
from frugalrec.recommenders.base import Seen
from frugalrec.types import PAD, IntArray, LongArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt
    from frugalrec.llm.scoring import Query


class CandidateGrounder(Grounder):
    """Orders each user's candidates by the log-probability (nats) of their tokens after the prompt.

    Scores are those of `TrieGrounder`, and of `TitleLikelihood`, which takes any language model and
    remembers answers; items of one text share them, ties are in order of item code.
    """

    name: ClassVar[str] = "candidates"

    def __init__(
        self,
        lm: LocalLM,
        prompt: NextTitlePrompt,
        candidates: Callable[[IntArray], NDArray[Any]],
        *,
        titles: Sequence[str] | None = None,
        trie: TitleTrie | None = None,
        users_per_batch: int = 8,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.candidates = candidates
        """Users, (b,) -> their candidates' item codes, (b, any number), padded with -1."""
        self.titles = titles
        """Title of each item code; default: those of the histories."""
        self.trie = trie
        """Tokens of each item, the end included, such as item ids; default: those of the titles."""
        self.users_per_batch = users_per_batch
        self._tries: tuple[list[str], TitleTrie] | None = None

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        titles = checked_titles(self.titles, histories)
        trie = self._trie(titles)
        title_of = np.full(histories.n_items, -1, dtype=np.int64)
        title_of[trie.items] = np.repeat(np.arange(trie.n_titles), np.diff(trie.item_indptr))
        texts = questions(self.lm, self.prompt, histories, users, titles, room=trie.longest)
        items = np.full((users.size, k), PAD, dtype=np.int32)
        scores = np.full((users.size, k), -np.inf, dtype=np.float32)
        usage = Usage()
        for start in range(0, users.size, self.users_per_batch):
            rows = range(start, min(start + self.users_per_batch, users.size))
            asked = self._asked(users[rows.start : rows.stop], histories, seen, title_of)
            found, spent = self._scores([texts[row] for row in rows], [title_of[own] for own in asked], trie)
            usage = usage + spent
            for row, own, values in zip(rows, asked, found, strict=True):
                order = np.lexsort((own, -values))[:k]
                items[row, : order.size], scores[row, : order.size] = own[order], values[order]
            progress(rows.stop, users.size)
        return Ranking(users=users, items=items, scores=scores), usage

    def _trie(self, titles: list[str]) -> TitleTrie:
        if self.trie is not None:
            return self.trie
        if self._tries is None or self._tries[0] != titles:
            self._tries = (titles, title_trie(self.lm, self.prompt, titles))
        return self._tries[1]

    def _asked(self, users: IntArray, histories: Dataset, seen: Seen, title_of: LongArray) -> list[LongArray]:
        """Return the candidates of each user that have a text and are wanted, each once."""
        given = np.asarray(self.candidates(users))
        if given.ndim != 2 or len(given) != users.size or not _inside(given, histories.n_items):
            raise DataError(
                f"candidates for {users.size} users must be item codes below {histories.n_items}, one row a "
                f"user, padded with -1; got {given.shape} with codes from {given.min(initial=PAD)} to "
                f"{given.max(initial=PAD)}."
            )
        found = []
        for user, row in zip(users, given, strict=True):
            own = np.unique(row[row != PAD]).astype(np.int64)
            own = own[title_of[own] >= 0]
            if seen == "exclude":
                own = own[~np.isin(own, histories.history(int(user)))]
            found.append(own)
        return found

    def _scores(
        self, texts: Sequence[str], titles: Sequence[LongArray], trie: TitleTrie
    ) -> tuple[list[NDArray[Any]], Usage]:
        """Return the log-probability of each user's titles; namesakes are read once."""
        distinct = [np.unique(own) for own in titles]
        groups = [
            [answer_query(self.lm, prompt, _path(trie, int(title))) for title in own]
            for prompt, own in zip(self.lm.encode(texts), distinct, strict=True)
        ]
        values, usage = self.lm._score(groups)
        sums = [np.array([v.sum() for v in own], dtype=np.float32) for own in values]
        places = [np.searchsorted(some, own) for some, own in zip(distinct, titles, strict=True)]
        return [total[place] for total, place in zip(sums, places, strict=True)], usage


def answer_query(lm: LocalLM, prompt: Sequence[int], answer: Sequence[int]) -> Query:
    """Return a query that reads every token of an answer after a prompt, both as token ids."""
    from frugalrec.llm.queries import decoder_start
    from frugalrec.llm.scoring import Query

    targets = np.array(answer, dtype=np.int64)[:, None]
    if lm.is_encoder_decoder:
        decoder = (decoder_start(lm), *answer[:-1])
        return Query(
            tokens=tuple(prompt), positions=tuple(range(len(answer))), targets=targets, decoder=decoder
        )
    first = len(prompt) - 1
    places = tuple(range(first, first + len(answer)))
    return Query(tokens=(*prompt, *answer[:-1]), positions=places, targets=targets)


def _path(trie: TitleTrie, title: int) -> list[int]:
    return trie.path[trie.path_indptr[title] : trie.path_indptr[title + 1]].tolist()  # type: ignore[no-any-return]


def _inside(codes: IntArray, n_items: int) -> bool:
    """Return whether all codes are items', or padding."""
    return bool(codes.min(initial=PAD) >= PAD and codes.max(initial=PAD) < n_items)
