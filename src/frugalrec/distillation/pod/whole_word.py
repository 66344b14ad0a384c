"""Whole-word embeddings: which tokens belong to one user or item, as vectors added to a prompt's tokens.

After P5 and POD: the tokens of the k-th entity of a prompt get row k of a table, all other tokens row 0. So
the rows say where an entity stands, not which one it is. Here row 0 is fixed at zero, and only the prompt
gets rows: what is generated does not, in training and in inference alike. The rows are found from token
ids, so that scoring, beams and batches read them too; exported models cannot have them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from frugalrec.errors import ConfigError, ModelError
from frugalrec.rng import generator

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

MAX_ENTITIES = 512


def published_spans(tokens: Sequence[str]) -> list[int]:
    """Return the row of each token by the rule of P5 and POD: a ``_``, the token before, digits after it.

    >>> published_spans(["item", "_", "73", "91", "item", "_", "5", "</s>"])
    [1, 1, 1, 1, 2, 2, 2, 0]
    """
    rows, count, at = [0] * len(tokens), 0, 0
    while at < len(tokens):
        if tokens[at] == "_":
            count += 1
            end = at + 1
            while end < len(tokens) and tokens[end].isdigit():
                end += 1
            rows[max(at - 1, 0) : end] = [count] * (end - max(at - 1, 0))
            at = end
        else:
            at += 1
    return rows


def offset_spans(tokenizer: Any, text: str, places: Sequence[tuple[int, int]]) -> list[int]:
    """Return the row of each token of a text, from where its entities stand in it.

    Args:
        tokenizer: A fast tokenizer, which knows the offsets of tokens.
        text: The text.
        places: First and last character (exclusive) of each entity, in order.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    rows = []
    for start, end in offsets:
        inside = (k for k, (low, high) in enumerate(places, start=1) if start < high and end > low)
        rows.append(next(inside, 0))
    return rows


class WholeWord(nn.Module):
    """The rows of a prompt's entities; use `add_whole_word`."""

    first: Tensor
    later: Tensor
    alone: Tensor

    def __init__(
        self,
        width: int,
        entities: Sequence[Sequence[int]],
        size: int,
        learned: tuple[int, int],
        *,
        end: Sequence[int] = (),
        max_entities: int = MAX_ENTITIES,
        zero_row: bool = True,
        init: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Make the table.

        Args:
            width: Width of the network's embeddings.
            entities: Tokens of each user and item as it stands in prompts.
            size: Number of tokens.
            learned: First and last (exclusive) token id of learned vectors; rows come after such tokens.
            end: Tokens behind which there are no rows: with a causal network, the end of the question.
            max_entities: Rows of the table; further entities get the last one.
            zero_row: Whether row 0 is zero and stays so.
            init: Standard deviation of the other rows at the start.
            seed: Seed of their start.

        Raises:
            ConfigError: If a token both begins entities and continues them, so that ids run together.
        """
        super().__init__()
        self.table = nn.Embedding(max_entities, width, padding_idx=0 if zero_row else None)
        drawn = generator(seed, "whole-word").standard_normal((max_entities, width)) * init
        with torch.no_grad():
            self.table.weight.copy_(torch.from_numpy(drawn))
        if zero_row:
            with torch.no_grad():
                self.table.weight[0] = 0
        self.learned, self.end, self.max_entities = learned, tuple(end), max_entities
        self.facts = {
            "width": width,
            "size": size,
            "learned": list(learned),
            "end": list(end),
            "max_entities": max_entities,
            "zero_row": zero_row,
        }
        """What `from_facts` takes, beside the saved tensors."""
        kinds = {
            "first": {row[0] for row in entities},
            "later": {token for row in entities for token in row[1:]},
            "alone": {row[0] for row in entities if len(row) == 1},
        }
        if both := kinds["first"] & kinds["later"]:
            raise ConfigError(
                f"whole-word embeddings need ids whose tokens show where they end, and token {min(both)} "
                "both begins ids and stands inside them. Write items as numbers or codes, or leave them out."
            )
        for name, tokens in kinds.items():
            table = torch.zeros(size, dtype=torch.bool)
            table[list(tokens)] = True
            self.register_buffer(name, table)

    @property
    def sha256(self) -> str:
        """Hash of rows, tokens and rules; it enters `LocalLM.fingerprint`."""
        digest = hashlib.sha256(json.dumps(self.facts).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return a table whose tensors are still to be loaded."""
        low, high = facts["learned"]
        rest = {name: value for name, value in facts.items() if name not in ("width", "size", "learned")}
        return cls(facts["width"], [], facts["size"], (low, high), **rest)

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row of each token, (rows, length), and which tokens are text behind learned vectors."""
        learned = (ids >= self.learned[0]) & (ids < self.learned[1])
        text = (learned.cumsum(dim=1) > 0) & ~learned
        known = ids.clamp(max=len(self.first) - 1)
        ended = torch.zeros_like(text)
        for token in self.end:
            ended |= ids == token
        counted = text & (ended.cumsum(dim=1) == 0)
        following = torch.zeros_like(text)
        following[:, :-1] = self.later[known[:, 1:]] & counted[:, 1:]
        opens = self.first[known] & counted & (following | self.alone[known])
        carries = self.later[known] & counted & ~opens
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        # The last token up to here that carries nothing on: if it opens an entity, this one belongs to it.
        last = torch.where(carries, -1, place).cummax(dim=1).values
        inside = (last >= 0) & opens.gather(1, last.clamp(min=0)) & (opens | carries)
        found = opens.cumsum(dim=1).clamp(max=self.max_entities - 1)
        return torch.where(inside, found, 0), text

    def forward(self, ids: Tensor) -> Tensor:
        """Return what is added to the embeddings of tokens, (rows, length, width)."""
        rows, text = self.rows(ids)
        found: Tensor = self.table(rows) * text[..., None]
        return found


def whole_word(lm: LocalLM) -> WholeWord | None:
    """Return the whole-word rows of a model, if any."""
    found: WholeWord | None = getattr(lm.network.get_input_embeddings(), "whole_word", None)
    return found


def check_rows(module: WholeWord, tokens: Sequence[Sequence[int]], spans: Sequence[Sequence[int]]) -> None:
    """Compare the rows that a module finds with those that are known.

    Args:
        module: The module.
        tokens: Prompts.
        spans: Row of each of their tokens.

    Raises:
        ConfigError: If a prompt's rows differ: words look like ids to this tokenizer.
    """
    for row, wanted in zip(tokens, spans, strict=True):
        found = module.rows(torch.tensor([list(row)]))[0][0].tolist()
        if found != [min(k, module.max_entities - 1) for k in wanted]:
            raise ConfigError(
                "whole-word embeddings need ids whose tokens show where they begin and end, and to this "
                "tokenizer other words look like ids. Write items as numbers or codes with own tokens, "
                "or leave whole-word embeddings out."
            )


def add_whole_word(lm: LocalLM, module: WholeWord) -> None:
    """Let a model with learned prompt read whole-word rows, in place.

    Raises:
        ModelError: If it has no learned prompt, or such rows already.
    """
    layer = lm.network.get_input_embeddings()
    if not hasattr(layer, "task_prompt") or whole_word(lm) is not None:
        raise ModelError(f"{lm.model} needs a learned prompt, and no whole-word rows, to be given some.")
    layer.whole_word = module.to(layer.weight.device)

    def add(own: Any, args: tuple[Tensor, ...], words: Tensor) -> Tensor:
        added: Tensor = own.whole_word(args[0])
        return words + added.to(words.dtype)

    layer.register_forward_hook(add)
