"""Log-probabilities out of a causal or an encoder-decoder network, in token-budget batches.

A `Query` names positions of one prompt and the tokens whose log-probability is wanted there. Only
the hidden states of these positions reach the output layer: with a small model and a large
vocabulary that layer would else cost as much as many of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frugalrec.ledger import Usage
from frugalrec.llm import prefix
from frugalrec.llm.batching import token_batches
from frugalrec.types import FloatArray, LongArray

MAX_ROW = 2048
"""The longest packed row that is built on purpose; its attention costs grow with the square."""
MASK_BUDGET = 1 << 26
"""Entries of a dense attention mask (256 MB in float32)."""
LOGITS_PER_TOKEN = 1 << 15
"""Logits that weigh as much as one token in a batch's budget: 8192 tokens allow 1 GB of them."""
FINER = 1 << 14
"""Logits that are summed in float32 at a time: each takes a row of the output layer."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One prompt, where to read in it, and what to read there."""

    tokens: tuple[int, ...]
    """Token ids of the whole text (a causal network) or of the encoder's text."""
    positions: tuple[int, ...]
    """Read the distribution of the token after each of these positions (of `tokens`, or of `decoder`)."""
    targets: LongArray
    """Token ids, (n_positions, n_targets)."""
    decoder: tuple[int, ...] = ()
    """Token ids that an encoder-decoder network's decoder is given."""


@contextmanager
def gathered_logits(
    network: Any, rows: Sequence[int] | torch.Tensor, columns: Sequence[int] | torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """Let the network compute logits, (1, n, vocabulary), at n places of its (row, column) grid only.

    Yields a list that will hold the hidden states, (n, width), which went into the output layer.
    """
    seen: list[torch.Tensor] = []
    where = (torch.as_tensor(rows), torch.as_tensor(columns))

    def gather(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0][where[0].to(inputs[0].device), where[1].to(inputs[0].device)]
        seen.append(hidden)
        return (hidden[None], *inputs[1:])

    handle = network.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield seen
    finally:
        handle.remove()


class CausalScorer:
    """Scores queries with a decoder-only network; shared prefixes are computed once where that is exact."""

    def __init__(self, network: Any, *, pad: int, max_batch_tokens: int, share_prefix: bool = True) -> None:
        self.network = network
        self.pad = pad
        self.max_batch_tokens = max_batch_tokens
        self.share_prefix = share_prefix
        self._exact: bool | None = None

    def score(self, groups: Sequence[Sequence[Query]]) -> tuple[list[list[FloatArray]], Usage]:
        """Return, per group and query, log-probabilities (n_positions, n_targets), and the tokens used."""
        rows: list[tuple[int, prefix.Row]] = []
        for g, group in enumerate(groups):
            prompts = [query.tokens for query in group]
            rows += [(g, row) for row in self._pack(prompts)]
        vocabulary = self.network.get_output_embeddings().weight.shape[0]
        weights = []
        for g, row in rows:
            reads = sum(len(groups[g][m].positions) for m in row.members)
            weights.append(max(row.length, -(-reads * vocabulary // LOGITS_PER_TOKEN)))
        results: list[list[FloatArray]] = [[np.empty(0, np.float32)] * len(group) for group in groups]
        for batch in token_batches(weights, self.max_batch_tokens, quadratic=MASK_BUDGET):
            self._score_batch([rows[b] for b in batch], groups, results)
        computed = sum(row.length for _, row in rows)
        asked = sum(len(query.tokens) for group in groups for query in group)
        calls = sum(map(len, groups))
        return results, Usage(tokens_in=computed, tokens_cached=asked - computed, llm_calls=calls)

    def _pack(self, prompts: Sequence[Sequence[int]]) -> list[prefix.Row]:
        plain = [prefix.Row(prefix=(), suffixes=(tuple(p),), members=(i,)) for i, p in enumerate(prompts)]
        window = prefix.attention_window(self.network)
        if len(prompts) < 2 or not self.share_prefix or max(map(len, prompts)) > window:
            return plain
        return prefix.pack(prompts, max_row=MAX_ROW) if self.shares_exactly() else plain

    def _score_batch(
        self,
        rows: Sequence[tuple[int, prefix.Row]],
        groups: Sequence[Sequence[Query]],
        results: list[list[FloatArray]],
    ) -> None:
        where: list[tuple[int, int]] = []
        wanted: list[LongArray] = []
        for r, (g, row) in enumerate(rows):
            for s, member in enumerate(row.members):
                query = groups[g][member]
                where += [(r, column) for column in row.columns(s, query.positions)]
                wanted.append(query.targets)
        inputs = self._inputs([row for _, row in rows])
        with gathered_logits(self.network, [r for r, _ in where], [c for _, c in where]) as hidden:
            logits = self.network(**inputs, use_cache=False).logits[0]
        values = pick(logits, wanted, hidden[0], self.network.get_output_embeddings())
        places = [(g, member) for g, row in rows for member in row.members]
        for (g, member), value in zip(places, values, strict=True):
            results[g][member] = value

    def _inputs(self, rows: Sequence[prefix.Row]) -> dict[str, torch.Tensor]:
        device, dtype = self.network.device, self.network.dtype
        if all(len(row.suffixes) == 1 for row in rows):
            lengths = torch.tensor([row.length for row in rows])
            width = int(lengths.max())
            ids = torch.full((len(rows), width), self.pad)
            for r, row in enumerate(rows):
                ids[r, : row.length] = torch.tensor(row.prefix + row.suffixes[0])
            mask = torch.arange(width)[None] < lengths[:, None]
            return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
        tokens, positions, sees = prefix.layout(rows, self.pad)
        return {
            "input_ids": torch.from_numpy(tokens).to(device),
            "position_ids": torch.from_numpy(positions).to(device),
            "attention_mask": prefix.additive_mask(sees, dtype, device),
        }

    def shares_exactly(self) -> bool:
        """Try a tiny tree once: networks whose layers ignore masks or positions are found out here."""
        if self._exact is None:
            self._exact = self._try_tree()
        return self._exact

    def _try_tree(self) -> bool:
        prompts = [[5, 9, 3, 7, 11, 4, 8, 6], [5, 9, 3, 7, 11, 10, 12, 3, 2]]
        rows = prefix.pack(prompts, max_row=64)
        try:
            with torch.no_grad():
                tree = self.network(**self._inputs(rows), use_cache=False).logits[0].float()
                whole = [
                    self.network(torch.tensor([p]).to(tree.device)).logits[0, -1].float() for p in prompts
                ]
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            return False
        tolerance = 1e-3 if self.network.dtype == torch.float32 else 0.1
        ends = [rows[0].columns(s, [len(p) - 1])[0] for s, p in enumerate(prompts)]
        errors = [float((tree[e] - w).abs().mean() / w.std()) for e, w in zip(ends, whole, strict=True)]
        return max(errors) <= tolerance


class Seq2SeqScorer:
    """Scores queries with an encoder-decoder network; each distinct encoder text is read once.

    All queries about a text are one tree of decoder tokens, where the network can read trees.
    """

    def __init__(self, network: Any, *, pad: int, max_batch_tokens: int) -> None:
        self.network = network
        self.pad = pad
        self.max_batch_tokens = max_batch_tokens
        self._exact: bool | None = None

    def score(self, groups: Sequence[Sequence[Query]]) -> tuple[list[list[FloatArray]], Usage]:
        """Return, per group and query, log-probabilities (n_positions, n_targets), and the tokens used."""
        from frugalrec.llm.decoder_trees import DecoderTree, score_apart, score_trees

        texts: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for g, group in enumerate(groups):
            for q, query in enumerate(group):
                texts.setdefault(query.tokens, []).append((g, q))
        keys = list(texts)
        queries = [[groups[g][q] for g, q in texts[key]] for key in keys]
        shared = bool(keys) and self.shares_exactly()
        trees = [DecoderTree(own) for own in queries] if shared else []
        decoded = sum(map(len, trees)) if shared else sum(len(q.decoder) for own in queries for q in own)
        results: list[list[FloatArray]] = [[np.empty(0, np.float32)] * len(group) for group in groups]
        for batch in token_batches(self._weights(keys, queries), self.max_batch_tokens):
            score = score_trees if shared else score_apart
            found = score(self.network, self.pad, [keys[b] for b in batch], [queries[b] for b in batch])
            for b, own in zip(batch, found, strict=True):
                for (g, q), values in zip(texts[keys[b]], own, strict=True):
                    results[g][q] = values
        asked = sum(len(query.tokens) for group in groups for query in group)
        read = sum(map(len, keys))
        calls = sum(map(len, groups))
        return results, Usage(tokens_in=read + decoded, tokens_cached=asked - read, llm_calls=calls)

    def shares_exactly(self) -> bool:
        """Try a tiny tree once: networks whose decoders ignore masks or positions are found out here."""
        if self._exact is None:
            from frugalrec.llm.decoder_trees import reads_trees

            self._exact = reads_trees(self.network, self.pad)
        return self._exact

    def _weights(self, texts: Sequence[Sequence[int]], queries: Sequence[Sequence[Query]]) -> list[int]:
        vocabulary = self.network.get_output_embeddings().weight.shape[0]
        weights = []
        for text, own in zip(texts, queries, strict=True):
            read = sum(len(query.positions) for query in own)
            decoded = sum(len(query.decoder) for query in own)
            weights.append(max(len(text) + decoded, -(-read * vocabulary // LOGITS_PER_TOKEN)))
        return weights


def padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and their mask, (n, longest) each; padding stands on the right."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def pick(
    logits: torch.Tensor, wanted: Sequence[LongArray], hidden: torch.Tensor, head: Any
) -> list[FloatArray]:
    """Return log-softmax values of the wanted tokens; row i of the stacked `wanted` reads logits row i.

    Args:
        logits: Unnormalised scores, (n, vocabulary), in the network's type; summed in float32.
        wanted: Token ids, each (n_positions, n_targets), positions adding up to n.
        hidden: What went into the output layer, (n, width).
        head: The output layer.
    """
    normaliser = torch.logsumexp(logits.float(), dim=-1)[:, None]
    values = []
    start = 0
    for targets in wanted:
        rows = slice(start, start + targets.shape[0])
        columns = torch.from_numpy(targets).to(logits.device)
        raw = torch.gather(logits[rows], 1, columns).float()
        if logits.dtype != torch.float32:
            places = torch.arange(start, rows.stop, device=logits.device).repeat_interleave(columns.shape[1])
            raw = finer(raw.flatten(), hidden, head, places, columns.flatten()).view_as(raw)
        values.append((raw - normaliser[rows]).cpu().numpy().astype(np.float32))
        start = rows.stop
    return values


def finer(
    raw: torch.Tensor, hidden: torch.Tensor, head: Any, places: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Return logits as float32 sums instead of numbers rounded to half precision, (m,).

    A bfloat16 logit of 16 comes in steps of 1/8, so many candidates of a user would tie. A network
    that scales or caps its logits after the output layer, or has an adapter on it, keeps its own.

    Args:
        raw: The rounded ones, (m,) float32.
        hidden: What went into the output layer, (n, width).
        head: The output layer.
        places: Rows of `hidden`, (m,).
        tokens: Token ids, (m,).
    """
    pieces = []
    for at, token in zip(torch.split(places, FINER), torch.split(tokens, FINER), strict=True):
        piece = (hidden[at].float() * head.weight[token].float()).sum(dim=-1)
        bias = getattr(head, "bias", None)
        pieces.append(piece if bias is None else piece + bias[token].float())
    exact = torch.cat(pieces)
    same = bool(((exact - raw).abs() <= 0.01 * raw.abs() + 0.01).all())
    return exact if same else raw
