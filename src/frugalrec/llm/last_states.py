"""The state that a prompt ends in: one forward pass, no output layer, nothing generated.

A causal network's is that of the prompt's last token, so the last layer's feed-forward part works there and
nowhere else. An encoder-decoder's is that of its decoder's start token, which has seen all encoder states.
T5's goes a shorter way: one user's prompt is too short to keep a core busy, and what is not a product of
matrices took a third of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalrec.llm.last_layer import feed_forward_of
from frugalrec.llm.queries import decoder_start
from frugalrec.llm.scoring import padded

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def last_states(lm: LocalLM, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the final state (after the last norm) of each prompt, (n, width) float32; one padded batch.

    Gradients flow if they are on, so a head can be trained on it.

    Args:
        lm: The model; adapters on it take part.
        prompts: Token ids, at least one each.
    """
    network: Any = lm.network
    if hasattr(network, "get_base_model"):  # PEFT's wrapper; its layers stay in
        network = network.get_base_model()
    ids, mask = padded(prompts, lm.pad_id, lm.network.device)
    if not lm.is_encoder_decoder:
        return _causal_last(network, ids, mask).float()
    encoder, decoder = network.get_encoder(), network.get_decoder()
    plain = _is_plain_t5(decoder)
    if plain and ids.device.type == "cpu":
        states = _t5_encoded(encoder, ids, mask)
    else:
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    start = torch.full((len(prompts), 1), decoder_start(lm), device=ids.device)
    if plain:
        return _t5_start(decoder, start[:, 0], states, mask).float()
    decoded: Tensor = decoder(
        input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return decoded[:, 0].float()


def _causal_last(network: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the final state of each row's last token, (n, width)."""
    rows, columns = torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1
    feed = feed_forward_of(network)
    with nullcontext() if feed is None else feed.only_at(rows.tolist(), columns.tolist()):
        # Padding stands on the right, where causal attention never looks.
        states = network.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last: Tensor = states[rows, columns]
    return last


def _is_plain_t5(decoder: Any) -> bool:
    """Return whether a decoder is T5's, with cross-attention that no adapter has changed."""
    if type(decoder).__name__ != "T5Stack" or decoder.training or decoder.dtype == torch.float16:
        return False
    crosses = [block.layer[1].EncDecAttention for block in decoder.block]
    return all(type(part) is torch.nn.Linear for cross in crosses for part in (cross.k, cross.v))


def _t5_encoded(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the final states of a T5 encoder, (n, length, width): its own layers, attention in the open.

    On a CPU, torch's fused attention takes twice as long with a bias for each pair of positions, and
    transformers looks up that bias pair by pair.
    """
    states = encoder.embed_tokens(ids)
    bias = _t5_bias(encoder.block[0].layer[0].SelfAttention, ids.shape[1])
    hidden = _hidden(mask, states.dtype)[:, None, None] if not bool(mask.all()) else None
    for block in encoder.block:
        own, feed = block.layer
        part, given = own.SelfAttention, own.layer_norm(states)
        query, key, value = (
            layer(given).unflatten(2, (part.n_heads, -1)).transpose(1, 2)
            for layer in (part.q, part.k, part.v)
        )
        scores = (query @ key.transpose(2, 3)).add_(bias)
        scores = scores if hidden is None else scores.add_(hidden)
        seen = scores.softmax(dim=-1) @ value
        states = feed(states + part.o(seen.transpose(1, 2).flatten(2)))
    final: Tensor = encoder.final_layer_norm(states)
    return final


def _t5_bias(part: Any, length: int) -> Tensor:
    """Return the bias of each pair of positions, (heads, length, length), looked up a distance at a time."""
    ahead, behind = part.compute_bias(1, length)[0, :, 0], part.compute_bias(length, 1)[0, :, :, 0]
    distances = torch.cat([behind.flip(1)[:, :-1], ahead], dim=1)  # -(length - 1) to length - 1
    return distances.unfold(1, length, 1).flip(1)


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: the least number where padding stands, else 0."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask == 0, torch.finfo(dtype).min)


def _t5_start(decoder: Any, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Return the final state of a T5 decoder's first token, (n, width), without keys and values.

    One query is turned back through the key matrix to meet the encoder states as they are, and what it
    sees of them goes through the value matrix afterwards: q . (K x) = (K' q) . x. That saves two products
    a layer of the size of the prompt. The token itself sees nothing but itself.
    """
    state = decoder.embed_tokens(tokens)
    hidden = _hidden(mask, state.dtype)
    for block in decoder.block:
        own, cross, feed = block.layer
        state = state + own.SelfAttention.o(own.SelfAttention.v(own.layer_norm(state)))
        part = cross.EncDecAttention
        heads = (part.n_heads, part.key_value_proj_dim, states.shape[2])
        query = part.q(cross.layer_norm(state)).view(-1, *heads[:2])
        scores = torch.einsum("nhk,hkd->nhd", query, part.k.weight.view(heads)) @ states.transpose(1, 2)
        seen = (scores + hidden[:, None]).softmax(dim=-1) @ states
        values = torch.einsum("nhd,hkd->nhk", seen, part.v.weight.view(heads))
        state = feed(state + part.o(values.flatten(1)))
    final: Tensor = decoder.final_layer_norm(state)
    return final
