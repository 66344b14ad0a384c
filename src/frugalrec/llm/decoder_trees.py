"""Many answers to one prompt in one pass of a decoder: a tree of tokens over encoder states read once.

Answers that begin alike share the tokens of their beginning, and all of them attend to the same states, so
that keys and values of cross-attention are computed once a prompt instead of once an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frugalrec.llm.prefix import additive_mask
from frugalrec.llm.scoring import Query, gathered_logits, padded, pick
from frugalrec.llm.tree import Logits, relative_positions
from frugalrec.types import BoolArray, FloatArray, LongArray


class DecoderTree:
    """The decoder inputs of some queries about one prompt, common beginnings once."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        """Number of the token before each one, -1 at the start."""
        self.depths: list[int] = []
        self.places: list[list[int]] = []
        """The token that each query reads at each of its positions."""
        known: dict[tuple[int, int], int] = {}
        for query in queries:
            node, path = -1, []
            for depth, token in enumerate(query.decoder):
                if (node, token) not in known:
                    known[node, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(node)
                    self.depths.append(depth)
                node = known[node, token]
                path.append(node)
            self.places.append([path[position] for position in query.positions])

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def read(self) -> list[int]:
        """The tokens whose successors matter, ascending."""
        return sorted({place for places in self.places for place in places})

    def sees(self) -> BoolArray:
        """Return who attends to whom: each token to itself and to those on its way, (n, n)."""
        seen = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def score_trees(
    network: Any, pad: int, texts: Sequence[Sequence[int]], queries: Sequence[Sequence[Query]]
) -> list[list[FloatArray]]:
    """Return, per text and query, log-probabilities (n_positions, n_targets).

    Args:
        network: An encoder-decoder.
        pad: The token that fills short rows.
        texts: Token ids that the encoder reads, each once.
        queries: What to read about each text.
    """
    from transformers.modeling_outputs import BaseModelOutput

    trees = [DecoderTree(own) for own in queries]
    ids, mask = padded(texts, pad, network.device)
    states = network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    tokens, _ = padded([tree.tokens for tree in trees], pad, network.device)
    depths, _ = padded([tree.depths for tree in trees], 0, network.device)
    sees = np.broadcast_to(
        np.eye(tokens.shape[1], dtype=np.bool_), (len(trees), *[tokens.shape[1]] * 2)
    ).copy()
    for row, tree in enumerate(trees):
        sees[row, : len(tree), : len(tree)] = tree.sees()
    where = [(row, node) for row, tree in enumerate(trees) for node in tree.read]
    with (
        gathered_logits(network, [row for row, _ in where], [node for _, node in where]) as hidden,
        relative_positions(network, depths, depths),
    ):
        values = network(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=tokens,
            decoder_attention_mask=additive_mask(sees, network.dtype, network.device),
            use_cache=False,
        ).logits[0]
    place = {key: number for number, key in enumerate(where)}
    logits = Logits(values, hidden[0], network.get_output_embeddings())
    return [
        _taken(logits, [[place[row, node] for node in path] for path in tree.places], own)
        for row, (tree, own) in enumerate(zip(trees, queries, strict=True))
    ]


def score_apart(
    network: Any, pad: int, texts: Sequence[Sequence[int]], queries: Sequence[Sequence[Query]]
) -> list[list[FloatArray]]:
    """Return, per text and query, log-probabilities (n_positions, n_targets); a decoder row a query."""
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = padded(texts, pad, network.device)
    states = network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    owner = torch.tensor([row for row, own in enumerate(queries) for _ in own], device=network.device)
    asked = [query for own in queries for query in own]
    decoder, _ = padded([query.decoder for query in asked], pad, network.device)
    where = [(row, position) for row, query in enumerate(asked) for position in query.positions]
    with gathered_logits(network, [r for r, _ in where], [c for _, c in where]) as hidden:
        logits = network(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[owner]),
            attention_mask=mask[owner],
            decoder_input_ids=decoder,
            use_cache=False,
        ).logits[0]
    head = network.get_output_embeddings()
    values = iter(pick(logits, [query.targets for query in asked], hidden[0], head))
    return [[next(values) for _ in own] for own in queries]


def reads_trees(network: Any, pad: int) -> bool:
    """Return whether a network's decoder gives for a tree what it gives for its branches one by one."""
    ends = ((1, 8, 6, 3), (1, 8, 10), (1, 3))
    every = np.arange(network.get_output_embeddings().weight.shape[0], dtype=np.int64)[None]
    asked = [Query(tokens=(), positions=(len(end) - 1,), targets=every, decoder=end) for end in ends]
    texts = [(5, 9, 3, 7, 11, 4), (5, 9)]
    try:
        with torch.no_grad():
            tree, whole = (
                [values for own in score(network, pad, texts, [asked, asked]) for values in own]
                for score in (score_trees, score_apart)
            )
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError):
        return False
    tolerance = 1e-3 if network.dtype == torch.float32 else 0.1
    return bool(max(np.abs(t - w).mean() / w.std() for t, w in zip(tree, whole, strict=True)) <= tolerance)


def _taken(logits: Logits, places: Sequence[Sequence[int]], queries: Sequence[Query]) -> list[FloatArray]:
    """Return the log-probabilities of each query's targets; `places` are rows of `logits`."""
    widths = [query.targets.shape for query in queries]
    at: LongArray = np.concatenate(
        [np.repeat(path, width).astype(np.int64) for path, (_, width) in zip(places, widths, strict=True)]
    )
    tokens = np.concatenate([query.targets.reshape(-1) for query in queries])
    device = logits.values.device
    found = logits.log_probabilities(torch.from_numpy(at).to(device), torch.from_numpy(tokens).to(device))
    parts = np.split(found.cpu().numpy(), np.cumsum([height * width for height, width in widths])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, widths, strict=True)]
