"""Nearest grounding (BIGRec): the LLM writes a title freely, and the catalogue's nearest ones are the list.

Generated and catalogue titles are cleaned alike and embedded alike (arXiv 2308.08434); distances may be
re-weighted by popularity or another model's scores. Titles are embedded once each and distances
computed once a title, so items that share a title are exactly as far away, in order of item code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.base import Grounder, ItemValues, Progress, checked_users, item_values
from frugalrec.grounding.neighbours import ApproximateIndex, Metric, all_distances, prepared
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.grounding.reweighting import Origin
from frugalrec.ledger import Usage, measure
from frugalrec.llm.base import LanguageModel
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.prompts import clean_title
from frugalrec.llm.vectors import Embedder
from frugalrec.recommenders.base import Seen, top_k
from frugalrec.types import PAD, FloatArray, IntArray, LongArray, Ranking

Index = Literal["exact", "faiss"]

NOTHING = np.empty(0, dtype=np.int32)
UNCUT = 1 << 20
"""Characters to which titles are cut: as in `NextTitlePrompt.answer`, not at all."""


class NearestGrounder(Grounder):
    """Lists the items with the titles nearest to the one that the model writes; scores: minus distances."""

    name: ClassVar[str] = "nearest"

    def __init__(
        self,
        lm: LanguageModel,
        prompt: NextTitlePrompt,
        embedder: Embedder,
        *,
        titles: Sequence[str] | None = None,
        metric: Metric = "l2",
        weights: ItemValues | None = None,
        gamma: float = 0.0,
        origin: Origin = "nearest",
        index: Index = "exact",
        max_new_tokens: int = 48,
        users_per_batch: int = 64,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.embedder = embedder
        self.titles = titles
        """Title of each item code; default: those of the histories."""
        self.metric = metric
        """`l2` as in the paper, or `cosine`: the distance between vectors of length one."""
        self.weights = weights
        """From 0 to 1: popularity, (n_items,), or a function that returns another model's scores of users,
        (b,) -> (b, n_items), stretched by `score_weights`."""
        self.gamma = gamma
        """Strength of the weights; choose it on validation with `gamma_ranks` and `choose_gamma`."""
        self.origin = origin
        self.index = index
        """`exact`, or `faiss`: an approximate search, to try where a large catalogue makes exact slow."""
        self.max_new_tokens = max_new_tokens
        self.users_per_batch = users_per_batch
        self._catalogue: _Catalogue | None = None

    def write(
        self, histories: Dataset, users: NDArray[Any], *, progress: Progress | None = None
    ) -> tuple[list[str], Usage]:
        """Return the title that the model writes for each user, cleaned, and what that cost."""
        codes = checked_users(users, histories)
        titles = checked_titles(self.titles, histories)
        texts = questions(self.lm, self.prompt, histories, codes, titles, room=self.max_new_tokens)
        written: list[str] = []
        usage = Usage()
        for start in range(0, len(texts), self.users_per_batch):
            some = texts[start : start + self.users_per_batch]
            completions, spent = self.lm.generate(some, max_new_tokens=self.max_new_tokens)
            written += [first_line(completion.text) for completion in completions]
            usage = usage + spent
            if progress is not None:
                progress(len(written), len(texts))
        return written, usage

    def distances(self, histories: Dataset, written: Sequence[str]) -> FloatArray:
        """Return how far each item is from each written title, (n, n_items) float32, not re-weighted.

        Items whose title holds no text are infinitely far away.
        """
        return self._embedded(histories).distances(self._queries(written))

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        if self.index not in ("exact", "faiss"):
            raise ConfigError(f"index must be exact or faiss, not {self.index!r}.")
        written, usage = self.write(histories, users, progress=progress)
        items = np.full((users.size, k), PAD, dtype=np.int32)
        scores = np.full((users.size, k), -np.inf, dtype=np.float32)
        with measure() as meter:
            catalogue, queries = self._embedded(histories), self._queries(written)
            for start in range(0, users.size, self.users_per_batch):
                rows = slice(start, start + self.users_per_batch)
                weights = self._weights(users[rows], histories.n_items)
                skip = [histories.history(int(u)) if seen == "exclude" else NOTHING for u in users[rows]]
                search = self._exact if self.index == "exact" else self._approximate
                found, values = search(catalogue, queries[rows], weights, skip, k)
                items[rows, : found.shape[1]], scores[rows, : found.shape[1]] = found, values
        return Ranking(users=users, items=items, scores=scores), usage + meter.usage

    def _exact(
        self,
        catalogue: _Catalogue,
        queries: FloatArray,
        weights: NDArray[Any],
        skip: Sequence[IntArray],
        k: int,
    ) -> tuple[IntArray, FloatArray]:
        far = catalogue.distances(queries).astype(np.float64)
        for row, items in zip(far, skip, strict=True):
            row[items] = np.inf
        nearest = self._nearest(far)
        return top_k(-self._moved(far - nearest[:, None], weights).astype(np.float32), k)

    def _approximate(
        self,
        catalogue: _Catalogue,
        queries: FloatArray,
        weights: NDArray[Any],
        skip: Sequence[IntArray],
        k: int,
    ) -> tuple[IntArray, FloatArray]:
        """As `_exact`, from the nearest titles: as many as the weights could still lift into the list."""
        if catalogue.index is None:
            catalogue.index = ApproximateIndex(catalogue.vectors)
        items = np.full((len(queries), k), PAD, dtype=np.int32)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        open_rows, n = np.arange(len(queries)), 2 * k
        while open_rows.size:
            n = min(n, catalogue.index.size)
            far, titles = catalogue.index.search(queries[open_rows], n)
            left = []
            for row, own, numbers in zip(open_rows, far, titles, strict=True):
                item, source = catalogue.items_of(numbers)
                allowed = ~np.isin(item, skip[int(row)])
                item, distance = item[allowed], own[source[allowed]].astype(np.float64)
                nearest = self._nearest(distance[None])[0]
                moved = self._moved(distance - nearest, weights[row][item])
                order = np.lexsort((item, moved))[:k]
                items[row, : order.size], scores[row, : order.size] = item[order], -moved[order]
                # No title farther than the last one found can come nearer than this.
                bound = (float(own[-1]) - nearest) * 2.0**-self.gamma
                if order.size < k or moved[order[-1]] > bound:
                    left.append(row)
            open_rows = np.array(left if n < catalogue.index.size else [], dtype=np.int64)
            n *= 4
        return items, scores

    def _nearest(self, distances: NDArray[Any]) -> NDArray[Any]:
        """Return what counts as distance 0, (n,); re-weighting does not ask for the farthest: a scale."""
        if not self.gamma or self.origin == "zero":
            return np.zeros(len(distances))
        low: NDArray[Any] = distances.min(axis=1, initial=np.inf)
        return np.where(np.isfinite(low), low, 0.0)

    def _moved(self, distances: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        """Return re-weighted distances."""
        moved: NDArray[Any] = distances * (1.0 + weights) ** -self.gamma if self.gamma else distances
        return moved

    def _queries(self, written: Sequence[str]) -> FloatArray:
        return prepared(self.embedder.embed(list(written)), self.metric)

    def _weights(self, users: IntArray, n_items: int) -> NDArray[Any]:
        """Return the weights of some users, (n, n_items); zeros where there are none."""
        if not 0 <= self.gamma < np.inf:
            raise ConfigError(f"gamma must be a number of at least 0, not {self.gamma}.")
        if self.gamma and self.weights is None:
            raise ConfigError(f"gamma is {self.gamma}, but there are no weights; give weights, or gamma 0.")
        weights = np.zeros(n_items) if self.weights is None else self.weights
        found = item_values("weights", weights, users, n_items)
        if not ((found >= 0) & (found <= 1)).all():
            raise DataError("weights must lie between 0 and 1; stretch them with score_weights.")
        return np.broadcast_to(found, (users.size, n_items))

    def _embedded(self, histories: Dataset) -> _Catalogue:
        titles = [title and clean_title(title, UNCUT) for title in checked_titles(self.titles, histories)]
        if self._catalogue is None or self._catalogue.titles != titles:
            self._catalogue = _Catalogue(titles, self.embedder, self.metric)
        return self._catalogue


class _Catalogue:
    """Vectors of the different titles, and which items have them; an empty title is none."""

    def __init__(self, titles: list[str], embedder: Embedder, metric: Metric) -> None:
        self.titles = titles
        distinct = sorted(set(titles) - {""})
        number = {"": -1} | {title: n for n, title in enumerate(distinct)}
        self.vectors = prepared(embedder.embed(distinct), metric)
        self.title_of_item = np.array([number[title] for title in titles], dtype=np.int64)
        self.indptr = np.searchsorted(np.sort(self.title_of_item), np.arange(len(distinct) + 1))
        self.items = np.argsort(self.title_of_item, kind="stable").astype(np.int32)
        self.index: ApproximateIndex | None = None

    def distances(self, queries: FloatArray) -> FloatArray:
        """Return how far each item is from each query, (n, n_items); +inf without a title."""
        found = all_distances(queries, self.vectors)[:, self.title_of_item]
        found[:, self.title_of_item < 0] = np.inf
        return found

    def items_of(self, titles: LongArray) -> tuple[IntArray, LongArray]:
        """Return the items of some titles, (m,), and the place of each one's title; -1 has none."""
        counts = np.where(titles >= 0, self.indptr[titles + 1] - self.indptr[titles], 0)
        source = np.repeat(np.arange(titles.size), counts)
        step = np.arange(source.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.items[self.indptr[titles[source]] + step], source


def first_line(text: str) -> str:
    r"""Return the first line of what a model wrote that is not blank, cleaned as titles are.

    >>> first_line(' \n "Quake  II"\nNext game: Doom')
    '"Quake II"'
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return clean_title(lines[0] if lines else "", UNCUT)
