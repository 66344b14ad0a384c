"""Keys and values that stand for the tokens which all texts begin with: read once, or learned.

A worded prompt opens with the same words for every user, so what its layers attend to in them is a
constant. `KVPrefix.read` computes it, which is a prompt cache; shortened to P positions and learned, it
is a prefix in the sense of prefix tuning. Texts are still given whole: the model drops the tokens that
it knows and reads the rest at its own positions. Causal networks that attend to all tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.prefix import attention_window, common_prefix
from frugalrec.llm.prompt_files import KV_PREFIX, write_prompt

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Shortening = Literal["first", "pooled"]


class KVPrefix(nn.Module):
    """What every layer attends to before a text begins."""

    def __init__(self, keys: Tensor, values: Tensor, tokens: Sequence[int]) -> None:
        """Store them.

        Args:
            keys: (n_layers, n_heads, P, head_width), as they enter attention (positions applied).
            values: Of the same shape.
            tokens: The tokens that they stand for; P may be smaller.

        Raises:
            ConfigError: If the shapes differ, or there are more positions than tokens.
        """
        super().__init__()
        if keys.ndim != 4 or keys.shape != values.shape or not 1 <= keys.shape[2] <= len(tokens):
            raise ConfigError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} cannot stand for {len(tokens)} "
                "tokens: give (layers, heads, positions, width), 1 to so many positions."
            )
        self.keys = nn.Parameter(keys.detach().clone().float())
        self.values = nn.Parameter(values.detach().clone().float())
        self.tokens = tuple(int(token) for token in tokens)

    @classmethod
    @torch.no_grad()
    def read(cls, lm: LocalLM, tokens: Sequence[int]) -> Self:
        """Return the keys and values of some tokens, one position each.

        Raises:
            ModelError: If the model is no causal one that attends to all tokens.
        """
        from transformers.cache_utils import DynamicCache

        if lm.is_encoder_decoder or attention_window(lm.network) < float("inf"):
            raise ModelError(
                f"{lm.model} cannot have a prefix of keys and values: its layers do not attend to all tokens "
                "of one text. Use prompt vectors."
            )
        cache: Any = DynamicCache()
        ids = torch.tensor([list(tokens)], device=lm.network.device)
        with lm._running():
            lm.network(input_ids=ids, past_key_values=cache, use_cache=True)
        keys, values = ([getattr(layer, name)[0] for layer in cache.layers] for name in ("keys", "values"))
        return cls(torch.stack(keys), torch.stack(values), tokens)

    def shortened(self, n_vectors: int, how: Shortening = "pooled") -> KVPrefix:
        """Return fewer positions for the same tokens.

        Args:
            n_vectors: P.
            how: `first` keeps the first P positions. `pooled` keeps the first one, which layers use as
                a place to attend to nothing, and takes means over the others, in parts as even as they get.
        """
        n = self.n_vectors
        if not 1 <= n_vectors <= n:
            raise ConfigError(f"the prefix has {n} positions; keep 1 to {n} of them, not {n_vectors}.")
        if how == "first" or n_vectors == n:
            return KVPrefix(self.keys[:, :, :n_vectors], self.values[:, :, :n_vectors], self.tokens)
        rest = n_vectors - 1
        edges = [0, *(1 + (n - 1) * j // rest for j in range(rest + 1))] if rest else [0, n]
        spans = list(zip(edges, edges[1:], strict=False))
        keys, values = (
            torch.stack([table[:, :, low:high].mean(dim=2) for low, high in spans], dim=2)
            for table in (self.keys, self.values)
        )
        return KVPrefix(keys, values, self.tokens)

    @property
    def n_vectors(self) -> int:
        """P, the positions a layer."""
        return int(self.keys.shape[2])

    @property
    def sha256(self) -> str:
        """Hash of tokens and values."""
        digest = hashlib.sha256(repr(self.tokens).encode())
        for table in (self.keys, self.values):
            digest.update(table.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the prefix before what a network's layers are given (a forward pre-hook)."""
        from transformers.cache_utils import DynamicCache

        given = kwargs.get("inputs_embeds")
        given = (args[0] if args else kwargs["input_ids"]) if given is None else given
        rows, length = given.shape[:2]
        cache: Any = kwargs.get("past_key_values")
        cache = DynamicCache() if cache is None else cache
        if type(cache) is not DynamicCache:
            raise ModelError("a prefix of keys and values works for scoring only; use prompt vectors here.")
        dtype = given.dtype if given.is_floating_point() else next(_.parameters()).dtype
        if cache.get_seq_length() == 0:
            for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
                cache.update(*(part.to(dtype).expand(rows, -1, -1, -1) for part in (key, value)), layer)
        positions = kwargs.get("position_ids")
        if positions is None:
            start = cache.get_seq_length() - self.n_vectors
            positions = torch.arange(start, start + length, device=given.device)[None]
        mask = kwargs.get("attention_mask")
        if mask is not None:  # (rows, length), 1 where seen; or (rows, 1, length, length), 0 where seen
            shape = (*mask.shape[:-1], self.n_vectors)
            mask = torch.cat([mask.new_full(shape, 1 if mask.ndim == 2 else 0), mask], dim=-1)
        kwargs.pop("cache_position", None)  # counted anew from the cache
        changed = {
            "past_key_values": cache,
            "position_ids": positions + len(self.tokens),
            "attention_mask": mask,
        }
        return args, {**kwargs, **changed}


def shared_tokens(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the tokens that all texts begin with; at least one of each text is left over."""
    length = min(common_prefix(rows), *(len(row) - 1 for row in rows))
    return tuple(rows[0][:length])


def kv_prefix(lm: LocalLM) -> KVPrefix | None:
    """Return the prefix of a model, if any."""
    found: KVPrefix | None = getattr(_stack(lm), "kv_prefix", None)
    return found


def add_kv_prefix(lm: LocalLM, prefix: KVPrefix) -> None:
    """Let a model begin every text with a prefix, in place; texts that begin otherwise are refused.

    Raises:
        ModelError: If it has one, or its layers need another shape.
    """
    stack = _stack(lm)
    if kv_prefix(lm) is not None:
        raise ModelError(f"{lm.model} begins with a prefix already; load it without.")
    wanted = KVPrefix.read(lm, prefix.tokens[:1]).keys.shape
    if (*prefix.keys.shape[:2], prefix.keys.shape[3]) != (*wanted[:2], wanted[3]):
        raise ModelError(
            f"a prefix of shape {tuple(prefix.keys.shape)} does not fit {lm.model}, whose layers need "
            f"{tuple(wanted)}; take the one that was made for this model."
        )
    prefix.to(lm.network.device)
    stack.kv_prefix = prefix
    stack.kv_prefix_hook = stack.register_forward_pre_hook(prefix.before, with_kwargs=True)
    lm.known = prefix.tokens


def remove_kv_prefix(lm: LocalLM) -> None:
    """Take the prefix away again, in place.

    Raises:
        ModelError: If there is none.
    """
    stack = _stack(lm)
    if kv_prefix(lm) is None:
        raise ModelError(f"{lm.model} begins with no prefix.")
    stack.kv_prefix_hook.remove()
    del stack.kv_prefix, stack.kv_prefix_hook
    lm.known = ()


def save_kv_prefix(lm: LocalLM, folder: Path, evidence: Mapping[str, Any] | None = None) -> None:
    """Write the prefix of a model, as `prompt_files.save_prompt` writes vectors.

    Raises:
        ModelError: If it has none, or one of its values is no finite number.
    """
    prefix = kv_prefix(lm)
    if prefix is None:
        raise ModelError(f"{lm.model} begins with no prefix; there is nothing to save.")
    tables = {"keys": prefix.keys, "values": prefix.values}
    facts = {"kind": KV_PREFIX, "tasks": [], "n_vectors": prefix.n_vectors, "tokens": prefix.tokens}
    write_prompt(lm, folder, tables, facts, evidence)


def _stack(lm: LocalLM) -> Any:
    """Return a network's layers without its head; a PEFT wrapper's layers stay in."""
    network = lm.network.get_base_model() if hasattr(lm.network, "get_base_model") else lm.network
    return network.base_model
