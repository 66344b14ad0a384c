"""Beam search over a title trie: real items only, none twice, and the prompt is read once a user.

Each step takes the children of all beams of all users at once, adds their log-probabilities over the
whole vocabulary, and keeps each user's best. Titles that end leave the beams for the user's pool of
finished ones; a beam that cannot reach the pool any more is dropped, which is exact, for scores only
fall. Once all beams of a user have one title left each, their remaining tokens are read in one pass.

The score of a title is the sum of its log-probabilities (length penalty 0, as in D3, arXiv 2406.14900),
plus a value a title, if given: then a beam is judged by its score and the highest value it can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frugalrec.grounding.trie import TitleTrie
from frugalrec.ledger import Usage
from frugalrec.llm.batching import token_batches
from frugalrec.llm.tree import Logits, PromptTrees
from frugalrec.types import FloatArray, LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

MAX_LOGITS = 1 << 28
"""Logits of one pass over the last tokens of beams (1 GB in float32)."""


class TrieTensors:
    """A trie on a network's device."""

    def __init__(self, trie: TitleTrie, device: torch.device) -> None:
        self.trie = trie
        arrays = ("first", "token", "depth", "title", "below", "path_indptr", "path")
        for name in arrays:
            setattr(self, name, torch.from_numpy(getattr(trie, name)).to(device))

    first: Tensor
    token: Tensor
    depth: Tensor
    title: Tensor
    below: Tensor
    path_indptr: Tensor
    path: Tensor


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Unfinished paths of some rows (users), sorted by row, best first inside a row."""

    row: Tensor
    node: Tensor
    score: Tensor
    """Sum of log-probabilities, (n,)."""
    sees: Tensor
    """Which columns of its row's tree belong to each path, (n, columns)."""

    def take(self, which: Tensor) -> Beams:
        """Return some of them, by mask or by number."""
        return Beams(
            row=self.row[which], node=self.node[which], score=self.score[which], sees=self.sees[which]
        )


class Pool:
    """The best finished titles of each row."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self.titles = torch.full((n_rows, k), -1, device=device)
        self.scores = torch.full((n_rows, k), -torch.inf, device=device)

    @property
    def worst(self) -> Tensor:
        """The score to beat, (n_rows,)."""
        return self.scores[:, -1]

    def add(self, row: Tensor, title: Tensor, score: Tensor) -> None:
        """Take in finished titles (n,), sorted by row."""
        if not row.numel():
            return
        slot = _places(row)
        shape = (len(self.titles), int(slot.max()) + 1)
        titles = self.titles.new_full(shape, -1).index_put((row, slot), title)
        scores = self.scores.new_full(shape, -torch.inf).index_put((row, slot), score)
        scores, order = torch.cat([self.scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
        k = self.titles.shape[1]
        self.scores = scores[:, :k]
        self.titles = torch.cat([self.titles, titles], dim=1).gather(1, order[:, :k])


def search(
    lm: LocalLM,
    tensors: TrieTensors,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    beams: int,
    values: FloatArray | None = None,
) -> tuple[LongArray, FloatArray, Usage]:
    """Return the best k titles after each prompt.

    Args:
        lm: The model.
        tensors: The titles.
        prompts: Token ids of the prompts.
        k: Titles wanted a prompt; fewer come out where fewer were found.
        beams: Unfinished paths kept a prompt.
        values: What to add to the score of titles, (n_prompts or 1, n_titles); -inf rules one out.

    Returns:
        Titles, (n_prompts, k), best first, padded with -1; their scores, -inf at the padding; and the
        tokens used.
    """
    device = tensors.first.device
    shape = (len(prompts), tensors.first.numel() - 1)
    if values is None:
        titles = torch.zeros((1, 1), device=device).expand(shape)
        bounds = titles
    else:
        titles = torch.from_numpy(values).to(device).expand(len(prompts), -1)
        bounds = torch.from_numpy(tensors.trie.node_values(values)).to(device).expand(shape)
    state = _Search(tensors, titles, bounds, k, beams)
    tokens_out = state.run(lm, prompts)
    usage = Usage(tokens_in=sum(map(len, prompts)), tokens_out=tokens_out, llm_calls=len(prompts))
    return state.pool.titles.cpu().numpy(), state.pool.scores.cpu().numpy(), usage


class _Search:
    """The search for one batch of prompts; a row is a prompt's number in the batch."""

    def __init__(self, trie: TrieTensors, values: Tensor, bounds: Tensor, k: int, beams: int) -> None:
        self.trie = trie
        self.values = values
        """What to add to the score of each title, (n_prompts, n_titles)."""
        self.bounds = bounds
        """The highest of it below each node, (n_prompts, n_nodes)."""
        self.beams = beams
        self.pool = Pool(len(bounds), k, bounds.device)

    def run(self, lm: LocalLM, prompts: Sequence[Sequence[int]]) -> int:
        """Search, and return how many tokens were appended to the prompts."""
        trees, logits = PromptTrees.read(lm, prompts)
        members = torch.arange(len(prompts), device=self.bounds.device)  # the prompts that have a tree still
        start = torch.zeros(len(prompts), device=members.device)
        roots = Beams(row=members, node=members * 0, score=start, sees=start.bool()[:, None][:, :0])
        alive, used = self.expand(roots, logits), 0
        while alive.row.numel():
            alive, last = self.split(alive)
            if last.row.numel():
                used += self.finish(trees, members, last)
            if alive.row.numel():
                staying = torch.isin(members, alive.row)
                if not bool(staying.all()):
                    trees, members = trees.take(staying.nonzero()[:, 0]), members[staying]
                used += alive.row.numel()
                alive = self.expand(*self.append(trees, members, alive))
        return used

    def expand(self, beams: Beams, logits: Logits) -> Beams:
        """Follow every child of every beam: titles that end go to the pool, the best others go on."""
        trie = self.trie
        counts = trie.first[beams.node + 1] - trie.first[beams.node]
        parent = torch.repeat_interleave(counts)
        child = torch.arange(parent.numel(), device=parent.device)
        child += (trie.first[beams.node] - counts.cumsum(0) + counts)[parent]
        score = beams.score[parent] + logits.log_probabilities(parent, trie.token[child])
        row = beams.row[parent]
        self.end(row, trie.title[child], score)
        rank = score + self.bounds[row, child]
        goes_on = trie.first[child + 1] > trie.first[child]
        goes_on &= (rank >= self.pool.worst[row]) & (rank > -torch.inf)
        kept = goes_on.nonzero()[:, 0]
        kept = kept[_best(row[kept], rank[kept], self.beams)]
        return Beams(row=row[kept], node=child[kept], score=score[kept], sees=beams.sees[parent[kept]])

    def end(self, row: Tensor, title: Tensor, score: Tensor) -> None:
        """Put titles into the pool; -1 stands for a path that ends no title."""
        done = (title >= 0).nonzero()[:, 0]
        row, title, score = row[done], title[done], score[done]
        score = score + self.values[row, title]
        fits = score > -torch.inf
        self.pool.add(row[fits], title[fits], score[fits])

    def split(self, beams: Beams) -> tuple[Beams, Beams]:
        """Return the beams to go on with, and those of rows where every beam has one title left."""
        below = self.trie.below[beams.node]
        open_rows = beams.row[below[:, 1] - below[:, 0] > 1]
        goes_on = torch.isin(beams.row, open_rows)
        return beams.take(goes_on), beams.take(~goes_on)

    def append(self, trees: PromptTrees, members: Tensor, beams: Beams) -> tuple[Beams, Logits]:
        """Append each beam's last token to its tree; return the beams, and what may follow them."""
        row = torch.searchsorted(members, beams.row)
        slot = _places(row)
        width, columns = int(slot.max()) + 1, trees.columns
        shape = (len(members), width)
        tokens = members.new_zeros(shape).index_put((row, slot), self.trie.token[beams.node])
        depths = members.new_zeros(shape).index_put((row, slot), self.trie.depth[beams.node] - 1)
        sees = torch.zeros((*shape, columns + width), dtype=torch.bool, device=members.device)
        sees[:, :, columns:] = torch.eye(width, dtype=torch.bool, device=members.device)
        sees[row, slot, :columns] = beams.sees
        wanted = torch.zeros(shape, dtype=torch.bool, device=members.device)
        wanted[row, slot] = True
        logits = trees.grow(tokens, depths, sees, wanted)
        return Beams(row=beams.row, node=beams.node, score=beams.score, sees=sees[row, slot]), logits

    def finish(self, trees: PromptTrees, members: Tensor, beams: Beams) -> int:
        """Read the rest of beams that have one title left each; return how many tokens that took."""
        title = self.trie.below[beams.node, 0]
        lengths = self.trie.path_indptr[title + 1] - self.trie.path_indptr[title]
        left = lengths - self.trie.depth[beams.node]
        rows, owner = torch.unique_consecutive(beams.row, return_inverse=True)
        sizes = torch.zeros_like(rows).index_add_(0, owner, left).tolist()
        for group in token_batches(sizes, max(1, MAX_LOGITS // trees.vocabulary)):
            chosen = rows[torch.tensor(sorted(group), device=rows.device)]
            some = torch.isin(beams.row, chosen)
            # A copy, for those that go on must not see these columns; unless none goes on.
            own = trees if len(chosen) == len(members) else trees.take(torch.searchsorted(members, chosen))
            self.end(beams.row[some], title[some], self.rest(own, chosen, beams.take(some), left[some]))
        return int(sum(sizes))

    def rest(self, trees: PromptTrees, members: Tensor, beams: Beams, left: Tensor) -> Tensor:
        """Return the scores of beams with the `left` tokens of their titles, read in one pass."""
        beam = torch.repeat_interleave(left)
        step = _places(beam)
        row = torch.searchsorted(members, beams.row)[beam]
        slot = _places(row)
        title, depth = self.trie.below[beams.node, 0], self.trie.depth[beams.node]
        at = (self.trie.path_indptr[title] + depth)[beam] + step  # in `path`: the token that is scored
        shape = (len(members), int(slot.max()) + 1)
        tokens = at.new_zeros(shape).index_put((row, slot), self.trie.path[at - 1])
        depths = at.new_zeros(shape).index_put((row, slot), depth[beam] - 1 + step)
        owner = at.new_full(shape, -1).index_put((row, slot), beam)
        sees = (owner[:, :, None] == owner[:, None, :]).tril()
        older = beams.sees.new_zeros((*shape, trees.columns)).index_put((row, slot), beams.sees[beam])
        logits = trees.grow(tokens, depths, torch.cat([older, sees], dim=2), owner >= 0)
        gains = torch.zeros((len(beams.row), int(left.max())), device=at.device)
        places = torch.arange(len(at), device=at.device)
        gains[beam, step] = logits.log_probabilities(places, self.trie.path[at])
        return beams.score + gains.sum(dim=1)


def _places(row: Tensor) -> Tensor:
    """Return each entry's place among those of its row, (n,); rows must be ascending."""
    return torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)


def _best(row: Tensor, rank: Tensor, n: int) -> Tensor:
    """Return which entries are the n highest of their row: row after row, best first."""
    if not row.numel():
        return row
    slot = _places(row)
    shape = (int(row[-1]) + 1, int(slot.max()) + 1)
    grid = rank.new_full(shape, -torch.inf).index_put((row, slot), rank)
    number = row.new_full(shape, -1).index_put((row, slot), torch.arange(len(row), device=row.device))
    order = grid.sort(dim=1, descending=True, stable=True).indices[:, :n]
    chosen = number.gather(1, order).flatten()
    return chosen[chosen >= 0]
