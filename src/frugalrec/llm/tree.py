"""Trees of tokens after prompts: one row a prompt, however many branches; nothing is copied a branch.

A row's cache holds the prompt and every token that any branch has appended. An additive mask lets a
branch see the prompt and its own tokens alone, and its positions go on where the prompt ends, so the
numbers are those of whole texts, one a branch. A beam that leaves the search leaves columns that nobody
sees. An encoder reads its prompt once, and all branches attend to the same states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from frugalrec.errors import ModelError
from frugalrec.llm.queries import decoder_start
from frugalrec.llm.scoring import finer, gathered_logits, padded

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


class Logits:
    """What may follow some places of a tree, before normalisation."""

    def __init__(self, values: Tensor, hidden: Tensor, head: Any) -> None:
        self.values = values
        """(n_places, vocabulary), in the network's number type."""
        self.hidden = hidden
        """What went into the output layer, (n_places, width)."""
        self.head = head
        self.normaliser = torch.logsumexp(values.float(), dim=-1)

    def log_probabilities(self, places: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probabilities (nats, float32) of tokens (m,) at places (m,)."""
        raw = self.values[places, tokens].float()
        if self.values.dtype != torch.float32:
            raw = finer(raw, self.hidden, self.head, places, tokens)
        return raw - self.normaliser[places]


class PromptTrees:
    """Prompts that have been read once, and the tokens that grow after them. Use `PromptTrees.read`."""

    def __init__(self, network: Any, cache: Any, positions: Tensor, lengths: Tensor) -> None:
        self.network = network
        self.cache = cache
        self.positions = positions
        """Position of each cached token, (n_prompts, n_columns)."""
        self.lengths = lengths
        """Tokens before the trees, (n_prompts,): the prompt's, or the decoder's start token alone."""
        self.prompt_columns = positions.shape[1]
        self.encoded: tuple[Tensor, Tensor] | None = None
        """Encoder states and their mask, of an encoder-decoder network."""

    @classmethod
    def read(
        cls, lm: LocalLM, prompts: Sequence[Sequence[int]], *, see_padding: bool = False
    ) -> tuple[PromptTrees, Logits]:
        """Read prompts (token ids); return them with what may follow each, (n_prompts, vocabulary).

        Args:
            lm: The model.
            prompts: Token ids.
            see_padding: Let a decoder attend to the encoder's padding too, a published mistake: then a
                prompt's numbers depend on the longest beside it.
        """
        network, device = lm.network, lm.network.device
        ids, mask = padded(prompts, lm.pad_id, device)
        own = Cache(layer_class_to_replicate=_Layer)
        if not lm.is_encoder_decoder:
            # Padding stands on the right, where causal attention never looks.
            trees = cls(network, own, _counting(ids.shape, device), mask.sum(dim=1))
            last = (mask.sum(dim=1) - 1).tolist()
            with gathered_logits(network, range(len(prompts)), last) as hidden:
                values = network(input_ids=ids, past_key_values=own, use_cache=True).logits[0]
            return trees, trees._logits(values, hidden[0])
        states = network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        start = torch.full((len(prompts), 1), decoder_start(lm), device=device)
        trees = cls(network, EncoderDecoderCache(own, DynamicCache()), start[:, :0], mask.new_zeros(len(ids)))
        trees.encoded = (states, torch.ones_like(mask) if see_padding else mask)
        first = trees.grow(start, start * 0, torch.ones_like(start, dtype=torch.bool)[..., None])
        trees.lengths, trees.prompt_columns = trees.lengths + 1, 1
        return trees, first

    @property
    def columns(self) -> int:
        """Tokens that the trees of each row hold, those of given-up branches included."""
        return int(self.positions.shape[1]) - self.prompt_columns

    @property
    def vocabulary(self) -> int:
        """How many logits a place has."""
        return int(self.network.get_output_embeddings().weight.shape[0])

    def grow(self, tokens: Tensor, depths: Tensor, sees: Tensor, wanted: Tensor | None = None) -> Logits:
        """Append tokens to the trees; return what may follow them.

        Args:
            tokens: Token ids, (n_prompts, q).
            depths: Tokens of its branch before each, (n_prompts, q).
            sees: True where a new token may see one of the trees' tokens (the prompt is always seen),
                (n_prompts, q, columns before + q); each must see itself.
            wanted: True for tokens whose successors matter, (n_prompts, q); default: all. Those of a row
                come in order, row after row.
        """
        positions = self.lengths[:, None] + depths
        self.positions = torch.cat([self.positions, positions], dim=1)
        prompt = torch.arange(self.prompt_columns, device=tokens.device) < self.lengths[:, None]
        seen = torch.cat([prompt[:, None].expand(-1, tokens.shape[1], -1), sees], dim=2)
        dtype = self.network.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        mask = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        places = torch.ones_like(tokens, dtype=torch.bool) if wanted is None else wanted
        rows, columns = (index.tolist() for index in places.nonzero(as_tuple=True))
        with gathered_logits(self.network, rows, columns) as hidden:
            values = self._forward(tokens, positions, mask)
        return self._logits(values, hidden[0])

    def take(self, rows: Tensor) -> PromptTrees:
        """Return a copy of some rows; what is appended to one is not seen by the other."""
        taken = PromptTrees(self.network, self.cache, self.positions[rows], self.lengths[rows])
        taken.prompt_columns = self.prompt_columns
        if self.encoded is None:
            taken.cache = _taken(self.cache, rows)
        else:
            own = _taken(self.cache.self_attention_cache, rows)
            taken.cache = EncoderDecoderCache(own, _taken(self.cache.cross_attention_cache, rows))
            states, mask = self.encoded
            taken.encoded = (states[rows], mask[rows])
        return taken

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        options = {"past_key_values": self.cache, "use_cache": True}
        if self.encoded is None:
            output = self.network(input_ids=tokens, position_ids=positions, attention_mask=mask, **options)
            return output.logits[0]  # type: ignore[no-any-return]
        from transformers.modeling_outputs import BaseModelOutput

        states, known = self.encoded
        with relative_positions(self.network, positions, self.positions):
            output = self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=known,
                decoder_input_ids=tokens,
                decoder_attention_mask=mask,
                **options,
            )
        return output.logits[0]  # type: ignore[no-any-return]

    def _logits(self, values: Tensor, hidden: Tensor) -> Logits:
        return Logits(values, hidden, self.network.get_output_embeddings())


def check_trees(lm: LocalLM) -> None:
    """Try a tiny tree: networks whose layers ignore masks or positions are found out here.

    Raises:
        ModelError: If branches of a tree do not get what whole texts get.
    """
    prompts = [[5, 9, 3, 7, 11, 4], [5, 9, 3]]
    branches = [[8, 6], [10, 12]]
    try:
        trees, _ = PromptTrees.read(lm, prompts)
        device = trees.positions.device
        steps = torch.tensor(branches, device=device).T  # (2 steps, 2 branches)
        eye = torch.eye(2, dtype=torch.bool, device=device).expand(len(prompts), -1, -1)
        trees.grow(steps[:1].expand(len(prompts), -1), torch.zeros_like(steps), eye)
        both = torch.cat([eye, eye], dim=2)
        found = trees.grow(steps[1:].expand(len(prompts), -1), torch.ones_like(steps), both).values.float()
        whole = torch.stack([_plain(lm, prompt, branch) for prompt in prompts for branch in branches])
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError) as error:
        raise ModelError(_no_trees(lm, str(error))) from error
    tolerance = 1e-3 if lm.network.dtype == torch.float32 else 0.1
    off = float(((found - whole).abs().mean(dim=1) / whole.std(dim=1)).max())
    if not off <= tolerance:
        raise ModelError(_no_trees(lm, f"logits are off by {off:.2g} standard deviations"))


def _no_trees(lm: LocalLM, reason: str) -> str:
    return (
        f"{lm.model} cannot read several continuations of one prompt at once ({reason}). "
        "Use nearest or candidate grounding with it."
    )


def _plain(lm: LocalLM, prompt: Sequence[int], branch: Sequence[int]) -> Tensor:
    """Return the logits after a prompt and a branch, computed as one text."""
    device = lm.network.device
    whole = torch.tensor([[*prompt, *branch]], device=device)
    if not lm.is_encoder_decoder:
        logits: Tensor = lm.network(whole).logits
        return logits[0, -1].float()
    given = torch.tensor([[decoder_start(lm), *branch]], device=device)
    logits = lm.network(input_ids=whole[:, : len(prompt)], decoder_input_ids=given).logits
    return logits[0, -1].float()


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer in buffers with room to grow, so that a step copies no older ones."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append; return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states[:, :, :0], value_states[:, :, :0])
            self.keys, self.values = self._buffers
        used = self.keys.shape[2]
        stop = used + key_states.shape[2]
        if stop > self._buffers[0].shape[2]:
            room = stop if used == 0 else stop + max(stop // 2, 64)
            self._buffers = (_enlarged(self.keys, room), _enlarged(self.values, room))
        keys, values = self._buffers
        keys[:, :, used:stop] = key_states
        values[:, :, used:stop] = value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values


def _enlarged(part: Tensor, room: int) -> Tensor:
    larger = part.new_empty((*part.shape[:2], room, part.shape[3]))
    larger[:, :, : part.shape[2]] = part
    return larger


def _taken(cache: Any, rows: Tensor) -> Any:
    copy = Cache(layer_class_to_replicate=_Layer)
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys[rows], layer.values[rows], number)
    return copy


def _counting(shape: torch.Size, device: Any) -> Tensor:
    return torch.arange(shape[1], device=device).expand(shape[0], -1)


@contextmanager
def relative_positions(network: Any, queries: Tensor, keys: Tensor) -> Iterator[None]:
    """Let decoder layers with relative position biases (T5) use the given positions, not the columns."""

    def bias(module: Any) -> Tensor:
        buckets = module._relative_position_bucket(
            keys[:, None, :] - queries[:, :, None],
            bidirectional=False,
            num_buckets=module.relative_attention_num_buckets,
            max_distance=module.relative_attention_max_distance,
        )
        return module.relative_attention_bias(buckets).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    with ExitStack() as changes:
        for module in network.get_decoder().modules():
            if getattr(module, "has_relative_attention_bias", False):
                module.compute_bias = lambda *_, module=module, **__: bias(module)
                changes.callback(module.__dict__.pop, "compute_bias")
        yield
